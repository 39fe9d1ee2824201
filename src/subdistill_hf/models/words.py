"""The classes of a zero-shot teacher: words and phrases, and the texts that they are put into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from subdistill_hf.errors import SubDistillError

BETWEEN_PHRASES: Final = "|"

Phrases = tuple[tuple[str, ...], ...]
"""The phrases of each class."""


@dataclass(frozen=True)
class Words:
    """The classes of a zero-shot teacher, and what else it is asked.

    Attributes:
        classes: the phrases of each class, of which the first is its name.
        prompts: texts with `{}` for the phrase, whose embeddings are averaged; where empty, those that suit the model.
        other_prompts: texts of images of none of the classes; where empty, usual ones. A model with sigmoids needs
            none: the odds of each class against none are what it says.
    """

    classes: Phrases
    prompts: tuple[str, ...] = ()
    other_prompts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The first phrase of each class."""
        return tuple(phrases[0] for phrases in self.classes)


def phrases_of_names(names: Sequence[str]) -> Phrases:
    """The names of classes of a dataset, letter by letter, as their words."""
    return tuple((name,) for name in names)


def phrases_of_words(entries: Sequence[str]) -> Phrases:
    """The phrases of classes that a user names in words.

    Args:
        entries: what each class is called; several phrases have `|` between them.

    Raises:
        SubDistillError: for no words, words that tell no classes apart, and what only a dataset with labels knows.
    """
    seen: dict[str, str] = {}
    found = []
    for entry in entries:
        if entry == "all" or entry.startswith(("superclass:", "subtask:")):
            raise SubDistillError(
                f'class {entry!r}: a zero-shot teacher takes words, such as "a ripe tomato", and no names of groups'
            )
        phrases = tuple(phrase.strip() for phrase in entry.split(BETWEEN_PHRASES) if phrase.strip())
        if not phrases:
            raise SubDistillError(f"class {entry!r}: expected a word or a phrase")
        for phrase in phrases:
            if (other := seen.setdefault(phrase.casefold(), entry)) != entry or entries.count(entry) > 1:
                raise SubDistillError(f"class {phrase!r} is given twice, in {other!r} and {entry!r}: give it once")
        found.append(phrases)
    if len(found) < 2:
        raise SubDistillError(f"expected at least two classes in words, found {list(entries)}")
    return tuple(found)
