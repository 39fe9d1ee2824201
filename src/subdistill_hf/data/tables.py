"""Datasets as tables: what each can be asked for, the embedded ones, those of this machine, and streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import datasets
import numpy as np

from subdistill_hf.data.cached_rows import stored, stored_images
from subdistill_hf.data.columns import ImageColumns, Label
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.data.embedded.glyph_dataset import glyphs_at, load_glyphs
from subdistill_hf.data.folder_layout import in_usual_order
from subdistill_hf.data.parquet_files import count_without_class, features_of_all, unusable_columns
from subdistill_hf.errors import DataError


class ImageSource(Protocol):
    """Images that can be read in parts, with classes or without.

    Attributes:
        features: the types of its columns.
        splits: the names of its splits.
        revision: the commit, for a dataset of the Hub.
        notices: what of it is not used, or was taken for granted.
        unusable: for each split the columns that not all its parts have alike, and what to say of them.
    """

    features: datasets.Features
    splits: tuple[str, ...]
    revision: str | None
    notices: Sequence[str]
    unusable: Mapping[str, Mapping[str, str]]

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """At most so many images of a split, whatever they show: one column, nothing decoded.

        Drawn from all rows with the seed; of a stream from its beginning, see `StreamSource`.
        """

    def count(self, split: str) -> int | None:
        """The number of rows of a split; `None` where it is not known before they are read."""


class Source(ImageSource, Protocol):
    """A dataset whose images have classes."""

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split, without reading an image."""

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, in the order of the split: image and label, nothing decoded."""

    def some_rows(
        self, split: str, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
    ) -> datasets.Dataset:
        """At most so many rows of each of these labels, drawn with the seed: image and label, nothing decoded."""

    def without_class(self, split: str, name: str) -> int:
        """The number of rows whose label in a column names no class, as far as that is known without reading images.

        Raises:
            DataError: for labels beyond the names of the classes.
        """


def draw_rows(rows: int, most: int, seed: int) -> list[int]:
    """The places of some rows, in rising order; those of a smaller number are among those of a larger one."""
    return sorted(np.random.default_rng(seed).permutation(rows)[:most].tolist())


def drawn_rows(
    rows: datasets.Dataset, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
) -> datasets.Dataset:
    """At most so many rows of each label."""
    return rows.select(drawn_places(rows[columns.label][:], labels, each, seed))


def drawn_places(own: Sequence[Label | None], labels: Sequence[Label], each: int, seed: int) -> list[int]:
    """The places of at most so many rows of each label, in rising order.

    Args:
        own: the label of each row.
        labels: those that are wanted.
        each: how many of each.
        seed: of the draw.
    """
    places: list[int] = []
    for number, label in enumerate(labels):
        of_label = [place for place, found in enumerate(own) if found == label]
        places += [of_label[index] for index in draw_rows(len(of_label), each, seed + number)]
    return sorted(places)


class GlyphSource:
    """glyphs-100: each image depends on its place alone, so only those asked for are made."""

    per_class: ClassVar[dict[str, int]] = {"train": 500, "test": 100}
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=list(CLASS_NAMES)),
            "coarse_label": datasets.ClassLabel(names=list(SUPERCLASS_NAMES)),
        }
    )
    splits: tuple[str, ...] = ("train", "test")
    revision: str | None = None
    notices: Sequence[str] = ()
    unusable: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    def __init__(self, processes: int | None = None) -> None:
        self.processes = processes

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split, without making an image."""
        finer = 1 if name == "fine_label" else len(CLASS_NAMES) // len(SUPERCLASS_NAMES)
        return [class_id // finer for class_id in range(len(CLASS_NAMES)) for _ in range(self.per_class[split])]

    def count(self, split: str) -> int:
        """The number of images of a split."""
        return len(CLASS_NAMES) * self.per_class[split]

    def without_class(self, split: str, name: str) -> int:
        """No image."""
        return 0

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The images of these classes."""
        chosen = load_glyphs([int(label) for label in labels], num_proc=self.processes)[split]
        return chosen.select_columns([columns.image, columns.label])

    def some_rows(
        self, split: str, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
    ) -> datasets.Dataset:
        """Some images of these classes, of which no others are made."""
        per_class, finer = self.per_class[split], columns.label == "fine_label"
        places, own = [], []
        for number, label in enumerate(labels):
            classes = 1 if finer else len(CLASS_NAMES) // len(SUPERCLASS_NAMES)
            for place in draw_rows(classes * per_class, each, seed + number):
                places.append(int(label) * classes * per_class + place)
                own.append(int(label))
        images = glyphs_at("test" if split == "test" else "train", places, per_class)
        return images.add_column(columns.label, own, feature=self.features[columns.label])

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """Images of all classes."""
        return glyphs_at(
            "test" if split == "test" else "train", draw_rows(self.count(split), most, seed), self.per_class[split]
        )


class TableSource:
    """A dataset whose rows are on this machine already: labels are looked at, images are left alone."""

    def __init__(self, tables: Any, revision: str | None = None, notices: Sequence[str] = ()) -> None:
        if not isinstance(tables, datasets.DatasetDict):
            tables = datasets.DatasetDict({"train": tables})
        self.tables, self.revision, self.notices = in_usual_order(tables), revision, notices
        self.splits: tuple[str, ...] = tuple(self.tables)
        parts = [(split, f"the {split} split", table.features) for split, table in self.tables.items()]
        self.features = features_of_all({called: features for _, called, features in parts})
        self.unusable: Mapping[str, Mapping[str, str]] = unusable_columns(self.features, parts)

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split."""
        return list(self.tables[split].with_format(None)[name][:])

    def count(self, split: str) -> int:
        """The number of rows of a split."""
        return len(self.tables[split])

    def without_class(self, split: str, name: str) -> int:
        """The rows without a label, or with a negative one."""
        return count_without_class(self.column(split, name), name, self.features[name])

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, by their places."""
        wanted = set(labels)
        found = [place for place, label in enumerate(self.column(split, columns.label)) if label in wanted]
        return self.tables[split].with_format(None).select(found).select_columns([columns.image, columns.label])

    def some_rows(
        self, split: str, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
    ) -> datasets.Dataset:
        """Some rows with these labels."""
        return drawn_rows(self.rows(split, columns, labels), columns, labels, each, seed)

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """Some images, by their places."""
        places = draw_rows(len(self.tables[split]), most, seed)
        return self.tables[split].with_format(None).select(places).select_columns([column])


class StreamSource:
    """A dataset in another format, read row by row without downloading it first."""

    def __init__(self, builder: Any, revision: str | None = None) -> None:
        self.builder, self.revision = builder, revision
        self.notices: Sequence[str] = ()
        self._columns: dict[tuple[str, str], list[Label | None]] = {}
        self.streams = {str(split): stream for split, stream in builder.as_streaming_dataset().items()}
        self.splits: tuple[str, ...] = tuple(in_usual_order(self.streams))
        parts = [(split, f"the {split} split", _features_of_stream(self.streams[split])) for split in self.splits]
        self.features = features_of_all({called: features for _, called, features in parts})
        self.unusable: Mapping[str, Mapping[str, str]] = unusable_columns(self.features, parts)

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split; passes over the whole split, once."""
        if (split, name) not in self._columns:
            self._columns[split, name] = [row[name] for row in self.streams[split].select_columns([name])]
        return self._columns[split, name]

    def count(self, split: str) -> None:
        """Not known."""
        return

    def without_class(self, split: str, name: str) -> int:
        """Not known where labels are numbers with names; others are all read anyway."""
        if isinstance(self.features[name], datasets.ClassLabel):
            return 0
        return count_without_class(self.column(split, name), name, self.features[name])

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, written to the cache as they come by."""
        return stored(self.builder, split, columns, labels, self.features)

    def some_rows(
        self, split: str, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
    ) -> datasets.Dataset:
        """Some rows with these labels, after all of them were written to the cache."""
        return drawn_rows(self.rows(split, columns, labels), columns, labels, each, seed)

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """Some images from the beginning of the stream, see `cached_rows.stored_images`."""
        return stored_images(self.builder, split, column, most, seed)


def _features_of_stream(stream: Any) -> datasets.Features:
    """The types of the columns, read from the first rows where nothing else says them."""
    if stream.features is not None:
        return stream.features
    first = next(iter(stream.with_format("arrow").iter(10)), None)
    if first is None:
        raise DataError("the stream has no rows")
    return datasets.Features.from_arrow_schema(first.schema)
