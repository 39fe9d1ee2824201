"""A frozen teacher, restricted to the classes of a subtask."""

from __future__ import annotations

import hashlib
import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.activations import logits_of
from subdistill_hf.formatting import last_part
from subdistill_hf.models.adapters import base_of
from subdistill_hf.models.loading import freeze, weights_digest
from subdistill_hf.teacher.class_ids import ClassIds, class_numbers, subtask_logits
from subdistill_hf.teacher.sharding import forget_passes, is_sharded, sharded

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A frozen classifier, restricted to the classes of a subtask.

    Several trainings may share one, whose weights are then hashed once. Their values must stay as they are while it is
    in use; after a change call `forget_digest`.

    Args:
        model: the classifier; it is put in evaluation mode and never trained. A `PeftModel` is taken with its adapter.
        class_ids: for each output of the student, the teacher's output of the same class, see `class_numbers`; `None`
            takes all.
        device: where it runs; where it is with `None`.
        precision: data type of autocast in its passes; `None` runs them in the precision of its weights.
        other: add an output for "none of these" to the logits, see `class_ids.subtask_logits`.
        digest: of the weights, where another run has computed it.

    Raises:
        DistillationError: for class ids that are no list of outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        class_ids: ClassIds | None = None,
        device: torch.device | None = None,
        precision: torch.dtype | None = None,
        other: bool = False,
        digest: str | None = None,
    ) -> None:
        outputs = None if class_ids is None else class_numbers(class_ids)
        self.model = base_of(freeze(model)).to(device)
        self._device = device
        self.class_ids = None if outputs is None else torch.tensor(outputs, device=self.device)
        self.precision, self.other = precision, other
        self._digest = digest

    @classmethod
    def for_training(
        cls,
        model: nn.Module,
        class_ids: ClassIds | None,
        args: SubDistillConfig,
        other: bool = False,
        digest: str | None = None,
    ) -> Teacher:
        """The teacher of trainings with these arguments: on their device and in their precision.

        With `shard_teacher` it is a copy of the model, whose weights are spread over the processes.
        """
        precision = "bf16" if args.teacher_bf16 else args.mixed_precision
        if args.deepspeed_plugin is not None and not args.teacher_bf16:
            precision = "no"  # DeepSpeed casts weights, those of the student alone
        if args.shard_teacher:
            digest = digest or weights_digest(model)  # of whole weights
            model = sharded(freeze(model), args.device)
        return cls(model, class_ids, args.device, AUTOCAST_DTYPES.get(precision), other, digest)

    @property
    def is_sharded(self) -> bool:
        """Whether its weights are spread over the processes, so that each pass takes all of them."""
        return is_sharded(self.model)

    def freeze(self) -> None:
        """Evaluation mode and no gradients, whatever was done to the model since."""
        freeze(self.model)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, and of which adapters are active; computed when it is first asked for."""
        if self._digest is None:
            self._digest = weights_digest(self.model)
            layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
            if layers:
                active = [(layer.active_adapters, layer.disable_adapters) for layer in layers]
                self._digest = hashlib.sha256(f"{self._digest} {active}".encode()).hexdigest()
        return self._digest

    def forget_digest(self) -> None:
        """Let the digest be computed again: the weights may have changed. A sharded copy's may not."""
        if not self.is_sharded:
            self._digest = None

    @property
    def name(self) -> str:
        """The model's Hub id, the last part of its folder's name, or its class."""
        name = getattr(getattr(self.model, "config", None), "_name_or_path", None) or type(self.model).__name__
        return last_part(name) if Path(name).is_dir() else str(name)

    @property
    def device(self) -> torch.device:
        """Where the model runs; one without weights where it was put."""
        tensor = next(itertools.chain(self.model.parameters(), self.model.buffers()), None)
        return (self._device or torch.device("cpu")) if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its matrix products."""
        return self.precision or self._weights_dtype or torch.float32

    @property
    def _weights_dtype(self) -> torch.dtype | None:
        """The precision of the weights; `None` where there are none, or whole numbers stand for them."""
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)

    def all_logits(self, pixel_values: Tensor) -> Tensor:
        """The model's own logits `(B, all classes)` of images `(B, c, H, W)`."""
        pixel_values = pixel_values.to(self._weights_dtype or pixel_values.dtype)  # half precision takes no others
        with self._autocast():
            logits = logits_of(self.model(pixel_values=pixel_values))
        if self.is_sharded and not torch.is_grad_enabled():
            forget_passes(self.model)
        return logits

    def logits(self, pixel_values: Tensor) -> Tensor:
        """The logits of the subtask's classes, in the student's order, `(B, C)` in float32; with `other` one more."""
        logits = self.all_logits(pixel_values)
        if self.other:
            return subtask_logits(logits.float(), self.class_ids, other=True)
        return (logits if self.class_ids is None else logits[:, self.class_ids]).float()

    @property
    def outputs(self) -> list[int | str] | None:
        """The identity of the outputs of `logits`: the model's, and `other`; `None` where all are taken."""
        if self.class_ids is None:
            return None
        return [*self.class_ids.tolist(), *(["other"] if self.other else [])]

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision is None else torch.autocast(self.device.type, dtype=self.precision)
