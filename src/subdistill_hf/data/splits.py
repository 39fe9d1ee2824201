"""Which rows train, validate and test: chosen per class, the same for a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.class_names import normalised
from subdistill_hf.data.stored_images import Choice
from subdistill_hf.data.subtask import Subtask, SubtaskError

Outputs = np.ndarray[Any, np.dtype[np.int64]]
TEST_SEED = 0


def held_out_test(outputs: Outputs, contents: Sequence[bytes], fraction: float) -> Choice:
    """Which rows are held out for the test: of each class the contents that are first by a digest of their own.

    The choice in a class depends on the images of this class alone, and on neither the seed of the run nor the other
    classes. So a teacher that was fitted to all classes was fitted to no test image of a student of some of them. For
    that it is made before images are left out because they are repeated, which other classes have a part in.

    Args:
        outputs: class of each row.
        contents: a digest of each image.
        fraction: share of each class, at least one content.
    """
    held_out = np.zeros(len(outputs), bool)
    for output in np.unique(outputs):
        rows = np.flatnonzero(outputs == output)
        order = sorted({contents[row] for row in rows.tolist()}, key=_place_of)
        chosen = set(order[: max(1, round(fraction * len(order)))])
        held_out[rows] = [contents[row] in chosen for row in rows.tolist()]
    return held_out


def _place_of(content: bytes) -> bytes:
    """Where an image stands in the order that the test is taken from."""
    return hashlib.sha256(b"%d:%b" % (TEST_SEED, content)).digest()


def train_and_validation(
    outputs: Outputs, subtask: Subtask, options: DataOptions, seed: int
) -> tuple[list[int], list[int]]:
    """Rows for training and for validation.

    Each class's rows are shuffled once; a share or a number takes the first of them, so that a smaller one is a part
    of a larger one.

    Args:
        outputs: class of each row that may be chosen, 0 to C - 1.
        subtask: the classes.
        options: share or number of training images, and share of them for validation (by default
            `VALIDATION_FRACTION`).
        seed: of the shuffle.

    Raises:
        SubtaskError: for a class with fewer than two rows.
    """
    train: list[int] = []
    validation: list[int] = []
    share = options.validation_share
    for output, (name, class_id) in enumerate(zip(subtask.names, subtask.dataset_ids, strict=True)):
        rows = np.flatnonzero(outputs == output)
        if len(rows) < 2:
            alike = [other for other in subtask.names if other != name and normalised(other) == normalised(name)]
            also = f"; {alike[0]!r} is another class: give both one name if they are the same" if alike else ""
            raise SubtaskError(f"class {name!r} has {len(rows)} training images: expected at least 2{also}")
        limit = options.train_images_per_class
        if options.train_fraction is not None:
            limit = max(2, round(options.train_fraction * len(rows)))
        rows = np.random.default_rng([seed, class_id]).permutation(rows)[:limit]
        held_out = min(max(1, round(share * len(rows))), len(rows) - 1) if share else 0
        validation += rows[:held_out].tolist()
        train += rows[held_out:].tolist()
    return sorted(train), sorted(validation)
