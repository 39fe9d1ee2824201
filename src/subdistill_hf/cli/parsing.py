"""Parsers made of dataclasses, which tell what was given from what is a default."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser

from subdistill_hf.config.addresses import without_passwords
from subdistill_hf.config.validation import names_of_options, with_home
from subdistill_hf.errors import SubDistillError

_NOT_GIVEN: Any = object()


class OptionsParser(HfArgumentParser):
    """transformers' parser, whose mistakes are errors of one line, without the usage of over a hundred options.

    Args:
        kinds: the dataclasses whose fields are the options.
        prog: the command, for `--help` and for what is said of mistakes.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, kinds: Any, prog: str, **options: Any) -> None:
        super().__init__(kinds, prog=prog, allow_abbrev=False, **options)
        for action in self._actions:  # transformers gives the switch that turns an option off the help of that option
            if (
                action.dest in names_of_options(*self.dataclass_types)
                and f"--no_{action.dest}" in action.option_strings
            ):
                action.help = f"Turns --{action.dest} off."

    def error(self, message: str) -> NoReturn:
        """Say what does not fit.

        Raises:
            SubDistillError: always.
        """
        raise SubDistillError(f"{message} ({self.prog} --help lists the options)")

    def given(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The values that were given, by option, and the words that are none of its options.

        In paths the home folder stands for `~`, see `with_home`.

        Args:
            words: of a command line; `--help` among them prints the help and exits.
        """
        names = names_of_options(*self.dataclass_types)
        found, rest = self.parse_known_args(words, argparse.Namespace(**dict.fromkeys(names, _NOT_GIVEN)))
        given = {name: value for name, value in vars(found).items() if value is not _NOT_GIVEN}
        return {name: with_home(name, value) for name, value in given.items()}, rest

    def only_given(self, words: Sequence[str]) -> dict[str, Any]:
        """As `given`, where all words must be its options.

        Raises:
            SubDistillError: for the first that is not, with the option that it may have been meant to be.
        """
        found, rest = self.given(words)
        if rest:
            known = [f"--{name}" for name in names_of_options(*self.dataclass_types)]
            near = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
            self.error(f"there is no option {rest[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return found


def without_token(words: Sequence[str]) -> list[str]:
    """The words of a command line without `--hub_token` and its value, and without passwords, for a card."""
    kept: list[str] = []
    for previous, word in zip(["", *words], words, strict=False):
        names = [text.partition("=")[0].replace("-", "_") for text in (previous, word)]
        if "__hub_token" not in (names[1], names[0] if "=" not in previous else ""):
            kept.append(without_passwords(word))
    return kept
