"""The weighted parts of the loss of a batch (docs/method.md, "The total loss")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subdistill_hf.config.options import NO_CLASS
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.errors import DistillationError
from subdistill_hf.losses.building import logit_loss


def label_loss(logits: Tensor, labels: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """The cross entropy, averaged over the images that have a class; 0 where none has one.

    Args:
        logits: of the student `(B, C)`.
        labels: class of each image `(B,)`, -100 for none, or shares of the classes `(B, C)`, if the batch has labels.
        smoothing: share of the label that all classes get.
    """
    if labels is None:
        return logits.new_zeros(())
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    if labels.is_floating_point():
        return loss
    return torch.where((labels != NO_CLASS).any(), loss, torch.zeros_like(loss))  # of no image torch gives NaN


class LabelledMean:
    """The mean loss over the images of an evaluation that have a class; the Trainer's is over all of them."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, loss: Tensor, labels: Tensor | None) -> None:
        """Add a batch: its `label_loss`, and its labels, if it has some."""
        if labels is None:
            return
        labelled = torch.full_like(loss, len(labels), dtype=torch.float32)
        if not labels.is_floating_point():
            labelled = (labels != NO_CLASS).sum().float()
        sums = torch.stack([loss.detach() * labelled, labelled, torch.full_like(labelled, len(labels))])
        self._sums = sums if self._sums is None else self._sums + sums

    def described(self, name: str, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean over all processes by its name; nothing where the Trainer's is the same, or no image has a class.

        Args:
            name: of the mean.
            reduce: takes sums of this process to means of all.
        """
        if self._sums is None:
            return {}
        total, labelled, images = reduce(self._sums).tolist()
        return {name: total / labelled} if 0 < labelled < images else {}


def stacked(terms: Mapping[str, Tensor]) -> Tensor:
    """The parts of a loss as one tensor `(parts,)`.

    Raises:
        DistillationError: when one is no tensor of a single number.
    """
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.dim():
            found = f"a tensor {tuple(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise DistillationError(f"loss_terms gives {found} as {name!r}: expected a tensor of a single number")
    return torch.stack(list(terms.values()))


def weighted_terms(
    args: SubDistillConfig,
    pairs: Sequence[LayerPair],
    outputs: Mapping[str, Any],
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    progress: float = 0.0,
) -> dict[str, Tensor]:
    """The weighted parts of the loss, by name: `task`, `kd`, and `layer/NAME` for each teacher layer.

    Args:
        args: the method, its weights, and what else its losses take.
        pairs: the paired layers.
        outputs: `logits` `(B, C)` of the student and `layer_losses` `(L,)`, one per pair.
        teacher_logits: the teacher's subtask logits `(B, C)`; `None` without a teacher.
        labels: class of each image `(B,)`, or shares of the classes `(B, C)`, if the batch has labels.
        progress: share of the training that is over.

    Raises:
        DistillationError: when a part needs labels, and the batch has none.
    """
    weights, logits = args.weights(progress), outputs["logits"]
    terms: dict[str, Tensor] = {}
    if weights["task"]:
        if labels is None:
            raise DistillationError("the cross entropy needs `labels` in the batch")
        terms["task"] = weights["task"] * label_loss(logits, labels, args.label_smoothing_factor)
    if weights["kd"] and teacher_logits is not None:
        terms["kd"] = weights["kd"] * logit_loss(args, logits, teacher_logits, labels)
    layer_losses = weights["layer"] * outputs["layer_losses"]
    if not terms and _needs_all_gradients(args):
        layer_losses = layer_losses + logits.float().sum() * 0
    for pair, loss in zip(pairs, layer_losses.unbind(), strict=True):
        terms[f"layer/{pair.teacher.name}"] = loss
    return terms


def _needs_all_gradients(args: SubDistillConfig) -> bool:
    """Whether processes wait for the gradient of each weight, also of a head that no part of the loss reaches.

    They look for weights without one unless the arguments, or recomputed activations, say that there are none.
    """
    if args.ddp_find_unused_parameters is not None:
        return args.world_size > 1 and not args.ddp_find_unused_parameters
    recomputed = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    return args.world_size > 1 and bool(recomputed)
