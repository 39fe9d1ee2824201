"""A student's batch norms: those that one image cannot train, and the same statistics in all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subdistill_hf.core.hooks import evaluation_mode, hooked
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import frozen_batch_norms


@torch.no_grad()
def single_value_norm(student: nn.Module, inputs: Mapping[str, Tensor]) -> str | None:
    """The first batch norm of a student whose input has one position an image, as where a map has shrunk to 1x1.

    Args:
        student: the student.
        inputs: what it takes, of any number of images.

    Returns:
        Its name, or `None`: then the student can be trained on a batch of one image.
    """
    frozen = set(frozen_batch_norms(student)) if isinstance(student, PeftModel) else set()
    norms = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, _BatchNorm) and module not in frozen
    }
    found: list[str] = []

    def look(name: str, inputs: Any, output: Any) -> None:
        if inputs[0][0, 0].numel() == 1:
            found.append(name)

    if norms:
        with hooked(norms, look), evaluation_mode(student):
            student(**inputs)
    return found[0] if found else None


def check_single_image(norm: str | None, images: int | None = 1) -> None:
    """Refuse a training batch of one image where it cannot be trained on.

    Args:
        norm: what `single_value_norm` found.
        images: of the batch.

    Raises:
        DistillationError: naming the batch norm, if there is one.
    """
    if norm is not None and images == 1:
        raise DistillationError(
            f"a training batch has one image, and the student's batch norm {norm!r} sees one position of it: one "
            "number a channel has no variance. Give batches of more images (per_device_train_batch_size), larger "
            "images, or a student without batch norm"
        )


@torch.no_grad()
def share_statistics(student: nn.Module, processes: int) -> None:
    """Give every process the student's buffers of the first: each has statistics of its own images."""
    if processes > 1:
        for buffer in student.buffers():
            torch.distributed.broadcast(buffer, 0)
