"""Chosen rows in the cache of `datasets`, where a later run and other processes find them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets.packaged_modules.generator.generator import Generator

from subdistill_hf.data.columns import ImageColumns, Label

MOST_BUFFERED = 1000
"""Images of a stream that are held in memory to draw from."""


def prepared(builder: Any, split: str, features: datasets.Features, processes: int | None = None) -> datasets.Dataset:
    """The rows that a builder keeps of a split, in the cache; it may be nothing, where test labels are secret."""
    builder.download_and_prepare(verification_mode="no_checks", num_proc=processes)
    if builder.info.splits[split].num_examples == 0:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return builder.as_dataset(split)


def stored(
    builder: Any, split: str, columns: ImageColumns, labels: Sequence[Label], features: datasets.Features
) -> datasets.Dataset:
    """Write the chosen rows of a stream to the cache; other columns are not kept."""
    kept = datasets.Features({columns.image: datasets.Image(), columns.label: features[columns.label]})
    # lists would be taken for shards, and the rows be ordered by them: the labels are a tuple
    arguments = {"builder": builder, "split": split, "columns": columns, "labels": tuple(labels)}
    key = datasets.fingerprint.Hasher.hash([builder.cache_dir, split, list(kept), list(labels)])
    writer = Generator(features=kept, generator=_chosen, gen_kwargs=arguments, config_id=f"stream-{key}")
    return prepared(writer, "train", kept)  # its only split, whatever was read


def _chosen(builder: Any, split: str, columns: ImageColumns, labels: tuple[Label, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a stream with one of these labels; their images are carried as they are encoded."""
    stream = builder.as_streaming_dataset(split)
    if stream.features is None or isinstance(stream.features[columns.image], datasets.Image):
        stream = stream.cast_column(columns.image, datasets.Image(decode=False))
    wanted = set(labels)
    for row in stream:
        if row[columns.label] in wanted:
            yield {columns.image: _with_bytes(row[columns.image]), columns.label: row[columns.label]}


def stored_images(builder: Any, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
    """Write some images of a stream to the cache, whatever they show; other columns are not kept.

    They are drawn from a buffer of as many images as are wanted (at most `MOST_BUFFERED`), so that an
    order of the stream counts less.

    Args:
        builder: of the stream.
        split: which.
        column: of the images.
        most: how many are kept.
        seed: of the draw.
    """
    kept = datasets.Features({column: datasets.Image()})
    arguments = {"builder": builder, "split": split, "column": column, "most": most, "seed": seed}
    key = datasets.fingerprint.Hasher.hash([builder.cache_dir, split, column, most, seed])
    writer = Generator(features=kept, generator=_drawn, gen_kwargs=arguments, config_id=f"images-{key}")
    return prepared(writer, "train", kept)


def _drawn(builder: Any, split: str, column: str, most: int, seed: int) -> Iterator[dict[str, Any]]:
    """Some images of a stream; carried as they are encoded."""
    stream = builder.as_streaming_dataset(split)
    if stream.features is None or isinstance(stream.features[column], datasets.Image):
        stream = stream.cast_column(column, datasets.Image(decode=False))
    shuffled = stream.select_columns([column]).shuffle(seed, buffer_size=min(most, MOST_BUFFERED))
    for row in shuffled.take(most):
        yield {column: _with_bytes(row[column])}


def encoded_as_usual(image: Any) -> dict[str, Any] | None:
    """The value that `datasets.Image` keeps of bytes, or of a struct of bytes and whatever else."""
    if isinstance(image, bytes):
        return {"bytes": image, "path": None}
    return None if image is None else {"bytes": image.get("bytes"), "path": image.get("path")}


def _with_bytes(image: Any) -> dict[str, Any] | None:
    """An encoded image that needs no network: read now, unless it is a file of this machine."""
    image = encoded_as_usual(image)
    if image is None or (image["bytes"] is None and not image["path"]):
        return None
    if image["bytes"] is not None or Path(image["path"]).is_file():
        encoded: dict[str, Any] | None = image
        return encoded
    with fsspec.open(image["path"], "rb") as file:
        return {"bytes": file.read(), "path": image["path"]}
