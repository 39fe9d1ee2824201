"""The classes of a zero-shot teacher: words and phrases, and the texts that they are put into."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from subdistill_hf.config.class_entries import is_group
from subdistill_hf.errors import SubDistillError

BETWEEN_PHRASES: Final = "|"

Phrases = tuple[tuple[str, ...], ...]
"""The phrases of each class."""


@dataclass(frozen=True)
class Words:
    """The classes of a zero-shot teacher, and what else it is asked.

    Attributes:
        classes: the phrases of each class.
        prompts: texts with `{}` for the phrase, whose embeddings are averaged; where empty, those that suit the model.
        other_prompts: texts of images of none of the classes; where empty, usual ones. A model with sigmoids needs
            none: the odds of each class against none are what it says.
        class_names: of the classes; where empty, the first phrase of each.
    """

    classes: Phrases
    prompts: tuple[str, ...] = ()
    other_prompts: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.class_names or tuple(phrases[0] for phrases in self.classes)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Words:
        """Those of `dataclasses.asdict`, as JSON has them.

        Raises:
            ValueError: for anything else.
        """
        try:
            classes = tuple(tuple(map(str, phrases)) for phrases in given["classes"])
            texts = {name: tuple(map(str, given[name])) for name in ("prompts", "other_prompts", "class_names")}
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected classes, prompts, other_prompts and class_names as lists: {error}") from error
        return cls(classes, **texts)


def phrases_of_names(names: Sequence[str]) -> Phrases:
    """The names of classes of a dataset, letter by letter, as their words."""
    return tuple((name,) for name in names)


def names_and_phrases(entries: Sequence[str]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The names of classes of a dataset with labels, and the phrases of those that are given some.

    Args:
        entries: what each class is called in the dataset, or its name and phrases for it, with `|` between them.

    Returns:
        The names, and name to phrases.

    Raises:
        SubDistillError: for a class that is given twice, a phrase of two classes, or phrases for a group of classes.
    """
    found: dict[str, tuple[str, ...]] = {}
    owners: dict[str, str] = {}
    for entry in entries:
        name, *phrases = (part.strip() for part in str(entry).split(BETWEEN_PHRASES))
        if name in found:
            raise SubDistillError(f"class {name!r} is given twice: give it once")
        found[name] = tuple(filter(None, phrases))
        if found[name] and is_group(name):
            raise SubDistillError(f"class {entry!r}: words are for one class, and {name!r} may be several")
        for phrase in found[name]:
            if (owner := owners.setdefault(phrase.casefold(), name)) != name:
                raise SubDistillError(f"{phrase!r} is given for two classes, {owner!r} and {name!r}: give it once")
    return tuple(found), {name: phrases for name, phrases in found.items() if phrases}


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
        if is_group(entry):
            raise SubDistillError(
                f'class {entry!r}: a zero-shot teacher takes words, such as "a ripe tomato", and no names of groups'
            )
        phrases = tuple(phrase.strip() for phrase in entry.split(BETWEEN_PHRASES) if phrase.strip())
        if not phrases:
            raise SubDistillError(f"class {entry!r}: expected a word or a phrase")
        for phrase in phrases:
            if phrase.casefold() in seen:
                where = f"in {seen[phrase.casefold()]!r} and {entry!r}"
                raise SubDistillError(f"class {phrase!r} is given twice, {where}: give it once")
            seen[phrase.casefold()] = entry
        found.append(phrases)
    if len(found) < 2:
        raise SubDistillError(f"expected at least two classes in words, found {list(entries)}")
    return tuple(found)


def check_no_ids(classes: Phrases) -> None:
    """Refuse numbers and WordNet ids as words: they are classes of a dataset, and say nothing in a text.

    Raises:
        SubDistillError: naming the class, and what to do where digits are what the images show.
    """
    for phrases in classes:
        if any(re.fullmatch(r"n?\d+", phrase) for phrase in phrases):
            raise SubDistillError(
                f'class {phrases[0]!r}: a zero-shot teacher takes words, such as "a ripe tomato", and has no list '
                "of classes. Where the images show digits, say so with --prompts, such as 'a photo of the number {}.'"
            )
