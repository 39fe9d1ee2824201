"""`subdistill push`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import PushOptions

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "push the folder of a student to the Hub"


def make_parser() -> OptionsParser:
    """The parser of its options and the folder."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser(PushOptions, prog="subdistill push")
    parser.add_argument("folder", help="Folder of a student, as distill leaves it.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The folder and the options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Push the student or its page, and print the address of the commit."""
    from subdistill_hf.hub.publish import push_folder, push_page

    folder = given.pop("folder")
    options = PushOptions(**given)
    if options.space:
        from subdistill_hf.export.page import write_page

        with tempfile.TemporaryDirectory() as place:
            page = write_page(folder, place, options.runtime)
            print(push_page(page, folder, options.repo, options.private or None, options.revision))
        return
    print(push_folder(folder, options.repo, options.private or None, options.revision))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "the folder is as it was; the same command tries again"
