"""What every layer loss has in common: at unit scale, a teacher layer times any factor is the same problem."""

import pytest
import torch
from torch import nn

from helpers import LAYER_BASELINES
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.core.activations import Features, to_features
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.losses.building import make_layer_loss, needs_energies
from subdistill_hf.losses.procrustes import PROCRUSTES
from subdistill_hf.losses.rotations import FULL_WIDTH, ROTATIONS
from subdistill_hf.losses.subspace import CENTRINGS

WIDTH, STUDENT_WIDTH = 7, 4


def drawn(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(factor, grid, options, basis="prca", rotation="orthogonal"):
    """A student's weights after some steps beside a layer of the teacher that is multiplied by a factor."""
    torch.manual_seed(0)
    student = nn.Conv2d(3, STUDENT_WIDTH, 3, stride=4 // grid[0], padding=1).double()
    teacher = Features(factor * (drawn(6, WIDTH, 16, seed=1) + 0.5), (4, 4))
    pair = LayerPair(LayerShape("theirs", WIDTH, (4, 4), 0), LayerShape("ours", STUDENT_WIDTH, grid, 0))
    pooled = Moments.of(teacher.pooled(grid).values)
    moments = Moments.of(teacher.values, drawn(6, WIDTH, 16, seed=2) / factor)
    dimensions = WIDTH if rotation == FULL_WIDTH else STUDENT_WIDTH
    subspace = Subspace.fit(moments, dimensions, basis, pooled=pooled) if options.method == "subdistill" else None
    energy = float(pooled.covariance.trace()) if needs_energies(options) else None
    loss = make_layer_loss(options, pair, subspace, rotation, energy).double()
    optimiser = torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=1e-2)
    for step in range(4):
        optimiser.zero_grad()
        hidden = to_features(student(drawn(6, 3, 4, 4, seed=3 + step)), "ours")
        loss(hidden, loss.make_target(teacher)).backward()
        optimiser.step()
    return torch.cat([weight.detach().flatten() for weight in student.parameters()])


def assert_same_for_any_factor(*given, **more):
    expected = trained(1.0, *given, **more)
    for factor in (1e-3, 1e3):
        torch.testing.assert_close(trained(factor, *given, **more), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("grid", [(4, 4), (2, 2)], ids=["one grid", "pooled"])
@pytest.mark.parametrize("method", LAYER_BASELINES)
@pytest.mark.parametrize("scale", ["unit", "auto"])
def test_a_factor_of_the_teachers_layer_changes_no_method(method, grid, scale):
    assert_same_for_any_factor(grid, DistillationOptions(method=method, target_scale=scale))


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("rotation", [*ROTATIONS, PROCRUSTES, FULL_WIDTH])
def test_a_factor_of_the_teachers_layer_changes_nothing_in_subspaces(basis, centring, rotation):
    options = DistillationOptions(centring=centring, target_scale="auto")
    assert_same_for_any_factor((2, 2), options, basis, rotation)


@pytest.mark.parametrize("method", ["subdistill", "fitnet", "vid", "vkd"])
def test_at_the_teachers_scale_a_factor_does_matter(method):
    options = DistillationOptions(method=method, centring="mean", target_scale="teacher")
    assert (trained(1e-3, (2, 2), options) - trained(1.0, (2, 2), options)).abs().max() > 1e-4


def test_energies_are_measured_where_they_are_needed_alone():
    needed = {
        method
        for method in ("scratch", "kd", *LAYER_BASELINES, "subdistill")
        if needs_energies(DistillationOptions(method=method, target_scale="unit"))
    }
    assert needed == {"fitnet", "vid", "vkd"}
    assert needed == {
        method
        for method in ("scratch", "kd", *LAYER_BASELINES, "subdistill")
        if needs_energies(DistillationOptions(method=method, target_scale="auto"))
    }
    assert not needs_energies(DistillationOptions(method="fitnet", target_scale="teacher"))
