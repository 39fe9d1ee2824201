"""`subdistill explain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import ExplainOptions

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "see what a student and its teacher look at, and how alike"


def make_parser() -> OptionsParser:
    """The parser of its options and the folder."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser(ExplainOptions, prog="subdistill explain")
    parser.add_argument("folder", help="Folder of a student, as distill leaves it.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The folder and the options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Explain the student, and print what was found."""
    from subdistill_hf.explain.run import explain

    folder = given.pop("folder")
    explain(folder, ExplainOptions(**given))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "earlier explanations are as they were; the same command starts again"
