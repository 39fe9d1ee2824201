"""Images as they are stored: what identifies them, and which are there twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from subdistill_hf.data.columns import ImageColumns

BATCH = 1000
MOST_COMPARED_BYTES = 2**30
"""Images of equal length are compared by their contents as long as these are not more bytes than this, in all."""
MOST_DIGESTED_BYTES = 2**33

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Choice = np.ndarray[Any, np.dtype[np.bool_]]
"""Whether each of several images is chosen."""


def chosen(rows: datasets.Dataset, which: Choice) -> datasets.Dataset:
    """The rows that are chosen; the dataset itself where all are."""
    return rows if which.all() else rows.select(np.flatnonzero(which))


def encoded_image(rows: datasets.Dataset, column: str, index: int) -> dict[str, Any]:
    """An image as it is stored: its `bytes`, or the `path` of its file, or both."""
    return rows.cast_column(column, datasets.Image(decode=False))[index][column] or {}


def digest_of_rows(rows: datasets.Dataset, columns: ImageColumns) -> str:
    """A digest of encoded images and their labels, in hexadecimal digits."""
    digest = hashlib.sha256()
    for content, label in zip(content_digests(rows, columns.image), rows[columns.label][:], strict=True):
        digest.update(content + f"{label};".encode())
    return digest.hexdigest()


def content_digests(rows: datasets.Dataset, image: str) -> Iterator[bytes]:
    """A digest of the content of each image."""
    return (hashlib.sha256(content).digest() for content in _contents(rows, image))


def identity_of_rows(rows: datasets.Dataset, image: str) -> str:
    """The identity of images: a digest of their contents.

    Beyond `MOST_DIGESTED_BYTES` it is one of the lengths and times of their files, and of what `datasets` knows of
    the table.
    """
    stored = _stored(rows, image)
    if int(stored.lengths.clip(0).sum()) <= MOST_DIGESTED_BYTES:
        digest = hashlib.sha256()
        for content in content_digests(rows, image):
            digest.update(content)
        return digest.hexdigest()
    digest = hashlib.sha256(rows._fingerprint.encode())
    for numbers in (stored.lengths, stored.files, stored.times):
        digest.update(numbers.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Repeated:
    """Which images of several datasets are the same.

    Attributes:
        groups: for each dataset the group of each image; images with the same content have the same group.
        compared: whether contents were compared, and not file numbers alone.
    """

    groups: tuple[Numbers, ...]
    compared: bool


def find_repeated(parts: Sequence[datasets.Dataset], image: str, most_bytes: int | None = None) -> Repeated:
    """Find images that are there more than once, byte by byte; another encoding of the same picture is not found.

    Only images of equal length are read, and only if these have no more than some bytes in all; otherwise the same
    file under several names is found, and nothing else.

    Args:
        parts: datasets with an image column.
        image: its name.
        most_bytes: that are read; `MOST_COMPARED_BYTES` with `None`.
    """
    stored = [_stored(part, image) for part in parts]
    lengths = np.concatenate([each.lengths for each in stored]) if stored else np.empty(0, np.int64)
    values, counts = np.unique(lengths, return_counts=True)
    shared = np.isin(lengths, values[(counts > 1) & (values >= 0)])
    compared = int(lengths[shared].sum()) <= (MOST_COMPARED_BYTES if most_bytes is None else most_bytes)
    groups = np.arange(len(lengths))
    first: dict[Any, int] = {}
    begin = 0
    for part, each in zip(parts, stored, strict=True):
        places = np.flatnonzero(shared[begin : begin + len(part)])
        keys: Iterator[Any]
        if compared:
            keys = (hashlib.blake2b(content, digest_size=16).digest() for content in _contents(part, image, places))
        else:
            keys = iter(each.files[places].tolist())
        for place, key in zip(places.tolist(), keys, strict=True):
            if key != 0:  # no file, and its content is not looked at
                groups[begin + place] = first.setdefault(key, begin + place)
        begin += len(part)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return Repeated(tuple(np.split(groups, ends)), compared)


def with_length_of(rows: datasets.Dataset, others: Sequence[datasets.Dataset], image: str) -> datasets.Dataset:
    """The images that are as long as one of others: no other image is a copy of those."""
    if not others:
        return rows.select([])
    lengths = np.concatenate([_stored(other, image).lengths for other in others])
    return rows.select(np.flatnonzero(np.isin(_stored(rows, image).lengths, lengths)))


@dataclass(frozen=True)
class _Stored:
    """Of each image: its length in bytes, -1 for none; number and time of its file, 0 for none."""

    lengths: Numbers
    files: Numbers
    times: Numbers


def _stored(rows: datasets.Dataset, image: str) -> _Stored:
    lengths, files, times = (np.zeros(len(rows), np.int64) for _ in range(3))
    begin = 0
    for content, path in _columns(rows, image):
        own = pc.fill_null(pc.binary_length(content), -1).to_numpy(zero_copy_only=False)
        lengths[begin : begin + len(own)] = own
        for place in np.flatnonzero(own < 0).tolist():
            name = path[place].as_py()
            try:
                found = Path(name).stat() if name else None
            except (OSError, ValueError):  # it is missed when it is decoded
                found = None
            if found is not None:
                lengths[begin + place], times[begin + place] = found.st_size, found.st_mtime_ns
                files[begin + place] = hash((found.st_dev, found.st_ino)) or 1
        begin += len(own)
    return _Stored(lengths, files, times)


def _columns(rows: datasets.Dataset, image: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """The contents and paths of images, a batch at a time; nothing is copied."""
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format("arrow")
    for batch in encoded.iter(BATCH):
        column = batch[image].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        yield column.field("bytes"), column.field("path")


def _contents(rows: datasets.Dataset, image: str, places: Numbers | None = None) -> Iterator[bytes]:
    """The encoded images, or those at some places; nothing for a file that is not there."""
    chosen = rows if places is None else rows.select(places)
    for content, path in _columns(chosen, image):
        for inside, name in zip(content, path, strict=True):
            if inside.is_valid:
                yield inside.as_py()
                continue
            place = name.as_py()
            yield Path(place).read_bytes() if place and Path(place).is_file() else b""
