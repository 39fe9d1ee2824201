"""`subdistill report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "write the page of a run: all of its figures in one file"


def make_parser() -> OptionsParser:
    """The parser of the folder."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser((), prog="subdistill report")
    parser.add_argument("folder", help="Folder of a run, as distill leaves it.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The folder that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Write the page into the folder.

    Raises:
        SubDistillError: for a folder that is no run's, or cannot be written.
    """
    from subdistill_hf.reporting.page.page import write_page

    print(f"The report is {write_page(given['folder'])}")


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "the folder is as it was; the same command starts again"
