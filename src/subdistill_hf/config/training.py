"""The training arguments of a distillation."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.options import AUTO
from subdistill_hf.config.validation import LARGEST_SEED, check_choices, check_ranges, check_types
from subdistill_hf.errors import SubDistillError

LABELS = "labels"
LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "num_train_epochs": 0,
    "dataloader_prefetch_factor": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "seed": 0,
    "data_seed": 0,
    "layer_weight": 0,
    "kd_weight": 0,
    "task_weight": 0,
    "dkd_beta": 0,
    "layer_pairs": 1,
    "positions": 1,
}
MOST_WORKERS = 1024
BELOW_1 = math.nextafter(1, 0)
BETWEEN = {
    "seed": (0, LARGEST_SEED),
    "data_seed": (0, LARGEST_SEED),
    "dataloader_num_workers": (0, MOST_WORKERS),
    "label_smoothing_factor": (0, 1),
    "adam_beta1": (0, BELOW_1),
    "adam_beta2": (0, BELOW_1),
}
CHECKPOINTING = (
    "activation_checkpointing_kwargs"
    if hasattr(TrainingArguments, "activation_checkpointing_kwargs")
    else "gradient_checkpointing_kwargs"  # before transformers 5.23
)
SETTINGS = (
    "accelerator_config",
    "fsdp_config",
    "deepspeed",
    "lr_scheduler_kwargs",
    *sorted({CHECKPOINTING, "gradient_checkpointing_kwargs"}),
    "liger_kernel_config",
)
SETTINGS_FILES = ("accelerator_config", "fsdp_config", "deepspeed")


@dataclass
class SubDistillConfig(DistillationOptions, TrainingArguments):
    """transformers' `TrainingArguments` and the fields of `DistillationOptions`.

    Defaults that differ from `TrainingArguments`: those of the paper's training (learning rate 1e-3, batches of
    64, no weight decay), a cosine schedule, `remove_unused_columns=False` because the collator needs the images,
    `label_names=["labels"]`, and `logging_nan_inf_filter=False` because a loss that is not finite stops the run.

    Raises:
        SubDistillError: for a value out of range, naming the field.
    """

    learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Initial learning rate of AdamW (0, the command line's default, is what suits student and method)."
        },
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Evaluation batch size per device."})
    num_train_epochs: float = field(
        default=100.0,
        metadata={
            "help": "Number of passes over the training images (on the command line 0, the default, takes enough)."
        },
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove dataset columns that the student's forward does not take."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave non-finite losses out of the log."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Names of the labels in a batch."}
    )

    def __post_init__(self) -> None:
        """Validate what would stop a run late or not at all, then let `TrainingArguments` do the rest."""
        self.teacher_cache = str(self.teacher_cache)
        check_values(self)
        loading = self.accelerator_config
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # pinned memory serves an accelerator; without one torch warns
        elif self.device.type == "cuda" and loading is None and self.dataloader_pin_memory:
            self.accelerator_config.non_blocking = True  # or each tensor of a batch would wait for the step before


def with_arguments(config: SubDistillConfig, **changed: Any) -> SubDistillConfig:
    """A copy of training arguments, some of them changed; what follows from the others is not made again."""
    copied = copy.copy(config)
    for name, value in changed.items():
        setattr(copied, name, value)
    return copied


def check_values(args: SubDistillConfig) -> None:
    """Refuse values of another type, out of range, or that leave nothing to train.

    Raises:
        SubDistillError: naming the field, with what was expected and found.
    """
    check_types(args)
    _check_settings(args)
    check_choices(args, DistillationOptions)
    check_ranges(args, LEAST, BETWEEN)
    for name in ("temperature", "adam_epsilon", "layer_weight_end"):
        if (value := getattr(args, name)) is not None and not value > 0:
            raise SubDistillError(f"{name}={value}: expected a positive number")
    if not any(args.weights().values()):
        raise SubDistillError("task_weight, kd_weight and layer_weight are all 0: there is nothing to train")
    cache = args.teacher_cache
    if cache not in ("off", AUTO) and not (cache.isdecimal() and int(cache) > 0):
        raise SubDistillError(f"teacher_cache={cache!r}: expected auto, off, or a number of views")
    if not args.teacher_cache_limit > 0:
        raise SubDistillError(f"teacher_cache_limit={args.teacher_cache_limit}: expected GiB above 0")


def _check_settings(args: SubDistillConfig) -> None:
    """Refuse texts where names and values are expected, which the command line takes as JSON, or as a file of it."""
    for name in SETTINGS:
        value = getattr(args, name)
        if not isinstance(value, str) or (name in SETTINGS_FILES and Path(value).is_file()):
            continue
        try:
            is_mapping = isinstance(json.loads(value), dict)
        except ValueError:
            is_mapping = False
        if not is_mapping:
            or_file = " or a file of it" if name in SETTINGS_FILES else ""
            raise SubDistillError(f"{name}={value!r}: expected JSON such as '{{\"name\": 1}}'{or_file}")
