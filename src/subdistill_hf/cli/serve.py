"""`subdistill serve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import ServeOptions

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "try an exported student in the browser"


def make_parser() -> OptionsParser:
    """The parser of its options and the folder."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser(ServeOptions, prog="subdistill serve")
    parser.add_argument("folder", help="Folder of a student, with its export.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The folder and the options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Write the page, and serve it until Ctrl-C unless a folder was asked for."""
    from subdistill_hf.export.page import serve

    folder = given.pop("folder")
    serve(folder, ServeOptions(**given))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "the same command starts again"
