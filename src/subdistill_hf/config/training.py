"""The training arguments of a distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from subdistill_hf.acceleration.cuda_graphs import GRAPHS
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO, DistillationOptions
from subdistill_hf.config.validation import check_ranges, check_types
from subdistill_hf.core.bases import BASES
from subdistill_hf.errors import SubDistillError
from subdistill_hf.losses.orthonormal import FULL_WIDTH
from subdistill_hf.losses.procrustes import PROCRUSTES
from subdistill_hf.losses.rotations import ROTATIONS
from subdistill_hf.losses.subspace import CENTRINGS
from subdistill_hf.teacher.cache_files import PRECISIONS

LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 0,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_epsilon": 0,
    "seed": 0,
    "data_seed": 0,
    "layer_weight": 0,
    "kd_weight": 0,
    "task_weight": 0,
    "dkd_beta": 0,
    "layer_pairs": 1,
    "positions": 1,
}
BELOW_1 = math.nextafter(1, 0)
BETWEEN = {"label_smoothing_factor": (0, 1), "adam_beta1": (0, BELOW_1), "adam_beta2": (0, BELOW_1)}


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
        check_types(self)
        for name, allowed in (
            ("method", tuple(METHODS)),
            ("basis", tuple(BASES)),
            ("centring", CENTRINGS),
            ("rotation", (*ROTATIONS, PROCRUSTES, FULL_WIDTH, AUTO)),
            ("teacher_cache_precision", PRECISIONS),
            ("cuda_graphs", GRAPHS),
        ):
            if getattr(self, name) not in allowed:
                raise SubDistillError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        check_ranges(self, LEAST, BETWEEN)
        if not self.temperature > 0:
            raise SubDistillError(f"temperature={self.temperature}: expected a positive number")
        if not any(self.weights().values()):
            raise SubDistillError("task_weight, kd_weight and layer_weight are all 0: there is nothing to train")
        self.teacher_cache = str(self.teacher_cache)
        if self.teacher_cache not in ("off", AUTO) and not (
            self.teacher_cache.isdecimal() and int(self.teacher_cache) > 0
        ):
            raise SubDistillError(f"teacher_cache={self.teacher_cache!r}: expected auto, off, or a number of views")
        if not self.teacher_cache_limit > 0:
            raise SubDistillError(f"teacher_cache_limit={self.teacher_cache_limit}: expected GiB above 0")
        if isinstance(self.layers, str):
            self.layers = [self.layers]
        loading = self.accelerator_config
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # pinned memory serves an accelerator; without one torch warns
        elif self.device.type == "cuda" and loading is None and self.dataloader_pin_memory:
            self.accelerator_config.non_blocking = True  # or each tensor of a batch would wait for the step before
