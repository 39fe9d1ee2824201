"""How names of classes are compared: spelling, synonyms, near matches."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence


def normalised(name: str) -> str:
    """A class name without case, underscores, hyphens and surplus blanks."""
    return re.sub(r"[\s_\-]+", " ", name).strip().lower()


def synonyms(name: str) -> set[str]:
    """The normalised names that a label stands for: ImageNet's "tabby, tabby cat" is both of its parts."""
    return {normalised(name), *(normalised(part) for part in name.split(",") if part.strip())}


def matching_labels(name: str, labels: Sequence[str]) -> list[int]:
    """Places of the labels that a name may mean: one, when there is no doubt.

    A label that is the name, letter by letter, is meant. Otherwise a label that is the same but for its spelling, or
    has the name among its synonyms letter by letter, may be meant; and if there is none, one that has it among its
    synonyms but for the spelling.

    Args:
        name: what the user wrote.
        labels: the labels, each of which may be a comma-separated list of synonyms.
    """
    if name in labels:
        return [place for place, label in enumerate(labels) if label == name]
    close = [
        place
        for place, label in enumerate(labels)
        if normalised(label) == normalised(name) or name in [part.strip() for part in label.split(",")]
    ]
    return close or [place for place, label in enumerate(labels) if normalised(name) in synonyms(label)]


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown name: the names that come near it, or some of all."""
    by_name = {spelling: candidate for candidate in names for spelling in synonyms(candidate)}
    near = difflib.get_close_matches(normalised(name), list(by_name), n=5, cutoff=0.5)
    if near:
        return f"; nearest: {', '.join(dict.fromkeys(by_name[candidate] for candidate in near))}"
    return f"; there are {len(names)}, such as {', '.join(list(names)[:5])}"
