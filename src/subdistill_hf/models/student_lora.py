"""Train a pretrained student through low-rank changes (LoRA) and its new head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.models.adapters import ASKED_FOR_STRIDE, lora_targets, with_adapter
from subdistill_hf.models.loading import LoadedModel, ModelError, image_size_of
from subdistill_hf.models.students import is_new


def check_student_lora(options: TaskOptions) -> None:
    """Refuse low-rank changes of a student that is new, before anything is loaded.

    Raises:
        ModelError: naming the student.
    """
    if options.student_lora and is_new(options.student):
        raise ModelError(
            f"student_lora: the student {options.student!r} is new, and low-rank changes of random weights cannot "
            "make it good: give a pretrained student (an id of the Hub or a folder), or train all its weights"
        )


def with_lora(student: LoadedModel, options: TaskOptions) -> PeftModel:
    """The student with low-rank changes and a head that are trained, and a body that is not.

    Args:
        student: pretrained; its model is changed in place.
        options: rank and modules.

    Raises:
        AdapterError: for modules that cannot take LoRA.
        ModelError: for an adapter that PEFT alone could not run.
    """
    model: Any = student.model
    if options.student_lora_save == "adapter" and model.config.model_type in ASKED_FOR_STRIDE:
        raise ModelError(
            f"student_lora_save=adapter: PEFT alone cannot run an adapter of {model.config.model_type}, whose "
            "convolutions are asked for their stride: save it merged"
        )
    pixels = torch.zeros(1, 3, *image_size_of(student.processor))
    targets = lora_targets(model, lambda: model(pixel_values=pixels), options.student_lora_target_modules)
    base = student.hub_id or str(Path(options.student).resolve())
    return with_adapter(model, targets, options.student_lora_rank, base, student.revision)


def described_lora(model: PeftModel, options: TaskOptions) -> dict[str, Any]:
    """What the report says of a student that was trained through LoRA."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"rank": options.student_lora_rank, "trained_parameters": trained, "saved": options.student_lora_save}
