"""The learning rate of a user who gives none."""

from __future__ import annotations

from torch import nn

NEW_WITH_LAYERS = 1.6e-2
NEW_WITHOUT_LAYERS = 4e-3
CAREFUL = 1e-3


def suited_learning_rate(student: nn.Module, new: bool, layers: bool) -> float:
    """The initial learning rate of AdamW that suits a student and what it learns from.

    Batch norms let a new network take large steps, and in a short training it needs them; the larger ones where the
    teacher's layers guide it. The first rate is what tuning chose for SubDistill in `benchmarks/results/glyphs`, the
    second what it chose for labels alone and for logit distillation in `benchmarks/results/glyphs_sizes`. A pretrained
    network would forget, and one without batch norms, such as a transformer, may diverge: they get the paper's 1e-3.

    Args:
        student: the network.
        new: whether its weights are random.
        layers: whether it learns from the teacher's layers too.
    """
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    if not (new and normed):
        return CAREFUL
    return NEW_WITH_LAYERS if layers else NEW_WITHOUT_LAYERS
