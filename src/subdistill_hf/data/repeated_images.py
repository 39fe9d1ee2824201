"""Images that are there more than once: none is trained on and tested with, and none is used twice."""

from __future__ import annotations

import datasets
import numpy as np

from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.stored_images import MOST_COMPARED_BYTES, Choice, Numbers, encoded_image, find_repeated


def without_repeated(
    train: datasets.Dataset, test: datasets.Dataset | None, columns: ImageColumns
) -> tuple[list[Choice], list[str]]:
    """Leave out images that are repeated: of the training those that are test images, and of both all but the first.

    Images that are there under several classes are left out altogether. See `find_repeated` for what is compared.

    Args:
        train: the rows for training, validation, and a test that is held out.
        test: the rows of an official test split.
        columns: their columns.

    Returns:
        Which rows of each are kept, and what was left out, in words.
    """
    parts = [train] if test is None else [train, test]
    repeated = find_repeated(parts, columns.image)
    notices = []
    if not repeated.compared:
        gib = MOST_COMPARED_BYTES / 2**30
        notices.append(f"images were not compared by their contents: more than {gib:g} GiB of them have equal lengths")
    kept: list[Choice] = []
    groups_of_test = repeated.groups[1] if test is not None else np.empty(0, np.int64)
    for part, groups, name in zip(parts, repeated.groups, ("training", "test"), strict=False):
        keep = np.ones(len(part), bool)
        if name == "training":
            _leave_out(
                keep, np.isin(groups, groups_of_test), part, columns, "training images are test images", notices
            )
        labels = np.asarray(part[columns.label][:], dtype=np.int64)
        contrary = _with_several_labels(groups, labels)
        _leave_out(keep, contrary, part, columns, f"{name} images are there under several classes", notices)
        later = np.ones(len(part), bool)
        later[np.unique(groups, return_index=True)[1]] = False
        _leave_out(keep, later, part, columns, f"{name} images are copies of others", notices)
        kept.append(keep)
    return kept, notices


def _with_several_labels(groups: Numbers, labels: Numbers) -> Choice:
    """Whether each image's group has images of other labels."""
    pairs = np.unique(np.stack([groups, labels]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    return np.isin(groups, values[counts > 1])


def _leave_out(
    keep: Choice,
    places: Choice,
    rows: datasets.Dataset,
    columns: ImageColumns,
    why: str,
    notices: list[str],
) -> None:
    """Note that rows are left out, those that were not before, and say so."""
    new = np.flatnonzero(keep & places)
    if len(new):
        keep[new] = False
        path = encoded_image(rows, columns.image, int(new[0])).get("path")
        notices.append(f"left out: {len(new)} {why}{f', such as {path}' if path else ''}")
