"""`subdistill family`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import FamilyOptions
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.validation import names_of_options
from subdistill_hf.errors import SubDistillError

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "train an expert for each subtask of a dataset"
FOLDER = "subdistill-family"


def make_parser(all_arguments: bool = False) -> OptionsParser:
    """The parser of its options.

    Args:
        all_arguments: include every option of `subdistill distill`, which imports torch.
    """
    from subdistill_hf.cli.parsing import OptionsParser

    training: Any = DistillationOptions
    if all_arguments:
        from subdistill_hf.config.training import SubDistillConfig as training  # noqa: N813
    return OptionsParser(
        (FamilyOptions, TaskOptions, training),
        prog="subdistill family",
        epilog="Every option of subdistill distill is one of all experts, but for --classes: see subdistill distill "
        f"--help-all. --output_dir is the family's folder, {FOLDER} by default.",
    )


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options that words give; help, and mistakes in this package's own options, come before torch is imported.

    Raises:
        SubDistillError: for what is no option, or where subtasks are missing.
    """
    ours, rest = make_parser().given(words)
    given = ours | make_parser(all_arguments=True).only_given(rest)
    if "subtasks" not in given:
        raise SubDistillError(
            "family needs --subtasks: expected superclass:all, some superclasses, or a YAML file of classes"
        )
    return given


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Distil what is missing of a family.

    Raises:
        SubDistillError: for options that do not fit together, or at the end when an expert has failed.
    """
    from subdistill_hf.cli.parsing import without_token
    from subdistill_hf.family.run import FamilyRequest, distill_family

    ours, of_task = names_of_options(FamilyOptions), names_of_options(TaskOptions)
    options = FamilyOptions(**{name: value for name, value in given.items() if name in ours})
    task = {name: value for name, value in given.items() if name in of_task}
    training = {name: value for name, value in given.items() if name not in of_task and name not in ours}
    folder = Path(training.pop("output_dir", FOLDER))
    command = shlex.join(["subdistill", "family", *without_token(words)])
    distill_family(FamilyRequest(options, folder, task, training, command))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "experts that are finished are kept; the same command, without --overwrite, goes on with the others"
