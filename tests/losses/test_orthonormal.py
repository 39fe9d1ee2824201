"""The orthonormal map of any shape: against the whole Cayley transform in NumPy, and against what it must reach."""

import numpy as np
import pytest
import torch
from torch import nn

from subdistill_hf.losses.orthonormal import OrthonormalMap


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (5, 1)])
def test_the_orthonormal_map_is_the_cayley_transform_of_the_whole_matrix(shape):
    torch.manual_seed(0)
    projection = OrthonormalMap(*shape).double()
    start = projection.matrix.detach()
    with torch.no_grad():
        projection.free.normal_()
    base, free = projection.base.numpy(), projection.free.detach().numpy()
    skew = free @ base.T - base @ free.T
    identity = np.eye(len(skew))
    expected = np.linalg.inv(identity + skew / 2) @ (identity - skew / 2) @ base
    expected = expected.T if shape[0] < shape[1] else expected
    np.testing.assert_allclose(projection.matrix.detach().numpy(), expected, rtol=0, atol=1e-12)
    assert np.abs(expected - start.numpy()).max() > 0.1
    assert projection.matrix.shape == shape


def test_the_orthonormal_map_reaches_a_far_matrix():
    torch.manual_seed(1)
    projection, aim = OrthonormalMap(9, 4), nn.init.orthogonal_(torch.empty(9, 4))
    optimiser = torch.optim.Adam(projection.parameters(), lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        (projection.matrix - aim).square().sum().backward()
        optimiser.step()
    assert (projection.base - aim).abs().max() > 0.5
    torch.testing.assert_close(projection.matrix.detach(), aim, rtol=0, atol=0.02)
