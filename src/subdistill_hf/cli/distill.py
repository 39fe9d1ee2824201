"""`subdistill distill`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.defaults import RUN_DEFAULTS, saved_when_evaluated
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import how_to_go_on
from subdistill_hf.config.validation import names_of_options, refused_training_arguments

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "train a student"


class _HelpAll(argparse.Action):
    """`--help-all`: the help of all options, for which torch is imported."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        make_parser(all_arguments=True).print_help()
        parser.exit()


def make_parser(all_arguments: bool = False) -> OptionsParser:
    """The parser of its options.

    Args:
        all_arguments: include every argument of transformers' `TrainingArguments`, which imports torch.
    """
    from subdistill_hf.cli.parsing import OptionsParser

    training: Any = DistillationOptions
    if all_arguments:
        from subdistill_hf.config.training import SubDistillConfig as training  # noqa: N813
    parser = OptionsParser(
        (TaskOptions, training),
        prog="subdistill distill",
        epilog="--help-all lists more options: every argument of transformers.TrainingArguments (--learning_rate, "
        "--num_train_epochs, --output_dir, --report_to ...).",
    )
    parser.add_argument(
        "--help-all",
        action=_HelpAll,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="show all options and exit",
    )
    known = {field.name for field in fields(training)}
    parser.set_defaults(**{name: value for name, value in RUN_DEFAULTS.items() if name in known})
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options that words give; help, and mistakes in this package's own options, come before torch is imported."""
    ours, rest = make_parser().given(words)
    return ours | make_parser(all_arguments=True).only_given(rest)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Distil a student.

    Raises:
        SubDistillError: for options that do not fit together.
    """
    from subdistill_hf.cli.parsing import without_token
    from subdistill_hf.config.training import SubDistillConfig
    from subdistill_hf.pipeline.auto import options_for_teacher
    from subdistill_hf.pipeline.run import distill

    of_task = names_of_options(TaskOptions)
    with refused_training_arguments():
        options = TaskOptions(**{name: value for name, value in given.items() if name in of_task})
        training = {name: value for name, value in given.items() if name not in of_task}
        config = SubDistillConfig(**RUN_DEFAULTS | saved_when_evaluated(given) | training)
    options, chosen = options_for_teacher(options, given)
    if chosen and config.process_index == 0:
        print("chosen for this teacher, as nothing else was asked for:", *chosen, sep="\n  ", end="\n\n")
    distill(options, config, command=shlex.join(["subdistill", "distill", *without_token(words)]))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C, which may have come before torch is imported."""
    folder = RUN_DEFAULTS["output_dir"]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == "__output_dir":
            folder = value if equals else following
    return f"to go on, {how_to_go_on(Path(folder).expanduser())}"
