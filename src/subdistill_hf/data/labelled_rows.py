"""Rows of images with the student's outputs as their labels, and rows without a label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import datasets

from subdistill_hf.data.cached_rows import encoded_as_usual
from subdistill_hf.data.columns import ImageColumns, Label
from subdistill_hf.data.subtask import Subtask

UNLABELLED = -1
"""The label of a row without a class, as `datasets.ClassLabel` has it."""


def with_subtask_labels(
    rows: datasets.Dataset, columns: ImageColumns, subtask: Subtask, labels: Sequence[Label]
) -> datasets.Dataset:
    """Replace the label column by the student's outputs.

    Args:
        rows: image and label, of the subtask's classes alone.
        columns: their columns.
        subtask: the classes.
        labels: how the label column spells them, in the order of the student's outputs.
    """
    outputs = {label: output for output, label in enumerate(labels)}
    own = [outputs[label] for label in rows[columns.label][:]]
    return with_outputs(as_images(rows, columns.image), columns, subtask, own)


def without_labels(
    rows: datasets.Dataset, image: str, columns: ImageColumns, names: Sequence[str]
) -> datasets.Dataset:
    """Images in the schema of a subtask's images, each without a class.

    Args:
        rows: the images.
        image: the column that they are in.
        columns: the columns of the subtask's images.
        names: of the student's outputs.
    """
    images = as_images(rows, image)
    if image != columns.image:
        images = images.rename_column(image, columns.image)
    return with_names(images, columns, names, UNLABELLED)


def with_outputs(
    images: datasets.Dataset, columns: ImageColumns, subtask: Subtask, outputs: Sequence[int]
) -> datasets.Dataset:
    """Images with a label column of the student's outputs, or of `UNLABELLED`."""
    with _without_bars():
        return _labelled(images.select_columns([columns.image]), columns, outputs, subtask.names)


def with_names(
    rows: datasets.Dataset, columns: ImageColumns, names: Sequence[str], output: int | None = None
) -> datasets.Dataset:
    """The same images with more names of outputs.

    Args:
        rows: images and labels.
        columns: their columns.
        names: the names of all outputs.
        output: the label of all; by default each keeps its own.
    """
    labels = rows[columns.label][:] if output is None else [output] * len(rows)
    with _without_bars():
        return _labelled(rows.select_columns([columns.image]), columns, labels, names)


def _labelled(
    images: datasets.Dataset, columns: ImageColumns, outputs: Sequence[int], names: Sequence[str]
) -> datasets.Dataset:
    """Images alone with a label column."""
    label = datasets.ClassLabel(names=list(names))
    if not len(images):  # datasets cannot add a column to a selection of none
        return datasets.Dataset.from_dict(
            {columns.image: [], columns.label: []},
            features=datasets.Features({**images.features, columns.label: label}),
        )
    return images.add_column(columns.label, list(outputs), feature=label)


def as_images(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """The image column alone, as `datasets.Image` whatever it was: bytes, structs, or images not to be decoded."""
    with _without_bars():
        images = rows.select_columns([column])
        kind = images.features[column]
        if isinstance(kind, dict) and set(kind) != {"bytes", "path"}:
            images = images.map(
                lambda row: {column: encoded_as_usual(row[column])},
                features=datasets.Features({column: datasets.Image(decode=False)}),
            )
        if kind != datasets.Image():
            images = images.cast_column(column, datasets.Image())
        return images


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bar of `datasets` for a step that takes no time."""
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
