"""The module that is trained: the student and the losses of its layers, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from subdistill_hf.acceleration.cuda_graphs import GraphsOf, Replayed
from subdistill_hf.core.activations import (
    Features,
    height_and_width,
    logits_of,
    pack,
    to_features,
    unpack,
    without_autocast,
)
from subdistill_hf.core.hooks import record
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.losses.subspace import SubspaceAlignment, companions, compare_together, is_replayable
from subdistill_hf.models.adapters import base_of, frozen_batch_norms


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
        self._replayed: Replayed | None = None
        self._replayed_losses: Replayed | None = None

    def replay(self, what: GraphsOf) -> None:
        """Choose what of `forward` is replayed as a CUDA graph while it is trained, see `cuda_graphs.Replayed`.

        Nothing is where a layer's loss is not replayable, see `losses.is_replayable`.

        Args:
            what: `"all"`, the layers' `"losses"`, or nothing (`"off"`), which gives the memory back.
        """
        self._replayed = self._replayed_losses = None
        if not all(is_replayable(alignment) for alignment in self.alignments):
            return
        if what == "all":
            self._replayed = Replayed(self._of_tensors, self, "the student's training step")
        elif what == "losses" and self.pairs:
            self._replayed_losses = Replayed(self._losses_of_tensors, self.alignments, "the loss of the layers")

    def forward(self, targets: Mapping[str, Features], **inputs: Tensor) -> dict[str, Any]:
        """Run the student and compare its layers with the teacher's targets.

        Args:
            targets: teacher layer name to what its loss compares with, for every pair.
            inputs: what the student takes.

        Returns:
            `logits` `(B, C)`, and `layer_losses` `(L,)`: one for each pair, in order.
        """
        if self._replayed is not None and self.training and all(isinstance(each, Tensor) for each in inputs.values()):
            tensors, geometries = unpack([targets[pair.teacher.name] for pair in self.pairs])
            logits, losses = self._replayed([*inputs.values(), *tensors], (tuple(inputs), geometries))
            return {"logits": logits, "layer_losses": losses}
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

    def _of_tensors(self, tensors: Sequence[Tensor], given: Any) -> tuple[Tensor, ...]:
        """What is replayed of `forward`."""
        names, geometries = given
        targets = pack(tensors[len(names) :], geometries)
        inputs = dict(zip(names, tensors[: len(names)], strict=True))
        replayed, self._replayed = self._replayed, None
        try:
            outputs = StudentWithAlignments.forward(  # not what accelerate wraps around it
                self, {pair.teacher.name: target for pair, target in zip(self.pairs, targets, strict=True)}, **inputs
            )
        finally:
            self._replayed = replayed
        return outputs["logits"], outputs["layer_losses"]

    def _losses_of_tensors(self, tensors: Sequence[Tensor], geometries: Any) -> tuple[Tensor, ...]:
        features = pack(tensors, geometries)
        count = len(self.pairs)
        return (self._costs(features[:count], features[count:]),)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its products are small: compiling takes, saves nothing
    def _layer_losses(self, students: Sequence[Features], targets: Sequence[Features]) -> Tensor:
        if self._replayed_losses is None or not self.training:
            return self._costs(students, targets)
        tensors, geometries = unpack([*students, *targets])
        return self._replayed_losses(tensors, geometries)[0]

    def _costs(self, students: Sequence[Features], targets: Sequence[Features]) -> Tensor:
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
            return torch.zeros(0, device=next(self.student.parameters()).device)
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
