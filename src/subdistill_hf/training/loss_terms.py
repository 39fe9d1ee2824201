"""The weighted parts of the loss of a batch (docs/method.md, "The total loss")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.errors import DistillationError
from subdistill_hf.losses.building import logit_loss


def evaluation_loss(logits: Tensor, labels: Tensor | None) -> Tensor:
    """The cross entropy of the student's logits `(B, C)` with the labels, 0 where there are none."""
    return logits.new_zeros(()) if labels is None else F.cross_entropy(logits.float(), labels)


def weighted_terms(
    args: SubDistillConfig,
    pairs: Sequence[LayerPair],
    outputs: Mapping[str, Any],
    teacher_logits: Tensor | None,
    labels: Tensor | None,
) -> dict[str, Tensor]:
    """The weighted parts of the loss, by name: `task`, `kd`, and `layer/NAME` for each teacher layer.

    Args:
        args: the method, its weights, and what else its losses take.
        pairs: the paired layers.
        outputs: `logits` `(B, C)` of the student and `layer_losses` `(L,)`, one per pair.
        teacher_logits: the teacher's subtask logits `(B, C)`; `None` without a teacher.
        labels: class of each image `(B,)`, or shares of the classes `(B, C)`, if the batch has labels.

    Raises:
        DistillationError: when a part needs labels, and the batch has none.
    """
    weights, logits = args.weights(), outputs["logits"]
    terms: dict[str, Tensor] = {}
    if weights["task"]:
        if labels is None:
            raise DistillationError("the cross entropy needs `labels` in the batch")
        smoothing = args.label_smoothing_factor
        terms["task"] = weights["task"] * F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    if weights["kd"] and teacher_logits is not None:
        terms["kd"] = weights["kd"] * logit_loss(args, logits, teacher_logits, labels)
    layer_losses = weights["layer"] * outputs["layer_losses"]
    for pair, loss in zip(pairs, layer_losses.unbind(), strict=True):
        terms[f"layer/{pair.teacher.name}"] = loss
    return terms
