"""The teacher's side of a training: subtask logits and the targets of its layers, computed or remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from subdistill_hf.acceleration.cuda_graphs import Replayed
from subdistill_hf.acceleration.memory_format import take_memory_format
from subdistill_hf.core.activations import (
    Features,
    Geometry,
    height_and_width,
    logits_of,
    pack,
    to_features,
    unpack,
)
from subdistill_hf.core.hooks import record
from subdistill_hf.data.collate import LOGITS
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.models.adapters import base_of
from subdistill_hf.models.loading import freeze, weights_digest
from subdistill_hf.teacher.cache import TeacherCache
from subdistill_hf.training.module import StudentWithAlignments

Teach = tuple[Tensor, dict[str, Features]]


class Teaching:
    """A frozen teacher, restricted to the subtask.

    Args:
        teacher: the teacher; it is put in evaluation mode and never trained.
        class_ids: for each output of the student, the teacher's output of the same class; `None` takes all.
        device: where it runs.
        precision: makes the autocast context of its forward passes.
    """

    def __init__(
        self,
        teacher: nn.Module,
        class_ids: Sequence[int] | None,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.teacher = base_of(freeze(teacher)).to(device)
        self.class_ids = None if class_ids is None else torch.tensor(list(class_ids), device=device)
        self.precision = precision
        self.cache: TeacherCache | None = None
        self._digest: str | None = None
        self._replayed: _ReplayedPass | None = None

    @property
    def digest(self) -> str:
        """Digest of the teacher's weights, and of which of its adapters are at work; computed once a training."""
        if self._digest is None:
            self._digest = weights_digest(self.teacher)
            layers = [module for module in self.teacher.modules() if isinstance(module, BaseTunerLayer)]
            if layers:
                at_work = [(layer.active_adapters, layer.disable_adapters) for layer in layers]
                self._digest = hashlib.sha256(f"{self._digest} {at_work}".encode()).hexdigest()
        return self._digest

    def take_memory_format(self, pixel_values: Tensor, half_precision: bool, wanted: bool | None) -> None:
        """Let the weights of the teacher's convolutions lie as `channels_last.take_memory_format` says."""
        take_memory_format(self.teacher, lambda: self.all_logits(pixel_values), self.device, half_precision, wanted)

    def begin(self) -> None:
        """Take the teacher as it is now, frozen, whatever was done to it since."""
        freeze(self.teacher)
        self._digest = None

    @property
    def name(self) -> str:
        """The teacher's Hub id, the last part of its folder's name, or its class."""
        name = getattr(getattr(self.teacher, "config", None), "_name_or_path", None) or type(self.teacher).__name__
        return Path(name).name if Path(name).is_dir() else str(name)

    def all_logits(self, pixel_values: Tensor) -> Tensor:
        """The teacher's own logits `(B, all classes)`."""
        pixel_values = pixel_values.to(next(self.teacher.parameters()).dtype)  # one of half precision takes no others
        with self.precision():
            return logits_of(self.teacher(pixel_values=pixel_values))

    def logits(self, pixel_values: Tensor) -> Tensor:
        """The logits of the subtask's classes, in the student's order, `(B, C)`."""
        logits = self.all_logits(pixel_values)
        return (logits if self.class_ids is None else logits[:, self.class_ids]).float()

    @property
    def device(self) -> torch.device:
        """Where the teacher runs."""
        device: torch.device = next(self.teacher.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its matrix products."""
        with self.precision():
            kind = self.device.type
            autocast = torch.is_autocast_enabled(kind)
            return torch.get_autocast_dtype(kind) if autocast else next(self.teacher.parameters()).dtype

    def teach(self, inputs: Mapping[str, Any], distillation: StudentWithAlignments) -> Teach:
        """Subtask logits, and what the loss of each paired layer compares with.

        Args:
            inputs: `pixel_values` for the teacher, or the targets that a `CachedCollator` added.
            distillation: its pairs and their losses say which layers, and what of them.
        """
        if self.cache is not None and LOGITS in inputs:
            return self.cache.targets(inputs)
        return self.run(inputs["pixel_values"], distillation)

    def replay(self, distillation: StudentWithAlignments | None) -> None:
        """Replay the passes for a module as CUDA graphs, see `cuda_graphs.Replayed`; with `None` no passes.

        What `run` gives is then good until the next pass.
        """
        self._replayed = None
        if distillation is not None:
            self._replayed = _ReplayedPass(self._run, self.teacher, distillation)

    @torch.no_grad()
    def run(self, pixel_values: Tensor, distillation: StudentWithAlignments) -> Teach:
        """One pass; each loss takes what it needs the moment a layer returns, so that no more is kept."""
        if self._replayed is not None and self._replayed.distillation is distillation:
            return self._replayed(pixel_values)
        return self._run(pixel_values, distillation)

    def _run(self, pixel_values: Tensor, distillation: StudentWithAlignments) -> Teach:
        taught = {
            pair.teacher.name: (pair.teacher, alignment)
            for pair, alignment in zip(distillation.pairs, distillation.alignments, strict=True)
        }
        image_size = height_and_width(pixel_values)

        def project(name: str, output: Any) -> Features:
            layer, alignment = taught[name]
            assert isinstance(alignment, LayerLoss)
            return alignment.target(to_features(output, name, image_size, layer.channels_last))

        with record(self.teacher, list(taught), transform=project) as recorder:
            logits = self.logits(pixel_values)
        return logits, dict(recorder.outputs)


class _ReplayedPass:
    """Passes of a teacher for one module as CUDA graphs."""

    def __init__(
        self,
        run: Callable[[Tensor, StudentWithAlignments], Teach],
        teacher: nn.Module,
        distillation: StudentWithAlignments,
    ) -> None:
        self.run, self.distillation = run, distillation
        self._geometries: dict[torch.Size, tuple[Geometry, ...]] = {}
        modules = nn.ModuleList([teacher, distillation.alignments])
        self._replayed = Replayed(self._of_tensors, modules, "the teacher's pass")

    def __call__(self, pixel_values: Tensor) -> Teach:
        logits, *values = self._replayed([pixel_values])
        targets = pack(values, self._geometries[pixel_values.shape])
        return logits, dict(zip(self._names, targets, strict=True))

    @property
    def _names(self) -> list[str]:
        return [pair.teacher.name for pair in self.distillation.pairs]

    def _of_tensors(self, tensors: Sequence[Tensor], given: Any) -> tuple[Tensor, ...]:
        (pixel_values,) = tensors
        logits, targets = self.run(pixel_values, self.distillation)
        values, self._geometries[pixel_values.shape] = unpack([targets[name] for name in self._names])
        return logits, *values
