"""The module that is trained: the student and the losses of its layers, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from subdistill_hf.activations import Features, height_and_width, record, to_features
from subdistill_hf.adapters import base_of, frozen_batch_norms
from subdistill_hf.layer_loss import LayerLoss, without_autocast
from subdistill_hf.layers import LayerPair
from subdistill_hf.losses import SubspaceAlignment, companions, compare_together


def logits_of(output: Any) -> Tensor:
    """The logits of a classifier's output: its `logits`, the tensor itself, or a tuple's first element.

    Raises:
        TypeError: when there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected the model to return logits (B, C), or an output with `logits`, found {type(output).__name__}"
        )
    return logits


class StudentWithAlignments(nn.Module):
    """The student and the losses of its layers, so that optimiser, clipping, checkpoints and DDP see both.

    Args:
        student: the student, with a PEFT adapter or without; layers are named as in the network under it.
        pairs: layer pairs, in the order of `alignments`.
        alignments: one loss per pair; none for methods without a layer loss.
    """

    def __init__(self, student: nn.Module, pairs: Sequence[LayerPair], alignments: Sequence[LayerLoss]) -> None:
        super().__init__()
        self.student = student
        self.alignments = nn.ModuleList(alignments)
        self.pairs = tuple(pairs)

    def forward(self, targets: Mapping[str, Features], **inputs: Tensor) -> dict[str, Any]:
        """Run the student and compare its layers with the teacher's targets.

        Args:
            targets: teacher layer name to what its loss compares with, for every pair.
            inputs: what the student takes.

        Returns:
            `logits` `(B, C)`, and `layer_losses` `(L,)`: one for each pair, in order.
        """
        layers = [pair.student for pair in self.pairs]
        copied = [layer.name for layer in layers if layer.modified_in_place]
        with record(base_of(self.student), [layer.name for layer in layers], copy=copied) as recorder:
            logits = logits_of(self.student(**inputs))
        recorder.check()
        image_size = height_and_width(inputs["pixel_values"])
        students = [
            to_features(recorder.outputs[layer.name], layer.name, image_size, layer.channels_last) for layer in layers
        ]
        with without_autocast(logits.device):
            losses = self._layer_losses(students, [targets[pair.teacher.name] for pair in self.pairs])
        return {"logits": logits, "layer_losses": losses}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its products are small: compiling takes, saves nothing
    def _layer_losses(self, students: Sequence[Features], targets: Sequence[Features]) -> Tensor:
        losses: dict[int, Tensor] = {}
        for group in companions(list(self.alignments)):
            chosen: Any = [self.alignments[index] for index in group]
            costs = compare_together(chosen, [students[index] for index in group], [targets[index] for index in group])
            if len(group) == len(students):
                return costs
            losses |= zip(group, costs.unbind(), strict=True)
        for index, alignment in enumerate(self.alignments):
            if index not in losses:
                losses[index] = alignment(students[index], targets[index])
        if not losses:
            return torch.zeros(0)
        return torch.stack([losses[index] for index in range(len(students))])

    def train(self, mode: bool = True) -> StudentWithAlignments:
        """Training mode; batch norms that an adapter does not save keep the statistics of the model under it."""
        super().train(mode)
        if isinstance(self.student, PeftModel):
            for module in frozen_batch_norms(self.student):
                module.eval()
        return self

    @torch.no_grad()
    def orthogonality_error(self) -> float:
        """The largest deviation of any V Vᵀ from the identity (0 without subspace alignments)."""
        errors = [0.0]
        for alignment in self.alignments:
            if isinstance(alignment, SubspaceAlignment):
                matrix = alignment.rotation.matrix
                matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
                identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
                errors.append(float((matrix @ matrix.T - identity).abs().max()))
        return max(errors)
