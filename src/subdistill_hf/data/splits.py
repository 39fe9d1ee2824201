"""Which rows train, validate and test: chosen per class, the same for a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.class_names import normalised
from subdistill_hf.data.subtask import Subtask, SubtaskError

Outputs = np.ndarray[Any, np.dtype[np.int64]]
TEST_SEED = 0


def held_out_test(outputs: Outputs, subtask: Subtask, fraction: float | None) -> tuple[list[int], list[int]]:
    """Rows for the test, and the others; without a share all are others.

    The test rows do not depend on the seed of the run, so that runs with other seeds are tested on the same images.

    Args:
        outputs: class of each row, 0 to C - 1.
        subtask: the classes.
        fraction: share of each class, at least one row.
    """
    if fraction is None:
        return [], list(range(len(outputs)))
    test: list[int] = []
    for output, class_id in enumerate(subtask.dataset_ids):
        rows = np.flatnonzero(outputs == output)
        rows = np.random.default_rng([TEST_SEED, class_id, len(rows)]).permutation(rows)
        test += rows[: max(1, round(fraction * len(rows)))].tolist()
    chosen = set(test)
    return sorted(test), [row for row in range(len(outputs)) if row not in chosen]


def train_and_validation(
    outputs: Outputs, pool: list[int], subtask: Subtask, options: DataOptions, seed: int
) -> tuple[list[int], list[int]]:
    """Rows for training and for validation.

    Each class's rows are shuffled once; a share or a number takes the first of them, so that a smaller one is a part
    of a larger one.

    Args:
        outputs: class of each row, 0 to C - 1.
        pool: the rows that may be chosen.
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
    rows_of_pool = np.asarray(pool, dtype=np.int64)
    for output, (name, class_id) in enumerate(zip(subtask.names, subtask.dataset_ids, strict=True)):
        rows = rows_of_pool[outputs[rows_of_pool] == output]
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
