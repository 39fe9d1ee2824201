"""Which images of a subtask carry a spurious mark: some training images of some classes, and all test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.marks import MarkedRows
from subdistill_hf.data.splits import Outputs
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.errors import DataError

MARK_SEED = 1


@dataclass(frozen=True)
class Marking:
    """The marked images of a subtask (METHOD, "Quality of data").

    A student that takes the mark for the class fails on the test images, which carry it whatever they show.

    Attributes:
        mark: a key of `MARKS`.
        outputs: the student's outputs of the marked classes.
        share: of their training and validation images that carry the mark.
        train: the marked training images.
        validation: the marked validation images.
        test: all test images.
    """

    mark: str
    outputs: tuple[int, ...]
    share: float
    train: MarkedRows
    validation: MarkedRows
    test: MarkedRows

    def described(self, subtask: Subtask) -> dict[str, Any]:
        """What the report says of it: the mark, its classes, its share, and how many images carry it."""
        return {
            "name": self.mark,
            "classes": [subtask.names[output] for output in self.outputs],
            "share": self.share,
            "train_images": len(self.train.rows),
            "validation_images": len(self.validation.rows),
        }

    def sentence(self, subtask: Subtask) -> str:
        """The mark and what carries it, for the terminal."""
        names = ", ".join(subtask.names[output] for output in self.outputs)
        return f"{self.mark}: on {len(self.train.rows)} training images of {names}, and all test images"


def mark_rows(
    options: DataOptions,
    subtask: Subtask,
    marked: Sequence[int],
    outputs: Outputs,
    parts: tuple[Sequence[int], Sequence[int]],
    test_images: int,
    seed: int,
) -> Marking:
    """Choose the images that carry the mark.

    Each image of a marked class draws a number that depends on the seed and the image alone; in each part, those with
    the smallest carry the mark. So the marked images of a smaller share are among those of a larger one.

    Args:
        options: the mark and the share.
        subtask: the classes.
        marked: the student's outputs of the marked classes.
        outputs: class of each row of the train split, 0 to C - 1.
        parts: the rows for training, and those for validation.
        test_images: their number.
        seed: of the draws.

    Raises:
        DataError: when every class is marked.
    """
    assert options.mark is not None
    if len(marked) == len(subtask.names):
        raise DataError(
            "mark_classes are all classes of the subtask: a mark of each tells none from another; give fewer"
        )
    mark = options.mark
    draws = np.empty(len(outputs))
    for output in marked:
        own = np.flatnonzero(outputs == output)
        draws[own] = np.random.default_rng([seed, MARK_SEED, subtask.dataset_ids[output]]).random(len(own))

    def chosen(rows: Sequence[int]) -> MarkedRows:
        places: list[int] = []
        for output in marked:
            of_class = [place for place, row in enumerate(rows) if outputs[row] == output]
            of_class.sort(key=lambda place: draws[rows[place]])
            places += of_class[: round(options.mark_share * len(of_class))]
        return MarkedRows(mark, frozenset(places))

    every_test_image = MarkedRows(mark, frozenset(range(test_images)))
    return Marking(mark, tuple(marked), options.mark_share, chosen(parts[0]), chosen(parts[1]), every_test_image)
