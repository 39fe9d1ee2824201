"""`subdistill export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import ExportOptions

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "make files of a student for devices, and measure them"


def make_parser() -> OptionsParser:
    """The parser of its options and the folder."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser(ExportOptions, prog="subdistill export")
    parser.add_argument("folder", help="Folder of a student, as distill leaves it.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The folder and the options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Export the student, and print what was measured."""
    from subdistill_hf.export.run import export

    folder = given.pop("folder")
    export(folder, ExportOptions(**given))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "the student is as it was; the same command starts again"
