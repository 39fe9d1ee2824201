"""`subdistill adapt`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import AdaptOptions
from subdistill_hf.config.defaults import ADAPT_DEFAULTS
from subdistill_hf.config.validation import names_of_options, refused_training_arguments
from subdistill_hf.errors import SubDistillError

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "fit a teacher to classes that it lacks"
INSTEAD = {
    "num_train_epochs": "--adapt_epochs",
    "max_steps": "--adapt_epochs",
    "learning_rate": "--adapt_learning_rate",
    "push_to_hub": "hf upload",
}
"""Training arguments that would have no effect, and what to use."""


def make_parser(all_arguments: bool = False) -> OptionsParser:
    """The parser of its options.

    Args:
        all_arguments: include every argument of transformers' `TrainingArguments`, which imports torch.
    """
    from subdistill_hf.cli.parsing import OptionsParser

    kinds: tuple[Any, ...] = (AdaptOptions,)
    if all_arguments:
        from transformers import TrainingArguments

        kinds = (AdaptOptions, TrainingArguments)
    return OptionsParser(
        kinds,
        prog="subdistill adapt",
        epilog="Arguments of transformers.TrainingArguments are options too (--output_dir, --seed, "
        "--per_device_train_batch_size, --resume_from_checkpoint ...).",
    )


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options that words give; help, and mistakes in this package's own options, come before torch is imported.

    Raises:
        SubDistillError: for what is no option, or has no effect.
    """
    ours, rest = make_parser().given(words)
    given = ours | make_parser(all_arguments=True).only_given(rest)
    if "dataset" not in given:
        raise SubDistillError("adapt needs --dataset: the images of the classes that the teacher is to know")
    for name, instead in INSTEAD.items():
        if name in given:
            raise SubDistillError(f"--{name} has no meaning for adapt: use {instead}")
    return given


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Adapt a teacher.

    Raises:
        SubDistillError: for options that do not fit together.
    """
    from subdistill_hf.cli.parsing import without_token
    from subdistill_hf.config.training import SubDistillConfig
    from subdistill_hf.pipeline.adapted_teacher import adapt_teacher

    ours = names_of_options(AdaptOptions)
    options = AdaptOptions(**{name: value for name, value in given.items() if name in ours})
    with refused_training_arguments():
        training = {name: value for name, value in given.items() if name not in ours}
        config = SubDistillConfig(**ADAPT_DEFAULTS | training)
    adapt_teacher(options, config, command=shlex.join(["subdistill", "adapt", *without_token(words)]))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "the same command with --resume_from_checkpoint true, or with --overwrite to start again"
