"""What a user should know of a dataset: images that are not used, classes that are not tested."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from subdistill_hf.data.subtask import Subtask
from subdistill_hf.data.tables import Source

logger = logging.getLogger(__name__)


class Notices:
    """Notes on a dataset, logged as they are found, and kept in `said`."""

    def __init__(self, first: Sequence[str]) -> None:
        self.said: list[str] = []
        self.add(first)

    def add(self, notices: Sequence[str]) -> None:
        """Log and keep some more."""
        for notice in notices:
            logger.warning(notice)
            self.said.append(notice)


def unused_splits(source: Source, label: str, train: str, test: str | None) -> list[str]:
    """The splits that are not used, and the images of the others that have no class."""
    notices = []
    for split in source.splits:
        if split not in (train, test):
            count = source.count(split)
            notices.append(f"not used: the split {split}{'' if count is None else f' of {count} images'}")
        elif without := source.without_class(split, label):
            notices.append(
                f"left out: {without} images of the split {split} without a class (no label, a blank one, or one "
                "below 0)"
            )
    return notices


def untrained_classes(subtask: Subtask, outputs: Sequence[int]) -> list[str]:
    """The classes that the teacher sees in no training image, by its answers to these."""
    names = _without_images(subtask, outputs)
    return [f"no training images of {', '.join(names)}, by the teacher's answers"] if names else []


def untested_classes(subtask: Subtask, outputs: Sequence[int]) -> list[str]:
    """The classes that no test image shows, by the outputs of these images."""
    names = _without_images(subtask, outputs)
    return [f"no test images of {', '.join(names)}: each figure is that of the other classes"] if names else []


def _without_images(subtask: Subtask, outputs: Sequence[int]) -> list[str]:
    """The names of the classes that are not among the outputs of some images."""
    shown = set(outputs)
    return [name for output, name in enumerate(subtask.names) if output not in shown]
