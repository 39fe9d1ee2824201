"""`subdistill push`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import PushOptions
from subdistill_hf.errors import SubDistillError

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "push the folder of a student, or of a family, to the Hub"


def make_parser() -> OptionsParser:
    """The parser of its options and the folder."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser(PushOptions, prog="subdistill push")
    parser.add_argument("folder", help="Folder of a student, as distill leaves it, or of a family.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The folder and the options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Push the student, its page, or all experts of a family; print the address of the commit, or of the collection.

    Raises:
        SubDistillError: for the page of a family.
    """
    from subdistill_hf.hub.family import is_family, push_family
    from subdistill_hf.hub.publish import push_folder, push_page

    folder = given.pop("folder")
    options = PushOptions(**given)
    if options.space:
        if is_family(folder):
            raise SubDistillError("a family has no page: push the folder of one expert with --space")
        from subdistill_hf.export.page import write_page

        with tempfile.TemporaryDirectory() as place:
            page = write_page(folder, place, options.runtime)
            private = options.private or None
            print(push_page(page, folder, options.repo, private, options.revision, options.runtime))
        return
    push = push_family if is_family(folder) else push_folder
    print(push(folder, options.repo, options.private or None, options.revision))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "the folder is as it was; the same command tries again"
