"""Images that are there more than once: none is trained on and tested with, and none is used twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.stored_images import (
    MOST_COMPARED_BYTES,
    Choice,
    Numbers,
    Repeated,
    chosen,
    encoded_image,
    find_repeated,
    with_length_of,
)


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
    notices = _not_compared(repeated)
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
        _leave_out(keep, ~_first(groups), part, columns, f"{name} images are copies of others", notices)
        kept.append(keep)
    return kept, notices


def without_copies(
    parts: Mapping[str, datasets.Dataset], known: Sequence[datasets.Dataset], columns: ImageColumns
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Leave out of each part the images that are known, or in a part before it, and all but the first of its own.

    Args:
        parts: what the images are called to the images.
        known: other images of the run, none of which is left out.
        columns: the columns of all.

    Returns:
        The parts with the images that are kept, and what was left out, in words.
    """
    known = [with_length_of(rows, list(parts.values()), columns.image) for rows in known]
    repeated = find_repeated([*known, *parts.values()], columns.image)
    notices = _not_compared(repeated)
    sizes = [sum(map(len, known)), *map(len, parts.values())]
    kept = {}
    for (name, rows), first in zip(
        parts.items(), np.split(_first(np.concatenate(repeated.groups)), np.cumsum(sizes))[1:], strict=False
    ):
        keep = np.ones(len(rows), bool)
        _leave_out(keep, ~first, rows, columns, f"{name} are copies of others", notices)
        kept[name] = chosen(rows, keep)
    return kept, notices


def _not_compared(repeated: Repeated) -> list[str]:
    """A notice where contents were not compared."""
    if repeated.compared:
        return []
    gib = MOST_COMPARED_BYTES / 2**30
    return [f"images were not compared by their contents: more than {gib:g} GiB of them have equal lengths"]


def _first(groups: Numbers) -> Choice:
    """Whether each image is the first of its group."""
    first = np.zeros(len(groups), bool)
    first[np.unique(groups, return_index=True)[1]] = True
    return first


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
