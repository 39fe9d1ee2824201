"""The entries of `classes` that stand for several classes of a dataset."""

from __future__ import annotations

from typing import Final

SUPERCLASS_PREFIX: Final = "superclass:"
SUBTASK_PREFIX: Final = "subtask:"
ALL_CLASSES: Final = "all"


def is_group(entry: str) -> bool:
    """Whether an entry stands for several classes of a dataset."""
    return entry == ALL_CLASSES or entry.startswith((SUPERCLASS_PREFIX, SUBTASK_PREFIX))
