"""Packages that training arguments ask for: the optimiser's, and those of the services that runs report to."""

from __future__ import annotations

import contextlib

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from subdistill_hf.errors import SubDistillError

UNLISTED = ("azure_ml", "flyte")  # which transformers may leave out of its list of what is installed


def check_packages(args: TrainingArguments) -> None:
    """Refuse arguments whose packages are not installed, which transformers finds out when the training begins.

    Raises:
        SubDistillError: naming the argument and the package.
    """
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
    try:
        with contextlib.suppress(ValueError):  # of optimisers that look for layers of the real model
            Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    except ImportError as error:
        raise SubDistillError(f"optim={str(getattr(args.optim, 'value', args.optim))!r}: {error}") from error
