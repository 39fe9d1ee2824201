"""How names of classes are compared: spelling, synonyms, near matches, and ImageNet's WordNet ids."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

IMAGENET_SUBTASKS: Final[dict[str, tuple[int, ...]]] = {
    "wading-bird": (129, 130, 134, 135, 138),
    "retriever": (205, 206, 207, 208, 209),
    "working-dog": (242, 243, 246, 247, 248),
    "domestic-cat": (281, 282, 283, 284, 285),
    "bag": (414, 636, 728, 748, 797),
    "bottle": (440, 720, 737, 898, 907),
    "box": (478, 492, 519, 637, 709),
    "truck": (555, 569, 717, 864, 867),
}
"""The subtasks of the paper's experiments (arXiv 2601.05913), by class id of ImageNet-1k."""

NEAR = 0.7
"""How alike two spellings are that a message calls near (`difflib`'s ratio); "mammal" and "marimba" are 0.6."""
LETTER_BY_LETTER: Final = 4
WORDNET_ID = re.compile(r"n\d{8}")
AGREEMENT = 0.9
"""Share of the labels that must be ImageNet's: some collections renamed a few (`crane2`, `crane bird`)."""


@lru_cache
def unique_names(names: tuple[str, ...], ids: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """Names of which none is there twice: one that is repeated gets its id, as in "crane (134)".

    Args:
        names: of some classes or outputs.
        ids: of each another; by default its place.
    """
    ids = tuple(range(len(names))) if ids is None else ids
    counts = Counter(names)
    if len(counts) == len(names):
        return names
    found = tuple(name if counts[name] == 1 else f"{name} ({number})" for name, number in zip(names, ids, strict=True))
    if len(set(found)) == len(names):
        return found
    return tuple(f"{name} ({number})" for name, number in zip(names, ids, strict=True))


@lru_cache(maxsize=2**16)
def normalised(name: str) -> str:
    """A class name without case, underscores, surplus blanks, and hyphens between letters or digits.

    Other hyphens tell names apart, as in "-1" and "A-".
    """
    blank = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", name))
    return re.sub(r"(?<=[^\W_]) ?-+ ?(?=[^\W_])", " ", blank).strip().casefold()


def synonyms(name: str) -> set[str]:
    """The normalised names that a label stands for: ImageNet's "tabby, tabby cat" is both of its parts."""
    return {normalised(name), *_normalised_parts(name)}


def closeness(name: str, label: str) -> int:
    """How well a name fits a label: the higher, the better; 0 when it does not.

    4: letter by letter. 3: the same characters, accents composed or not. 2: the same but for its spelling, or one of
    a list of synonyms letter by letter. 1: one is a list of synonyms that has all names of the other, but for the
    spelling.
    """
    if name == label:
        return LETTER_BY_LETTER
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", label):
        return 3
    if not normalised(name) or not normalised(label):
        return 0
    if normalised(name) == normalised(label) or name in _parts(label) or label in _parts(name):
        return 2
    one, other = _normalised_parts(name), _normalised_parts(label)
    return int(bool(one) and bool(other) and (one <= other or other <= one))


def matching_labels(name: str, labels: Sequence[str]) -> list[int]:
    """Places of the labels that fit a name best: one, when there is no doubt. See `closeness`.

    Args:
        name: what the user wrote.
        labels: the labels, each of which may be a comma-separated list of synonyms.
    """
    found = [closeness(name, label) for label in labels]
    best = max(found, default=0)
    return [place for place, fits in enumerate(found) if fits == best > 0]


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown name: the names that come near it, or some of all."""
    by_name = {spelling: candidate for candidate in names for spelling in synonyms(candidate)}
    words = set(normalised(name).split())
    near = difflib.get_close_matches(normalised(name), list(by_name), n=5, cutoff=NEAR)
    near += [spelling for spelling in by_name if words and words <= set(spelling.split()) and spelling not in near]
    if near:
        return f"; nearest: {', '.join(list(dict.fromkeys(by_name[candidate] for candidate in near))[:5])}"
    return f"; there are {len(names)}, such as {', '.join(list(names)[:5])}"


@lru_cache(maxsize=2**16)
def _parts(name: str) -> tuple[str, ...]:
    """The entries of a comma-separated list of synonyms; none where it is no list."""
    parts = [part.strip() for part in name.split(",")]
    return tuple(part for part in parts if part) if len(parts) > 1 else ()


@lru_cache(maxsize=2**16)
def _normalised_parts(name: str) -> frozenset[str]:
    return frozenset(normalised(part) for part in name.split(",") if normalised(part))


@lru_cache
def _imagenet(classes: int) -> Any | None:
    """timm's table of the ImageNet with this many classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    return None if subset is None else ImageNetInfo(subset)


@lru_cache
def wordnet_ids(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The WordNet id of each class, where the classes are ImageNet's; `None` where they are not.

    They are when every name is a WordNet id, or when their number is that of ImageNet-1k (or of the releases with 11
    to 22 thousand classes) and nearly all of them agree, place by place, with the names there, and no other one is the
    name of another class there.

    Args:
        names: all class names of a dataset or a teacher, in the order of their ids.
    """
    if names and all(WORDNET_ID.fullmatch(name) for name in names):
        return names
    table = _imagenet(len(names)) if len(names) >= 1000 else None
    if table is None:
        return None
    official = [synonyms(description) for description in table.label_descriptions()]
    others = [synonyms(name) for name, own in zip(names, official, strict=True) if synonyms(name).isdisjoint(own)]
    elsewhere = not set().union(*others).isdisjoint(set().union(*official))
    agreeing = len(names) - len(others) >= AGREEMENT * len(names)
    return tuple(table.label_names()) if agreeing and not elsewhere else None


def imagenet_name(wordnet_id: str) -> str:
    """The name of a WordNet id of ImageNet-1k, such as "tabby, tabby cat"; the id itself when it is another's."""
    table = _imagenet(1000)
    assert table is not None
    return str(table.label_name_to_description(wordnet_id)) if wordnet_id in table.label_names() else wordnet_id


def subtask_wordnet_ids(name: str) -> Sequence[str]:
    """The classes of one of the paper's subtasks."""
    table = _imagenet(1000)
    assert table is not None
    return [table.index_to_label_name(class_id) for class_id in IMAGENET_SUBTASKS[name]]
