"""The training arguments of a distillation."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import ParallelMode

from subdistill_hf.config.extras import EXTRAS
from subdistill_hf.config.options import AUTO, DistillationOptions
from subdistill_hf.config.validation import check_choices, check_ranges, check_types
from subdistill_hf.errors import SubDistillError, install_command
from subdistill_hf.metrics import LOGGED_METRICS

UNLISTED = ("azure_ml", "flyte")  # which transformers may leave out of its list of what is installed
LABELS = "labels"
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
        self.teacher_cache = str(self.teacher_cache)
        check_values(self)
        if isinstance(self.layers, str):
            self.layers = [self.layers]
        loading = self.accelerator_config
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # pinned memory serves an accelerator; without one torch warns
        elif self.device.type == "cuda" and loading is None and self.dataloader_pin_memory:
            self.accelerator_config.non_blocking = True  # or each tensor of a batch would wait for the step before


def check_values(args: SubDistillConfig) -> None:
    """Refuse values of another type, out of range, or that leave nothing to train.

    Raises:
        SubDistillError: naming the field, with what was expected and found.
    """
    check_types(args)
    check_choices(args, DistillationOptions)
    check_ranges(args, LEAST, BETWEEN)
    if not args.temperature > 0:
        raise SubDistillError(f"temperature={args.temperature}: expected a positive number")
    if not any(args.weights().values()):
        raise SubDistillError("task_weight, kd_weight and layer_weight are all 0: there is nothing to train")
    cache = args.teacher_cache
    if cache not in ("off", AUTO) and not (cache.isdecimal() and int(cache) > 0):
        raise SubDistillError(f"teacher_cache={cache!r}: expected auto, off, or a number of views")
    if not args.teacher_cache_limit > 0:
        raise SubDistillError(f"teacher_cache_limit={args.teacher_cache_limit}: expected GiB above 0")


def check_training_arguments(args: TrainingArguments) -> None:
    """Refuse what transformers would refuse late: when the training begins, or at its first evaluation.

    Raises:
        SubDistillError: naming the argument, with what was expected.
    """
    _check_services(args)
    _check_optimizer(args)
    _check_compilation(args)
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise SubDistillError(
            "fsdp spreads a model over several processes, and this is a single one: start it with accelerate launch, "
            "or leave --fsdp out"
        )
    if args.label_names is not None and LABELS not in args.label_names:
        raise SubDistillError(f"label_names={args.label_names}: the labels of a batch are named {LABELS!r} here")
    _check_best_metric(args)


def _check_services(args: TrainingArguments) -> None:
    installed = get_available_reporting_integrations()
    for service in args.report_to or []:
        if service not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(["none", "all", *INTEGRATION_TO_CALLBACK])
            raise SubDistillError(f"report_to={service!r}: expected one of {known}")
        if service not in installed and service not in UNLISTED:
            raise SubDistillError(
                f"report_to={service!r}: its package is not installed, or not set up"
                f"{f' ({install_command(service)})' if service in EXTRAS else ''}; do so, or give "
                f"{' or '.join([*installed, 'none'])}"
            )


def _check_optimizer(args: TrainingArguments) -> None:
    for pair in (args.optim_args or "").split(","):
        if args.optim_args and pair.count("=") != 1:
            raise SubDistillError(f"optim_args={args.optim_args!r}: expected name=value,name=value")
    try:
        with contextlib.suppress(ValueError):  # of optimisers that look for layers of the real model
            Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    except ImportError as error:
        raise SubDistillError(f"optim={str(getattr(args.optim, 'value', args.optim))!r}: {error}") from error


def _check_compilation(args: TrainingArguments) -> None:
    if not args.torch_compile:
        return
    backend, mode = str(args.torch_compile_backend), args.torch_compile_mode
    known = [each.value for each in DynamoBackend if each != DynamoBackend.NO]
    if backend.upper() not in known:
        raise SubDistillError(
            f"torch_compile_backend={backend!r}: expected one of {', '.join(each.lower() for each in known)}"
        )
    if mode is not None and backend.upper() == DynamoBackend.INDUCTOR.value:
        modes = list(torch._inductor.list_mode_options())
        if mode not in modes:
            raise SubDistillError(f"torch_compile_mode={mode!r}: expected one of {', '.join(modes)}")


def _check_best_metric(args: TrainingArguments) -> None:
    """The metric that checkpoints, or the learning rate, are chosen by."""
    name, known = args.metric_for_best_model, ["loss", *LOGGED_METRICS]
    if name is not None and name.removeprefix("eval_") not in known:
        raise SubDistillError(f"metric_for_best_model={name!r}: expected one of {', '.join(known)}")
