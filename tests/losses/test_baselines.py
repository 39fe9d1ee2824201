"""The compared losses: against the released code's values and against slow loops in NumPy."""

import math
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from torch import nn

from helpers import LAYER_BASELINES
from subdistill_hf.config.methods import METHODS
from subdistill_hf.core.activations import Features, to_features
from subdistill_hf.losses.baselines import (
    AttentionTransfer,
    FitNet,
    OrthogonalProjection,
    SimilarityPreserving,
    VariationalInformation,
)

LEARNS = {"fitnet", "vid", "vkd"}


def features(seed=0, batch=5, width=4, grid=(3, 3), prefix=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, width, prefix + grid[0] * grid[1], generator=generator, dtype=torch.float64)
    return Features(values + 0.3, grid, prefix)


def make(name, teacher_width=6, student_width=4, seed=0):
    torch.manual_seed(seed)
    return resolve_name(METHODS[name].layer_loss)(teacher_width, student_width).double()


def loss_of(loss, student, teacher):
    return loss(student, loss.make_target(teacher))


# Unit scale


def test_at_unit_scale_a_fitnet_that_predicts_the_mean_costs_1():
    teacher = features(width=6).with_values(50 * features(width=6).values)
    deviations = teacher.values - teacher.values.mean(dim=(0, 2), keepdim=True)
    energy = float(deviations.square().sum(dim=1).mean())
    loss = make("fitnet")
    loss.bring_to_unit_scale(6, energy)
    target = loss.make_target(teacher)
    torch.testing.assert_close(target.values, teacher.values * math.sqrt(6 / energy))
    with torch.no_grad():
        loss.regressor.weight.zero_()
        loss.regressor.bias.copy_(target.values.mean(dim=(0, 2)))
    assert loss(features(seed=1), target).item() == pytest.approx(1)


# The released code


@pytest.fixture
def reference(loss_reference):
    """The reference with both features in our form."""
    student = to_features(loss_reference["student_features"], "student")
    teacher = to_features(loss_reference["teacher_features"], "teacher")
    return loss_reference | {"student": student, "teacher": teacher}


def assert_reproduced(loss, reference, name):
    value = loss_of(loss, reference["student"], reference["teacher"]).item()
    assert value == pytest.approx(reference[name], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(("name", "activation"), [("fitnet", False), ("fitnet_relu", True)])
def test_the_released_fitnet_is_reproduced(reference, name, activation):
    loss = FitNet(16, 5, activation)
    weight, bias = reference[f"{name}.weight"], reference[f"{name}.bias"]
    loss.regressor.load_state_dict({"weight": weight[..., 0], "bias": bias})
    assert_reproduced(loss, reference, "fitnet-relu" if activation else "fitnet-noact")


def test_the_released_attention_transfer_is_reproduced(reference):
    assert_reproduced(AttentionTransfer(), reference, "attention-transfer")


def test_the_released_vid_is_reproduced(reference):
    loss = VariationalInformation(16, 5)
    convolutions = [layer for layer in loss.regressor if isinstance(layer, nn.Conv1d)]
    with torch.no_grad():
        for number, convolution in enumerate(convolutions):
            convolution.weight.copy_(reference[f"vid.conv{number}"][..., 0])
        loss.log_scale.copy_(reference["vid.log_scale"])
    assert_reproduced(loss, reference, "vid")


def test_the_released_vkd_is_reproduced(reference):
    loss = OrthogonalProjection(16, 5)
    loss.projection.base.copy_(reference["vkd.projection"])
    torch.testing.assert_close(loss.projection.matrix, reference["vkd.projection"], rtol=0, atol=1e-6)
    assert_reproduced(loss, reference, "vkd")


def test_the_released_spkd_is_reproduced(reference):
    assert_reproduced(SimilarityPreserving(), reference, "spkd")


# Slow oracles, for maps of one grid; `same_positions` is tested with the losses


def slow_fitnet(loss, student, teacher):
    weight, bias = loss.regressor.weight[..., 0].detach().numpy(), loss.regressor.bias.detach().numpy()
    errors = [
        ((weight @ h[:, p] + bias - a[:, p]) ** 2).sum()
        for h, a in zip(student, teacher, strict=True)
        for p in range(h.shape[1])
    ]
    return sum(errors) / len(errors)


def slow_attention_transfer(loss, student, teacher):
    errors = []
    for h, a in zip(student, teacher, strict=True):
        maps = [np.array([(x[:, p] ** 2).sum() / len(x) for p in range(x.shape[1])]) for x in (h, a)]
        first, second = (attention / math.sqrt((attention**2).sum()) for attention in maps)
        errors += list((first - second) ** 2)
    return sum(errors) / len(errors)


def slow_vid(loss, student, teacher):
    weights = [layer.weight[..., 0].detach().numpy() for layer in loss.regressor if isinstance(layer, nn.Conv1d)]
    variance = np.log(1 + np.exp(loss.log_scale.detach().numpy())) + 1e-5
    terms = []
    for h, a in zip(student, teacher, strict=True):
        for p in range(h.shape[1]):
            hidden = np.maximum(weights[1] @ np.maximum(weights[0] @ h[:, p], 0), 0)
            error = weights[2] @ hidden - a[:, p]
            terms += list((error**2 / variance + np.log(variance)) / 2)
    return sum(terms) / len(terms)


def slow_vkd(loss, student, teacher):
    projection = loss.projection.matrix.detach().numpy()
    terms = []
    for h, a in zip(student, teacher, strict=True):
        average = a.mean(axis=1)
        standard = (average - average.mean()) / math.sqrt(((average - average.mean()) ** 2).mean() + 1e-5)
        for x in projection @ h.mean(axis=1) - standard:
            terms.append(x * x / 2 if abs(x) < 1 else abs(x) - 0.5)
    return sum(terms) / len(terms)


def slow_spkd(loss, student, teacher):
    grams = []
    for side in (student, teacher):
        gram = np.array([[(x * y).sum() for y in side] for x in side])
        grams.append(np.array([row / math.sqrt((row**2).sum()) for row in gram]))
    return math.sqrt(((grams[0] - grams[1]) ** 2).sum()) / len(student) ** 2


SLOW = {
    "fitnet": slow_fitnet,
    "attention_transfer": slow_attention_transfer,
    "vid": slow_vid,
    "vkd": slow_vkd,
    "spkd": slow_spkd,
}


def test_every_method_has_an_oracle():
    assert list(SLOW) == LAYER_BASELINES


@pytest.mark.parametrize("name", LAYER_BASELINES)
def test_each_loss_is_what_the_slow_loop_gives(name):
    loss, student, teacher = make(name), features(0), features(1, width=6)
    expected = SLOW[name](loss, student.values.numpy(), teacher.values.numpy())
    assert loss_of(loss, student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_vkd_averages_the_grid_alone():
    loss, student, teacher = make("vkd"), features(0, prefix=2), features(1, width=6, prefix=1)
    expected = slow_vkd(loss, student.values[:, :, 2:].numpy(), teacher.values[:, :, 1:].numpy())
    assert loss_of(loss, student, teacher).item() == pytest.approx(expected, rel=1e-12)


GEOMETRIES = {
    "larger student map": ({"grid": (4, 6)}, {"grid": (2, 3)}),
    "larger teacher map": ({"grid": (2, 2)}, {"grid": (5, 4)}),
    "tokens with class tokens": ({"prefix": 1}, {"prefix": 1}),
    "map student, token teacher": ({"grid": (6, 6)}, {"prefix": 2}),
    "token student, map teacher": ({"prefix": 1}, {"grid": (6, 6)}),
}


@pytest.mark.parametrize(("student_form", "teacher_form"), GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("widths", [(6, 4), (3, 5), (4, 4)])
@pytest.mark.parametrize("name", LAYER_BASELINES)
def test_every_loss_takes_every_geometry_and_width(name, widths, student_form, teacher_form):
    loss = make(name, *widths)
    student, teacher = features(0, width=widths[1], **student_form), features(1, width=widths[0], **teacher_form)
    student.values.requires_grad_()
    value = loss_of(loss, student, teacher)
    value.backward()
    assert value.shape == ()
    assert value > 0 or name == "vid"
    assert student.values.grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())


def test_the_larger_map_is_pooled_to_the_smaller():
    loss, student, teacher = make("fitnet"), features(0, grid=(4, 6)), features(1, width=6, grid=(2, 3))
    maps = student.values.unflatten(2, (2, 2, 3, 2)).mean(dim=(3, 5)).flatten(2)
    assert torch.allclose(loss_of(loss, student, teacher), loss_of(loss, Features(maps, (2, 3)), teacher))


@pytest.mark.parametrize("name", LAYER_BASELINES)
def test_gradients_are_the_finite_differences(name):
    loss, student = make(name, 5, 3), features(0, batch=3, width=3, grid=(2, 2))
    target = loss.make_target(features(1, batch=3, width=5, grid=(2, 2)))
    names = [name for name, _ in loss.named_parameters()]

    def value(values, *parameters):
        arguments = student.with_values(values), target
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), arguments)

    inputs = [student.values, *loss.parameters()]
    assert torch.autograd.gradcheck(value, [tensor.detach().clone().requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("name", LAYER_BASELINES)
def test_the_target_has_no_gradient_and_autocast_changes_nothing(name):
    loss, student, teacher = make(name).float(), features(0), features(1, width=6)
    student = student.with_values(student.values.float())
    teacher = teacher.with_values(teacher.values.float().requires_grad_())
    target = loss.make_target(teacher)
    assert not target.values.requires_grad
    before = target.values.clone()
    with torch.no_grad():
        kept = teacher.values.clone()
        teacher.values.zero_()  # as a layer with inplace=True does
        assert torch.equal(target.values, before)
        teacher.values.copy_(kept)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.make_target(teacher).values, target.values)
        assert torch.equal(loss(student, target), loss(student, target))
        halved = loss(student.with_values(student.values.bfloat16()), target)
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(loss(student, target).item(), rel=0.02, abs=1e-3)


@pytest.mark.parametrize("name", LAYER_BASELINES)
def test_what_each_method_learns(name):
    assert bool(list(make(name).parameters())) == (name in LEARNS)


@pytest.mark.parametrize("name", LAYER_BASELINES)
def test_training_lowers_every_loss(name):
    loss, teacher = make(name), features(1, width=6)
    values = nn.Parameter(features(0).values)
    optimiser = torch.optim.Adam([values, *loss.parameters()], lr=0.03)
    target, first = loss.make_target(teacher), None
    for _ in range(100):
        value = loss(features(0).with_values(values), target)
        first = value.item() if first is None else first
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert value.item() < first - 0.5 * abs(first)


@pytest.mark.parametrize("widths", [(6, 4), (4, 6), (5, 5)])
def test_the_projection_of_vkd_stays_orthogonal(widths):
    loss = make("vkd", *widths).float()
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.1)
    student, teacher = features(0, width=widths[1]), features(1, width=widths[0])
    start = loss.projection.matrix.detach().clone()
    for _ in range(50):
        optimiser.zero_grad()
        loss_of(loss, student.with_values(student.values.float()), teacher).backward()
        optimiser.step()
    weight = loss.projection.matrix.detach()
    product = weight.T @ weight if widths[0] >= widths[1] else weight @ weight.T
    assert (weight - start).abs().max() > 0.05
    torch.testing.assert_close(product, torch.eye(min(widths)), rtol=0, atol=1e-5)


def test_targets_that_differ_are_not_taken_for_each_other():
    """Kept targets are found by identity: the features themselves, or VkD's averages."""
    assert {name for name in LAYER_BASELINES if make(name).identity() != make("fitnet").identity()} == {"vkd"}


def test_vid_starts_with_the_published_variance():
    torch.testing.assert_close(make("vid").variance, torch.full((6,), 5.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_similarities_that_are_equal_already_have_a_gradient():
    loss, student = SimilarityPreserving(), features(0)
    student.values.requires_grad_()
    value = loss_of(loss, student, student.with_values(3 * student.values.detach()))
    value.backward()
    assert value.item() < 1e-12
    assert student.values.grad.isfinite().all()
