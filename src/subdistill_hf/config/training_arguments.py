"""Training arguments that transformers would refuse late: when the training begins, or at its first evaluation."""

from __future__ import annotations

import contextlib

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import ParallelMode

from subdistill_hf.errors import SubDistillError
from subdistill_hf.metrics import LOGGED_METRICS

UNLISTED = ("azure_ml", "flyte")  # which transformers may leave out of its list of what is installed
LABELS = "labels"


def check_training_arguments(args: TrainingArguments) -> None:
    """Refuse what a run with our images, labels and metrics could not go on with.

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
                f"report_to={service!r}: its package is not installed, or not set up; do so, or give "
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
