"""The learning rate of a user who gives none."""

from __future__ import annotations

from torch import nn

NEW_WITH_BATCH_NORM = 1.6e-2
OTHERS = 1e-3


def suited_learning_rate(student: nn.Module, new: bool) -> float:
    """The initial learning rate of AdamW that suits a student.

    Batch norms let a new network take large steps, and in a short training it needs them: the rate is what tuning
    chose in `benchmarks/results/glyphs`. A pretrained one would forget, and one without batch norms, such as a
    transformer, may diverge: they get the paper's 1e-3.

    Args:
        student: the network.
        new: whether its weights are random.
    """
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    return NEW_WITH_BATCH_NORM if new and normed else OTHERS
