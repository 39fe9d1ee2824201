"""The learning rate of a user who gives none."""

from __future__ import annotations

from torch import nn

from subdistill_hf.methods import METHODS

NEW_WITH_LAYERS = 1.6e-2
NEW = 4e-3
OTHERS = 1e-3


def suited_learning_rate(student: nn.Module, new: bool, method: str) -> float:
    """The initial learning rate of AdamW that suits a student and what it learns from.

    Batch norms let a new network take large steps, and in a short training it needs them; the larger ones where the
    teacher's layers guide it. Both rates are what tuning chose, in `benchmarks/results/glyphs` and `glyphs_sizes`. A
    pretrained network would forget, and one without batch norms, such as a transformer, may diverge: they get the
    paper's 1e-3.

    Args:
        student: the network.
        new: whether its weights are random.
        method: a key of `METHODS`.
    """
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    if not (new and normed):
        return OTHERS
    return NEW if METHODS[method].layer_weight is None else NEW_WITH_LAYERS
