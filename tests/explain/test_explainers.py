"""Each explainer against what it computes by definition, in float64."""

import itertools

import pytest
import torch

from subdistill_hf.config.explainers import EXPLAINERS, ExplainerEntry
from subdistill_hf.explain import explainers
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.explainers import Inputs, make_explainer, patches_of


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(evidence, images=3, side=2, baseline=None):
    pixels, targets = draw(images, 3, side, side), torch.zeros(images, dtype=torch.int64)
    baseline = torch.full_like(pixels, 0.25) if baseline is None else baseline
    return Inputs(pixels, baseline, targets, evidence(pixels, targets) - evidence(baseline, targets))


def linear(pixels, targets):
    return (pixels * draw(3, 2, 2, seed=1)).sum(dim=(1, 2, 3))


def quadratic(pixels, targets):
    flat, matrix = pixels.flatten(1), draw(12, 12, seed=2)
    return torch.einsum("bi,ij,bj->b", flat, matrix + matrix.T, flat)


def with_a_jump(pixels, targets):
    """Nearly 0 at the baseline alone, as behind a layer norm of a grey image."""
    direction = pixels.sum(dim=1).flatten(1)
    return (direction / (direction.square().mean(dim=1, keepdim=True) + 1e-10).sqrt()) @ draw(4, seed=3)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_of_a_linear_function_all_give_weight_times_difference(method):
    inputs = inputs_of(linear)
    found = make_explainer(method, tolerance=1e-9).explain(linear, inputs)
    expected = (draw(3, 2, 2, seed=1) * (inputs.pixels - inputs.baseline)).sum(dim=1)
    assert torch.allclose(found.values.double(), expected, atol=1e-6)


def test_gradient_times_input_of_a_quadratic_function():
    inputs = inputs_of(quadratic)
    matrix = draw(12, 12, seed=2)
    gradient = 2 * inputs.pixels.flatten(1) @ (matrix + matrix.T)
    expected = (gradient.reshape(-1, 3, 2, 2) * (inputs.pixels - inputs.baseline)).sum(dim=1)
    found = make_explainer("gradient_x_input").explain(quadratic, inputs)
    assert torch.allclose(found.values, expected)
    assert found.evaluations == 1


def test_integrated_gradients_of_a_quadratic_function_have_a_closed_form():
    """The gradient is linear on the way, so its mean is that in the middle."""
    inputs = inputs_of(quadratic)
    matrix, middle = draw(12, 12, seed=2), ((inputs.pixels + inputs.baseline) / 2).flatten(1)
    gradient = (2 * middle @ (matrix + matrix.T)).reshape(-1, 3, 2, 2)
    expected = (gradient * (inputs.pixels - inputs.baseline)).sum(dim=1)
    found = make_explainer("integrated_gradients", tolerance=1e-3).explain(quadratic, inputs)
    assert torch.allclose(found.values, expected, atol=1e-5)
    assert found.evaluations == explainers.FIRST_SEGMENTS * explainers.NODES


def test_integrated_gradients_take_more_steps_where_the_gradient_jumps():
    inputs = inputs_of(with_a_jump, baseline=torch.zeros(3, 3, 2, 2, dtype=torch.float64))
    found = make_explainer("integrated_gradients", tolerance=1e-2).explain(with_a_jump, inputs)
    errors = (found.values.sum(dim=(1, 2)) - inputs.differences).abs()
    assert float(errors.max()) <= 1e-2
    assert found.evaluations < 400
    evenly = [(share + 0.5) / 400 for share in range(400)]  # as many, evenly spread
    total = 0
    for share in evenly:
        at = (share * inputs.pixels).requires_grad_()
        (gradient,) = torch.autograd.grad(with_a_jump(at, inputs.targets).sum(), at)
        total = total + gradient * inputs.pixels / len(evenly)
    assert float((total.sum(dim=(1, 2, 3)) - inputs.differences).abs().max()) > 0.1


def test_integrated_gradients_of_images_one_by_one_are_the_same(monkeypatch):
    inputs = inputs_of(with_a_jump, baseline=torch.zeros(3, 3, 2, 2, dtype=torch.float64))
    together = make_explainer("integrated_gradients", tolerance=1e-2).explain(with_a_jump, inputs)
    monkeypatch.setattr(explainers, "MOST_KEPT", 1)
    alone = make_explainer("integrated_gradients", tolerance=1e-2, batch_size=4).explain(with_a_jump, inputs)
    assert torch.allclose(together.values, alone.values)
    assert together.evaluations == alone.evaluations


def test_shapley_values_over_all_permutations_are_those_of_the_definition(monkeypatch):
    from captum.attr._core import shapley_value

    def every_order(features, samples):
        return list(itertools.permutations(range(features)))

    monkeypatch.setattr(shapley_value, "_perm_generator", every_order)
    inputs = inputs_of(quadratic)
    found = make_explainer("shapley").explain(quadratic, inputs)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        present = torch.zeros(4, dtype=torch.float64)
        for player in order:
            before = inputs.baseline + present.reshape(2, 2) * (inputs.pixels - inputs.baseline)
            present[player] = 1
            after = inputs.baseline + present.reshape(2, 2) * (inputs.pixels - inputs.baseline)
            expected[:, player] += (quadratic(after, None) - quadratic(before, None)) / 24
    assert torch.allclose(found.values.double().flatten(1), expected, rtol=1e-5, atol=1e-4)


def test_sampled_shapley_values_add_up_and_follow_their_seed():
    inputs = inputs_of(quadratic)
    found, again = (make_explainer("shapley", seed=1).explain(quadratic, inputs) for _ in range(2))
    first, same = found.values, again.values
    assert found.evaluations == 25 * 4 + 1  # each order takes in one patch after the other
    state = torch.get_rng_state()
    other = make_explainer("shapley", seed=2, batch_size=3).explain(quadratic, inputs).values
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    for values in (first, other):
        assert torch.allclose(values.double().sum(dim=(1, 2)), inputs.differences, rtol=1e-5, atol=1e-4)


def test_a_patch_shares_its_value_alike():
    inputs = inputs_of(lambda pixels, targets: pixels.sum(dim=(1, 2, 3)), side=16)
    found = make_explainer("shapley").explain(lambda pixels, targets: pixels.sum(dim=(1, 2, 3)), inputs)
    patches = found.values.reshape(3, 8, 2, 8, 2)
    assert torch.allclose(patches, patches.mean(dim=(2, 4), keepdim=True).expand_as(patches))
    sums = (inputs.pixels - inputs.baseline).sum(dim=1).reshape(3, 8, 2, 8, 2).sum(dim=(2, 4))
    assert torch.allclose(patches.sum(dim=(2, 4)).double(), sums, atol=1e-4)


def test_patches_cover_images_of_any_size():
    assert patches_of(4, 4, 2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert patches_of(2, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    uneven = patches_of(30, 20)
    assert sorted(set(uneven.flatten().tolist())) == list(range(64))


def test_an_unknown_method_is_refused_and_one_of_the_users_own_is_taken(monkeypatch):
    with pytest.raises(ExplainError, match="unknown method 'lrp': expected one of gradient_x_input, integrated_grad"):
        make_explainer("lrp")
    monkeypatch.setitem(EXPLAINERS, "own", ExplainerEntry("own", explainers.GradientTimesInput, complete=False))
    assert isinstance(make_explainer("own"), explainers.GradientTimesInput)
