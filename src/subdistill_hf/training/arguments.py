"""Checks of arguments that transformers would refuse late, or take and ignore."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Final

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.training_args import ParallelMode

from subdistill_hf.config.extras import EXTRAS
from subdistill_hf.config.training import CHECKPOINTING, LABELS
from subdistill_hf.errors import SubDistillError, install_command
from subdistill_hf.metrics import LOGGED_METRICS, compute_metrics
from subdistill_hf.training.optimizers import sample_optimizer

Metrics = Callable[..., Any] | None

UNLISTED: Final = ("azure_ml", "flyte")  # which transformers may leave out of its list of what is installed
SAMPLING: Final = ("random", "sequential")
FOR_METRICS: Final = ("inputs", "loss")
TRIAL_STEPS: Final = 20
ZERO_OF_WEIGHTS: Final = 3
"""The stage of DeepSpeed's ZeRO that spreads the weights."""
TRIAL_LEARNING_RATE: Final = 1e-3


def check_training_arguments(
    args: TrainingArguments, evaluated: Any = None, metrics: Metrics = compute_metrics
) -> None:
    """Refuse what transformers would refuse late, when the training begins or at its first evaluation, or not at all.

    Args:
        args: the arguments.
        evaluated: images of the evaluations, see `check_best_metric`.
        metrics: what measures them.

    Raises:
        SubDistillError: naming the argument, with what was expected.
    """
    _check_services(args)
    _check_optimizer(args)
    _check_compilation(args)
    _check_checkpointing(args)
    _check_only_of_text(args)
    _check_loading(args)
    if args.fp16 and args.device.type == "cpu":
        raise SubDistillError("fp16 needs an accelerator, and this runs on the CPU: use bf16, or leave --fp16 out")
    _check_sharding(args)
    _check_memory_format(args)
    _check_sharded_teacher(args)
    if unknown := sorted(set(args.include_for_metrics) - set(FOR_METRICS)):
        raise SubDistillError(f"include_for_metrics={unknown[0]!r}: expected one of {', '.join(FOR_METRICS)}")
    if args.label_names is not None and LABELS not in args.label_names:
        raise SubDistillError(f"label_names={args.label_names}: the labels of a batch are named {LABELS!r} here")
    if metrics is compute_metrics and (args.label_names or [LABELS])[0] != LABELS:
        raise SubDistillError(f"label_names={args.label_names}: give {LABELS!r} first, by which accuracy is measured")
    if args.batch_eval_metrics and metrics is compute_metrics:
        raise SubDistillError("batch_eval_metrics: accuracies need all images of an evaluation, not batches of them")
    check_best_metric(args, evaluated, metrics)


def _check_sharding(args: TrainingArguments) -> None:
    """Refuse to spread the student's weights over processes: nothing could read them but the training step."""
    fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise SubDistillError(
            "fsdp spreads a model over several processes, and this is a single one: start it with accelerate launch, "
            "or leave --fsdp out"
        )
    zero3 = getattr(args.deepspeed_plugin, "zero_stage", 0) == ZERO_OF_WEIGHTS
    if fsdp or zero3:
        raise SubDistillError(
            f"{'fsdp' if fsdp else 'DeepSpeed ZeRO-3'} spreads the student's weights over the processes, and then it "
            "can be neither evaluated nor saved by itself. A student is small: leave this out, and each process keeps "
            "all of it (see examples/accelerate_configs/ddp.yaml)"
        )


def _check_memory_format(args: TrainingArguments) -> None:
    """Refuse weights that DeepSpeed could not send to the other processes."""
    if args.deepspeed_plugin is not None and getattr(args, "channels_last", None):
        raise SubDistillError("channels_last: DeepSpeed takes contiguous weights alone: leave out one of them")


def _check_sharded_teacher(args: TrainingArguments) -> None:
    """Refuse to spread a teacher over one process, or beside DeepSpeed."""
    if not getattr(args, "shard_teacher", False):
        return
    if args.world_size < 2:
        started = int(os.environ.get("WORLD_SIZE", "1")) > 1
        how = "on CPUs add --use_cpu" if started else "start it with torchrun or accelerate launch"
        raise SubDistillError(
            "shard_teacher spreads the teacher over several processes, and this is a single one"
            f"{', though several were started' if started else ''}: {how}, or leave --shard_teacher out"
        )
    if args.deepspeed_plugin is not None:
        raise SubDistillError(
            "shard_teacher is by torch's own means, and was never tried beside DeepSpeed: leave out one of them"
        )


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
    """Make the optimiser and its schedule for a weight of their own, and go through the schedule in a few steps."""
    for pair in (args.optim_args or "").split(","):
        if args.optim_args and pair.count("=") != 1:
            raise SubDistillError(f"optim_args={args.optim_args!r}: expected name=value,name=value")
    asked = f"optim={_value(args.optim)!r}"
    try:
        optimizer = sample_optimizer(args, args.learning_rate or TRIAL_LEARNING_RATE)
    except ImportError as error:
        raise SubDistillError(f"{asked}: {error}") from error
    except (TypeError, ValueError) as error:
        if args.optim_target_modules:  # of optimisers that look for layers of the real model
            return
        raise SubDistillError(f"{asked}, optim_args={args.optim_args!r}: {error}") from error
    _check_schedule(args, optimizer)


def _check_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    try:
        schedule: Any = get_scheduler(
            kind,
            optimizer,
            min(args.get_warmup_steps(TRIAL_STEPS), TRIAL_STEPS // 2),
            TRIAL_STEPS,
            scheduler_specific_kwargs=options,
        )
        measured = kind in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
        for _ in range(TRIAL_STEPS):
            optimizer.step()
            schedule.step(*([1.0] if measured else []))
            if not math.isfinite(rate := optimizer.param_groups[0]["lr"]):
                raise ValueError(f"the learning rate becomes {rate}")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SubDistillError(
            f"lr_scheduler_type={_value(kind)!r}, lr_scheduler_kwargs={options!r}: {error}"
        ) from error


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


def _check_checkpointing(args: TrainingArguments) -> None:
    """Whether activations can be recomputed with the arguments; of a student that cannot, see the trainer."""
    given = getattr(args, CHECKPOINTING)
    options = dict(given or {})
    every, _ = options.pop("every_n_layers", 1), options.pop("offload", False)
    try:
        if not (isinstance(every, int) and every > 0):
            raise ValueError(f"every_n_layers={every!r}, expected a whole number of at least 1")
        checkpoint(nn.Identity(), torch.zeros(1, requires_grad=True), **{"use_reentrant": False, **options})
    except (TypeError, ValueError) as error:
        raise SubDistillError(f"{CHECKPOINTING}={given}: {error}") from error


def _check_only_of_text(args: TrainingArguments) -> None:
    """Refuse arguments without a meaning for images."""
    if args.neftune_noise_alpha is not None:
        raise SubDistillError("neftune_noise_alpha adds noise to the embeddings of a text, and these are images")
    if args.use_liger_kernel:
        raise SubDistillError("use_liger_kernel replaces parts of language models, and the student is none")
    if args.train_sampling_strategy not in SAMPLING:
        raise SubDistillError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} groups texts by their length: expected one of "
            f"{', '.join(SAMPLING)}"
        )


def _check_loading(args: TrainingArguments) -> None:
    known = torch.multiprocessing.get_all_start_methods()
    context = getattr(args, "dataloader_multiprocessing_context", None)  # older transformers have no such argument
    if context is not None and context not in known:
        raise SubDistillError(f"dataloader_multiprocessing_context={context!r}: expected one of {', '.join(known)}")
    if args.dataloader_num_workers == 0 and (context is not None or args.dataloader_persistent_workers):
        raise SubDistillError(
            "dataloader_multiprocessing_context and dataloader_persistent_workers are of workers: give "
            "dataloader_num_workers, too"
        )


def check_best_metric(args: TrainingArguments, evaluated: Any = None, metrics: Metrics = compute_metrics) -> None:
    """Refuse a metric, by which checkpoints or the learning rate are chosen, that no evaluation measures.

    Args:
        args: the arguments.
        evaluated: images of the evaluations: a dataset, or several by name, whose figures begin with their names.
        metrics: what measures them; of those of a user nobody knows the names.

    Raises:
        SubDistillError: with the figures that there are.
    """
    if args.metric_for_best_model is None:
        return
    name, asked = args.metric_for_best_model.removeprefix("eval_"), f"={args.metric_for_best_model!r}"
    begins = [f"{one}_" for one in evaluated] if isinstance(evaluated, dict) and evaluated else [""]
    if metrics not in (None, compute_metrics):
        if not name.startswith(tuple(begins)):
            raise SubDistillError(
                f"metric_for_best_model{asked}: the figures of several evaluation datasets begin with their names, "
                f"{', '.join(begins)}"
            )
        return
    losses = [f"{begin}loss" for begin in begins]
    figures = [f"{begin}{figure}" for begin in begins for figure in LOGGED_METRICS]
    known = losses if metrics is None else losses + figures
    if name not in known:
        raise SubDistillError(f"metric_for_best_model{asked}: expected one of {', '.join(known)}")
    if args.prediction_loss_only and name not in losses:
        raise SubDistillError(f"prediction_loss_only leaves nothing to measure metric_for_best_model{asked} by")


def _value(choice: Any) -> str:
    """Of an entry of an enumeration, or of its value."""
    return str(getattr(choice, "value", choice))
