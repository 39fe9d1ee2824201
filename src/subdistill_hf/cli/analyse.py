"""`subdistill analyse`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import AnalyseOptions

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "measure how few dimensions of its layers a teacher needs"


def make_parser() -> OptionsParser:
    """The parser of its options."""
    from subdistill_hf.cli.parsing import OptionsParser

    return OptionsParser(AnalyseOptions, prog="subdistill analyse")


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Measure the accuracies, and show them."""
    from subdistill_hf.analysis.analyse import analyse

    analyse(AnalyseOptions(**given))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "nothing was written; the same command starts again"
