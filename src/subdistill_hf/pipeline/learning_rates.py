"""The learning rate of a user who gives none."""

from __future__ import annotations

from typing import Literal

from torch import nn

Start = Literal["new", "pretrained", "adapter"]

NEW_WITH_LAYERS = 1.6e-2
NEW_WITHOUT_LAYERS = 4e-3
PRETRAINED_WITH_LAYERS = 4e-3
CAREFUL = 1e-3


def suited_learning_rate(student: nn.Module, start: Start, layers: bool) -> float:
    """The initial learning rate of AdamW that suits a student and what it learns from.

    Batch norms let a network take large steps, and in a short training it needs them; the larger ones where the
    teacher's layers guide it. For a new network the first rate is what tuning chose for SubDistill in
    `benchmarks/results/glyphs`, the second what it chose for labels alone and for logit distillation in
    `benchmarks/results/glyphs_sizes`. For a small pretrained network tuning chose the same two
    (`benchmarks/results/glyphs_pretrained`); since one that has seen millions of photographs has more to forget, which
    was not measured, a pretrained network gets a quarter of them. One without batch norms, such as a transformer, may
    diverge, and so may adapters: they get the paper's 1e-3.

    Args:
        student: the network.
        start: whether its weights are random, pretrained, or pretrained and stay, beside an adapter.
        layers: whether it learns from the teacher's layers too.
    """
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    if not normed or start == "adapter":
        return CAREFUL
    if start == "pretrained":
        return PRETRAINED_WITH_LAYERS if layers else CAREFUL
    return NEW_WITH_LAYERS if layers else NEW_WITHOUT_LAYERS
