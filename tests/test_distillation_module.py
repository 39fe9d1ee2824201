"""The student and its layer losses as one module."""

import pytest
import torch
from torch import nn

from subdistill_hf.activations import Features
from subdistill_hf.distillation_module import StudentWithAlignments
from subdistill_hf.layers import LayerPair
from subdistill_hf.losses import SubspaceAlignment
from subdistill_hf.moments import Moments
from subdistill_hf.stages import LayerShape
from subdistill_hf.subspaces import Subspace


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
    losses = module(targets, pixel_values=pixels)["layer_losses"]
    free = [alignment.rotation.free for alignment in module.alignments]
    return [*losses, *torch.autograd.grad(sum(losses), free)]


def test_rotations_are_as_precise_under_autocast(module):
    pixels = torch.randn(5, 3, 4, 4)
    targets = {name: Features(torch.randn(5, width, 16), (4, 4)) for name, width in {"first": 6, "second": 4}.items()}
    matrices = []

    def keep(alignment, inputs, output):
        matrices.append(alignment.rotation.matrix.detach())

    for alignment in module.alignments:
        alignment.register_forward_hook(keep)
    expected = losses_and_gradients(module, pixels, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses_and_gradients(module, pixels, targets)
    for matrix, again in zip(matrices[:2], matrices[2:], strict=True):
        assert torch.equal(matrix, again)
    for first, second in zip(expected, found, strict=True):
        torch.testing.assert_close(second, first, rtol=0.05, atol=0.05)  # the student's features are bfloat16
