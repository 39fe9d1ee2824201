"""The map of the student's channels: orthogonal whatever its parameters, and its gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from subdistill_hf.losses.rotations import CayleyMatrices, OrthonormalMap, Rotation, _Inverses

SHAPES = [(6, 6), (6, 4), (5, 1)]  # K, K'


def made(width, dimensions, seed=0):
    torch.manual_seed(seed)
    rotation = Rotation(width, dimensions).double()
    with torch.no_grad():
        rotation.free.normal_(std=2)
    return rotation


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_orthonormal_whatever_the_parameters(shape):
    matrix = made(*shape).matrix
    assert matrix.shape == shape[::-1]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(shape[1]).double(), rtol=0, atol=1e-6)


def test_the_cayley_transform():
    rotation = made(6, 6)
    free = rotation.free.detach()
    skew = torch.tril(free, -1) - torch.tril(free, -1).T
    one = torch.eye(6).double()
    expected = torch.linalg.solve(one + skew / 2, one - skew / 2) @ rotation.base
    torch.testing.assert_close(rotation.matrix, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_the_finite_differences(shape):
    rotation = made(*shape)

    class Matrix(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rotation = rotation

        def forward(self):
            return self.rotation.matrix

    def matrix(free):
        return torch.func.functional_call(Matrix(), {"rotation.free": free}, ())

    assert torch.autograd.gradcheck(matrix, rotation.free.detach().clone().requires_grad_())


def test_several_at_once_are_what_each_is_alone():
    rotations = [made(width, width, seed=width) for width in (4, 1, 6)]

    def results(matrices):
        loss = sum((matrix * (matrix + 1).cumsum(dim=1)).sum() for matrix in matrices)
        return [*matrices, *torch.autograd.grad(loss, [rotation.free for rotation in rotations])]

    stack = CayleyMatrices()(rotations)
    assert stack.shape == (3, 6, 6)
    assert stack[0, 4:].abs().max() == stack[0, :, 4:].abs().max() == 0
    alone = results([rotation.matrix for rotation in rotations])
    together = results([stack[0, :4, :4], stack[1, :1, :1], stack[2]])
    for first, second in zip(alone, together, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_starts_from_a_given_matrix_and_can_leave_it(shape, kind):
    start = made(*shape, seed=3).matrix.detach().float()
    rotation = Rotation(*shape, kind)
    rotation.start_from(start)
    torch.testing.assert_close(rotation.matrix, start, rtol=0, atol=1e-6)
    (rotation.matrix * torch.arange(start.numel()).view_as(start)).sum().backward()
    torch.optim.SGD(rotation.parameters(), lr=0.1).step()
    assert (rotation.matrix - start).abs().max() > 1e-2


def test_a_student_narrower_than_the_subspace_cannot_be_rotated():
    with pytest.raises(ValueError, match="4 channels cannot be rotated onto 6 dimensions"):
        Rotation(4, 6)


def test_kept_matrices_are_made_once_with_gradients_that_add_up(monkeypatch):
    rotations = [Rotation(4, 4), Rotation(3, 2), Rotation(5, 5)]
    for rotation in rotations:
        torch.nn.init.normal_(rotation.free)
    weights = torch.randn(2, 5, 5)
    made, make = [], _Inverses.of
    monkeypatch.setattr(_Inverses, "of", lambda *parameters: made.append(1) or make(*parameters))

    def gradients(keep):
        made.clear()
        pair = CayleyMatrices()
        pair.keep = rotations[1].cayley.keep = keep
        for rotation in rotations:
            rotation.free.grad = None
        for weight in weights:
            (pair([rotations[0], rotations[2]]) * weight).sum().backward()
            (rotations[1].matrix * weight[:2, :3]).sum().backward()
        return pair, [rotation.free.grad for rotation in rotations]

    _, expected = gradients(keep=False)
    assert len(made) == 4
    pair, found = gradients(keep=True)
    assert len(made) == 2  # a group of two, and one alone
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    before = pair([rotations[0], rotations[2]])
    with torch.no_grad():
        rotations[0].free.add_(1)
    assert torch.equal(pair([rotations[0], rotations[2]]), before)  # whoever changes them says so
    pair.forget()
    after = pair([rotations[0], rotations[2]])
    assert torch.equal(after[0, :4, :4], rotations[0].matrix)
    assert not torch.equal(after, before)


# The orthonormal map of any shape, against the whole Cayley transform in NumPy


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
