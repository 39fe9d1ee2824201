"""The student and its layer losses as one module."""

import copy
import itertools

import pytest
import torch
from torch import nn

from subdistill_hf.core.activations import Features, LayerError
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.losses.rotations import NARROW, CayleyMatrices, Rotation
from subdistill_hf.losses.subspace import CENTRINGS, Centre, SubspaceAlignment, SubspaceBatch, batched_layers
from subdistill_hf.training.module import StudentWithAlignments


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, pixel_values):
        return self.second(self.first(pixel_values)).mean(dim=(2, 3))


@pytest.fixture
def module():
    torch.manual_seed(0)
    widths = {"first": 6, "second": 4}
    pairs = [
        LayerPair(LayerShape(name, 8, (4, 4), 0), LayerShape(name, width, (4, 4), 0)) for name, width in widths.items()
    ]
    alignments = [
        SubspaceAlignment(Subspace.fit(Moments.of(torch.randn(9, 8, 16)), width, "pca"), width, "batch_norm")
        for width in widths.values()
    ]
    module = StudentWithAlignments(Student(), pairs, alignments)
    for alignment in alignments:
        alignment.rotation.free.data.normal_()
    return module


def losses_and_gradients(module, pixels, targets):
    costs = module(targets, pixel_values=pixels)["layer_losses"]
    free = [alignment.rotation.free for alignment in module.alignments]
    return [costs, *torch.autograd.grad(costs.sum(), free)]


def test_rotations_are_as_precise_under_autocast(module, monkeypatch):
    pixels = torch.randn(5, 3, 4, 4)
    targets = {name: Features(torch.randn(5, width, 16), (4, 4)) for name, width in {"first": 6, "second": 4}.items()}
    matrices = []

    make = CayleyMatrices.__call__

    def watched(self, rotations):
        matrices.append(make(self, rotations))
        return matrices[-1]

    monkeypatch.setattr(CayleyMatrices, "__call__", watched)
    expected = losses_and_gradients(module, pixels, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses_and_gradients(module, pixels, targets)
    assert torch.equal(*matrices)
    for first, second in zip(expected, found, strict=True):
        torch.testing.assert_close(second, first, rtol=0.05, atol=0.05)  # the student's features are bfloat16


class Widths(nn.Module):
    """Layers of several widths."""

    def __init__(self, widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in itertools.pairwise([3, *widths]))

    def forward(self, pixel_values):
        for layer in self.layers:
            pixel_values = layer(pixel_values)
        return pixel_values.mean(dim=(2, 3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("centring", CENTRINGS)
def test_batched_layers_cost_what_each_costs_alone(centring, training):
    """Two narrow layers, one with room for more than the teacher has, one wide one, one with a free map, a third."""
    torch.manual_seed(0)
    widths, dimensions = [6, 9, NARROW + 1, 5, 7], [6, 8, NARROW + 1, 5, 7]
    names = [f"layers.{index}" for index in range(len(widths))]
    teacher = NARROW + 3
    subspaces = [
        Subspace.fit(Moments.of(torch.randn(9, 8 if width == 9 else teacher, 16)), width, "pca") for width in widths
    ]
    alignments = [
        SubspaceAlignment(subspace, width, centring, "linear" if width == 5 else "orthogonal").double()
        for subspace, width in zip(subspaces, widths, strict=True)
    ]
    for alignment in alignments:
        alignment.rotation.free.data.normal_()
        alignment.centre.running_mean.normal_()
    pairs = [
        LayerPair(LayerShape(name, teacher, (4, 4), 0), LayerShape(name, width, (4, 4), 0))
        for name, width in zip(names, widths, strict=True)
    ]
    module = StudentWithAlignments(Widths(widths).double(), pairs, alignments).train(training)
    assert batched_layers(module.alignments) == [[0, 4]]
    pixels = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    targets = {
        name: Features(torch.randn(5, size, 16, dtype=torch.float64), (4, 4))
        for name, size in zip(names, dimensions, strict=True)
    }
    alone = copy.deepcopy(module)
    called = []
    for alignment in alone.alignments:  # one with a hook is called by itself
        alignment.register_forward_hook(lambda *given: called.append(given[0]))
    assert batched_layers(alone.alignments) == []
    results = []
    for each in (module, alone):
        costs = each(targets, pixel_values=pixels)["layer_losses"]
        gradients = torch.autograd.grad((costs * torch.arange(1, 6)).sum(), list(each.parameters()))
        results.append([costs, *gradients, *[alignment.centre.running_mean for alignment in each.alignments]])
    assert called == list(alone.alignments)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_batched_rotations_in_closed_form_are_updated_as_each_alone(centring):
    torch.manual_seed(0)
    widths = [6, 5, 7, 4]
    subspaces = [Subspace.fit(Moments.of(torch.randn(9, 8, 16)), width, "pca") for width in widths]
    rotations = ["procrustes", "procrustes", "orthogonal", "procrustes"]
    together = [
        SubspaceAlignment(subspace, width, centring, rotation).double()
        for subspace, width, rotation in zip(subspaces, widths, rotations, strict=True)
    ]
    assert batched_layers(together) == [[0, 1, 3]]
    alone, batch = copy.deepcopy(together), SubspaceBatch([together[i] for i in (0, 1, 3)])
    for _ in range(3):
        students = [torch.randn(5, width, 16, dtype=torch.float64).requires_grad_() for width in widths]
        features = [Features(values, (4, 4)) for values in students]
        targets = [Features(torch.randn(5, width, 16, dtype=torch.float64), (4, 4)) for width in widths]
        chosen = [0, 1, 3]
        assert batch.is_possible()
        found = batch(*([given[i] for i in chosen] for given in (features, targets)))
        expected = torch.stack([alone[i](features[i], targets[i]) for i in chosen])
        results = []
        for costs, alignments in ((found, together), (expected, alone)):
            weighted = (costs * torch.arange(1, 4)).sum()
            gradients = torch.autograd.grad(weighted, [students[i] for i in chosen])
            results.append([costs, *gradients, *[alignments[i].rotation.cross_moment for i in chosen]])
        for first, second in zip(*results, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
    kept = together[0].rotation.cross_moment.clone()
    together[0].rotation.eval()  # is updated no more, while its centre is
    assert not batch.is_possible()
    together[0](features[0], targets[0])
    assert torch.equal(together[0].rotation.cross_moment, kept)


def example(module):
    torch.manual_seed(1)
    targets = {name: Features(torch.randn(5, width, 16), (4, 4)) for name, width in {"first": 6, "second": 4}.items()}
    return targets, torch.randn(5, 3, 4, 4)


class Cut(Student):
    """Gives the values of its first layer without their gradient, always or in training."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, pixel_values):
        if self.how == "reentrant" and self.training:
            inner = torch.utils.checkpoint.checkpoint
            return inner(super().forward, pixel_values.requires_grad_(), use_reentrant=True)
        with torch.set_grad_enabled(self.how == "training" and not self.training):
            values = self.first(pixel_values)
        return self.second(values).mean(dim=(2, 3))


@pytest.mark.parametrize("how", ["always", "training", "reentrant"])
def test_a_layer_that_gives_no_gradient_is_refused(module, how):
    targets, pixels = example(module)
    module.student = Cut(how)
    with torch.no_grad():
        module(targets, pixel_values=pixels)
    with pytest.raises(LayerError, match=r"the student's first.* without a gradient in training"):
        module(targets, pixel_values=pixels)
    module.eval()(targets, pixel_values=pixels)


def test_a_layer_that_is_changed_in_place_in_training_alone_is_refused_with_a_remedy(module):
    class Changing(Student):
        def forward(self, pixel_values):
            values = self.first(pixel_values)
            return self.second(values.relu_() if self.training else values.relu()).mean(dim=(2, 3))

    targets, pixels = example(module)
    module.student = Changing()
    with pytest.raises(LayerError, match=r"output of first is changed in place .*: do that in training as in evaluat"):
        module(targets, pixel_values=pixels)


def test_a_layer_of_frozen_weights_gives_no_gradient_and_is_taken(module):
    targets, pixels = example(module)
    module.student.first.requires_grad_(False)
    for _ in range(2):
        module(targets, pixel_values=pixels)["layer_losses"].sum().backward()
    assert module.student.second.weight.grad is not None
    module.student = Cut("training")
    module.student.first.bias.requires_grad_(False)
    module._frozen.clear()
    with pytest.raises(LayerError, match="the student's first gives values without a gradient"):
        module(targets, pixel_values=pixels)


def test_an_alignment_in_evaluation_mode_is_evaluated(module):
    targets, pixels = example(module)
    trained = module(targets, pixel_values=pixels)["layer_losses"]
    module.alignments[1].eval()
    before = module.alignments[1].centre.running_mean.clone()
    found = module(targets, pixel_values=pixels)["layer_losses"]
    torch.testing.assert_close(found[0], trained[0])
    assert found[1] != trained[1]
    assert torch.equal(module.alignments[1].centre.running_mean, before)


@pytest.mark.parametrize("changed", ["subclass", "method", "rotation", "centre"])
def test_what_the_user_changed_is_what_is_computed(module, changed):
    targets, pixels = example(module)
    alignment = module.alignments[1]
    usual = module(targets, pixel_values=pixels)["layer_losses"]

    class Thousandfold(SubspaceAlignment):
        def loss(self, student, target):
            return 1000 * super().loss(student, target)

    class Still(Rotation):
        matrix = property(lambda self: torch.zeros(4, 4))

    class Doubled(Centre):
        def forward(self, *given):
            return 2 * super().forward(*given)

    if changed == "subclass":
        alignment.__class__ = Thousandfold
    elif changed == "method":
        alignment.loss = lambda student, target: 1000 * SubspaceAlignment.loss(alignment, student, target)
    elif changed == "rotation":
        alignment.rotation.__class__ = Still
    else:
        alignment.centre.__class__ = Doubled
    module.replay("off")  # as every training begins
    found = module(targets, pixel_values=pixels)["layer_losses"]
    torch.testing.assert_close(found[0], usual[0])
    if changed != "rotation":
        torch.testing.assert_close(found[1], usual[1] * (2 if changed == "centre" else 1000))
    assert abs(found[1] - usual[1]) > 0.1


def test_half_precision_features_are_pooled_in_float32(module):
    """As each alignment does by itself."""
    torch.manual_seed(2)
    students = [Features(torch.randn(5, width, 64, dtype=torch.bfloat16), (8, 8)) for width in (6, 4)]
    targets = [Features(torch.randn(5, width, 16, dtype=torch.float16), (4, 4)) for width in (6, 4)]
    together = SubspaceBatch(list(module.alignments))(students, targets)
    alone = [each(student, target) for each, student, target in zip(module.alignments, students, targets, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-6, atol=0)
