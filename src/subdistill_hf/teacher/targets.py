"""The teacher's logits and layer targets, which the student is compared with: computed, or read from a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.acceleration.cuda_graphs import Replayed
from subdistill_hf.core.activations import Features, Geometry, height_and_width, pack, to_features, unpack
from subdistill_hf.core.hooks import record
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.data.collate import LOGITS, teacher_pixels
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.teacher.cache import Targets, TeacherCache
from subdistill_hf.teacher.teacher import Teacher


class ComputedTargets:
    """Subtask logits and layer targets, from a pass of the teacher over each batch.

    Args:
        teacher: the teacher.
        pairs: the layer pairs.
        losses: the loss of each pair, which says what of the teacher's layer it compares with.
    """

    def __init__(self, teacher: Teacher, pairs: Sequence[LayerPair], losses: Sequence[LayerLoss]) -> None:
        self.teacher = teacher
        self.layers = {pair.teacher.name: pair.teacher for pair in pairs}
        self.losses = dict(zip(self.layers, losses, strict=True))
        self._replayed: Replayed | None = None
        self._geometries: dict[torch.Size, tuple[Geometry, ...]] = {}

    def of(self, batch: Mapping[str, Any]) -> Targets:
        """Subtask logits `(B, C)`, and teacher layer name to the target of its loss, for a batch of a training."""
        return self.of_pixels(teacher_pixels(batch))

    @torch.no_grad()
    def of_pixels(self, pixel_values: Tensor) -> Targets:
        """The same for the teacher's pixels `(B, c, H, W)`."""
        if self._replayed is None:
            return self._run(pixel_values)
        logits, *values = self._replayed([pixel_values])
        targets = pack(values, self._geometries[pixel_values.shape])
        return logits, dict(zip(self.layers, targets, strict=True))

    def replay(self, wanted: bool) -> None:
        """Replay the passes as CUDA graphs from now on, see `cuda_graphs.Replayed`, or run them one by one.

        What a replayed pass gives is good until the next one.
        """
        modules = nn.ModuleList([self.teacher.model, *self.losses.values()])
        self._replayed = Replayed(self._run_tensors, modules, "the teacher's pass") if wanted else None

    def _run(self, pixel_values: Tensor) -> Targets:
        """One pass; each loss takes what it needs the moment a layer returns, so that no more is kept."""
        image_size = height_and_width(pixel_values)

        def target_of(name: str, output: Any) -> Features:
            return self.losses[name].make_target(
                to_features(output, name, image_size, self.layers[name].channels_last)
            )

        with record(self.teacher.model, list(self.layers), transform=target_of) as recorder:
            logits = self.teacher.logits(pixel_values)
        return _usable(logits), {
            name: each.with_values(_usable(each.values)) for name, each in recorder.outputs.items()
        }

    def _run_tensors(self, tensors: Sequence[Tensor], given: Any) -> tuple[Tensor, ...]:
        """A pass as a function of tensors to tensors; notes the geometries that belong to them."""
        (pixel_values,) = tensors
        logits, targets = self._run(pixel_values)
        values, self._geometries[pixel_values.shape] = unpack([targets[name] for name in self.layers])
        return logits, *values


def _usable(values: Tensor) -> Tensor:
    """Values that autograd takes: those of a teacher under `torch.inference_mode` are copied."""
    return values.clone() if values.is_inference() else values


class CachedTargets:
    """Subtask logits and layer targets that came with the batch, read from a cache by the loader.

    Args:
        cache: the targets of every view.
        computed: what gives the targets of batches that carry none, such as those of a loader of the user.
    """

    def __init__(self, cache: TeacherCache, computed: ComputedTargets) -> None:
        self.cache, self.computed = cache, computed

    def of(self, batch: Mapping[str, Any]) -> Targets:
        """Subtask logits `(B, C)`, and teacher layer name to the target of its loss, for a batch of a training."""
        return self.cache.targets(batch) if LOGITS in batch else self.computed.of(batch)

    def replay(self, wanted: bool) -> None:
        """Replay the passes for batches without targets, see `ComputedTargets.replay`."""
        self.computed.replay(wanted)
