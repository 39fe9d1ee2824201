"""How names of classes are compared: spelling, synonyms, near matches, and ImageNet's WordNet ids."""

from __future__ import annotations

import difflib
import re
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

WORDNET_ID = re.compile(r"n\d{8}")
AGREEMENT = 0.9
"""Share of the labels that must be ImageNet's: some collections renamed a few (`crane2`, `crane bird`)."""


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
    to 22 thousand classes) and nearly all of them agree, place by place, with the names there.

    Args:
        names: all class names of a dataset or a teacher, in the order of their ids.
    """
    if names and all(WORDNET_ID.fullmatch(name) for name in names):
        return names
    table = _imagenet(len(names)) if len(names) >= 1000 else None
    if table is None:
        return None
    agreeing = sum(
        not synonyms(name).isdisjoint(synonyms(official))
        for name, official in zip(names, table.label_descriptions(), strict=True)
    )
    return tuple(table.label_names()) if agreeing >= AGREEMENT * len(names) else None


def imagenet_name(wordnet_id: str) -> str:
    """What a WordNet id of ImageNet-1k is called, such as "tabby, tabby cat"; the id itself when it is another's."""
    table = _imagenet(1000)
    assert table is not None
    return str(table.label_name_to_description(wordnet_id)) if wordnet_id in table.label_names() else wordnet_id


def subtask_wordnet_ids(name: str) -> Sequence[str]:
    """The classes of one of the paper's subtasks."""
    table = _imagenet(1000)
    assert table is not None
    return [table.index_to_label_name(class_id) for class_id in IMAGENET_SUBTASKS[name]]
