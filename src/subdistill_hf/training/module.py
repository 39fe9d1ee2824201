"""The module that is trained: the student and the losses of its layers, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from subdistill_hf.acceleration.cuda_graphs import GraphsOf, Replayed
from subdistill_hf.core.activations import (
    Features,
    LayerError,
    height_and_width,
    logits_of,
    pack,
    to_features,
    unpack,
    without_autocast,
)
from subdistill_hf.core.hooks import layers_before_trained_weights, record
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.losses.base import LayerLoss, is_replayable
from subdistill_hf.losses.rotations import Rotation
from subdistill_hf.losses.subspace import SubspaceAlignment, SubspaceBatch, batched_layers
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
        self._frozen: set[str] = set()  # compared layers that no trained weight reaches
        self.replay("off")

    def replay(self, what: GraphsOf) -> None:
        """Choose what of `forward` is replayed as a CUDA graph in training; the losses are batched as they are now.

        Nothing is replayed where a layer's loss is not replayable, see `losses.base.is_replayable`.

        Args:
            what: `"all"`, the layers' `"losses"`, or nothing (`"off"`), which gives the memory back; see
                `cuda_graphs.Replayed`.
        """
        self._batch_layers()
        self._replayed: Replayed | None = None
        self._replayed_losses: Replayed | None = None
        if not all(map(is_replayable, self.alignments)):
            return
        if what == "all":
            self._replayed = Replayed(self._step_of_tensors, self, "the student's training step")
        elif what == "losses" and self.pairs:
            self._replayed_losses = Replayed(self._losses_of_tensors, self.alignments, "the loss of the layers")

    def _batch_layers(self) -> None:
        """Batch narrow layers of one kind, see `losses.subspace.batched_layers`; no matrices are kept yet."""
        losses = cast(Sequence[SubspaceAlignment], self.alignments)
        self._batches = [
            (group, SubspaceBatch([losses[index] for index in group])) for group in batched_layers(losses)
        ]
        self._cayleys = [batch.cayley for _, batch in self._batches]
        self._cayleys += [each.cayley for each in self.alignments.modules() if isinstance(each, Rotation)]
        self.keep_matrices(False)
        self._forget_matrices()

    def keep_matrices(self, keep: bool) -> None:
        """Say whether the rotations stay as they are after the next batch, since the optimiser does not step yet.

        Then their matrices are made once for the batches of one step. Without a word they are made for each batch.
        """
        self._keeps_matrices = keep
        for cayley in self._cayleys:
            cayley.keep = keep

    def _forget_matrices(self) -> None:
        """Drop the matrices that were kept, unless the next batch sees the same."""
        if not self._keeps_matrices:
            for cayley in self._cayleys:
                cayley.forget()

    # what compiles this module compiles the student inside: the rest is hooks, and products that are small
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(self, targets: Mapping[str, Features], **inputs: Tensor) -> dict[str, Any]:
        """Run the student and compare its layers with the teacher's targets.

        Args:
            targets: teacher layer name to what its loss compares with, for every pair.
            inputs: what the student takes.

        Returns:
            `logits` `(B, C)`, and `layer_losses` `(L,)`: one for each pair, in order.
        """
        compared = [targets[pair.teacher.name] for pair in self.pairs]
        if self._replayed is not None and self.training and all(isinstance(each, Tensor) for each in inputs.values()):
            tensors, geometries = unpack(compared)
            logits, losses = self._replayed([*inputs.values(), *tensors], (tuple(inputs), geometries))
        else:
            logits, losses = self._step(compared, inputs)
        self._forget_matrices()
        return {"logits": logits, "layer_losses": losses}

    def _step(self, targets: Sequence[Features], inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits and layer losses."""
        layers = [pair.student for pair in self.pairs]
        copied = [layer.name for layer in layers if layer.modified_in_place]
        with record(base_of(self.student), [layer.name for layer in layers], copy=copied) as recorder:
            logits = logits_of(self.student(**inputs))
        # one that is changed in evaluation mode, too, was copied
        recorder.check("do that in training as in evaluation mode, or not in place; or compare others (layers=...)")
        image_size = height_and_width(inputs["pixel_values"])
        students = [
            to_features(recorder.outputs[layer.name], layer.name, image_size, layer.channels_last) for layer in layers
        ]
        if self.training and torch.is_grad_enabled():
            names = [layer.name for layer in layers]
            cut = [name for name, each in zip(names, students, strict=True) if not each.values.requires_grad]
            if not self._frozen.issuperset(cut):
                self._refuse_without_gradient(cut, inputs)
        with without_autocast(logits.device):
            return logits, self._layer_losses(students, targets)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the training ends here, or comes by once
    def _refuse_without_gradient(self, layers: Sequence[str], inputs: Mapping[str, Any]) -> None:
        """Refuse layers whose losses could teach the student nothing, unless the weights before them are frozen."""
        found = layers_before_trained_weights(base_of(self.student), layers, lambda: self.student(**inputs))
        self._frozen.update(found)
        if cut := [name for name in layers if name not in self._frozen]:
            raise LayerError(
                f"the student's {', '.join(cut)} gives values without a gradient in training, so that the loss there "
                "would teach it nothing. Its forward detaches them or runs under torch.no_grad(), or they are inside "
                "a block whose activations are computed again: use_reentrant=False (in gradient_checkpointing_kwargs) "
                "keeps their gradient. Or compare other layers (layers=...)"
            )

    def _step_of_tensors(self, tensors: Sequence[Tensor], static: Any) -> tuple[Tensor, ...]:
        """`_step` as a function of tensors, which can be replayed."""
        names, geometries = static
        targets = pack(tensors[len(names) :], geometries)
        return self._step(targets, dict(zip(names, tensors[: len(names)], strict=True)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its products are small: compiling takes, saves nothing
    def _layer_losses(self, students: Sequence[Features], targets: Sequence[Features]) -> Tensor:
        if self._replayed_losses is None or not self.training:
            return self._loss_of_each(students, targets)
        tensors, geometries = unpack([*students, *targets])
        return self._replayed_losses(tensors, geometries)[0]

    def _losses_of_tensors(self, tensors: Sequence[Tensor], geometries: Any) -> tuple[Tensor, ...]:
        """`_loss_of_each` as a function of tensors, which can be replayed."""
        features = pack(tensors, geometries)
        count = len(self.pairs)
        return (self._loss_of_each(features[:count], features[count:]),)

    def _loss_of_each(self, students: Sequence[Features], targets: Sequence[Features]) -> Tensor:
        """The loss of each layer, `(L,)`, of batched layers in one call."""
        losses: dict[int, Tensor] = {}
        for group, batch in self._batches:
            if not batch.is_possible():
                continue
            found = batch([students[index] for index in group], [targets[index] for index in group])
            if len(group) == len(students):
                return found
            losses |= zip(group, found.unbind(), strict=True)
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
