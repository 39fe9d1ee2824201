"""`subdistill inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import InspectOptions

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "show the subspaces of a teacher on a subtask"


def make_parser() -> OptionsParser:
    """The parser of its options."""
    from subdistill_hf.cli.parsing import OptionsParser

    return OptionsParser(InspectOptions, prog="subdistill inspect")


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Fit and show the subspaces."""
    from subdistill_hf.analysis.inspect import inspect

    inspect(InspectOptions(**given))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "nothing was written; the same command starts again"
