"""Where rows come from: embedded data, a folder, parquet files or the Hub; read only as far as they are needed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Protocol

import datasets
import fsspec
import pyarrow.parquet as pq
from datasets.packaged_modules.generator.generator import Generator
from datasets.packaged_modules.parquet.parquet import Parquet

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.embedded.digits import load_digits_dataset
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.data.embedded.glyph_dataset import load_glyphs
from subdistill_hf.data.errors import explained
from subdistill_hf.data.known_datasets import KnownDataset, recall, remember
from subdistill_hf.errors import DataError

logger = logging.getLogger(__name__)

SAVED = (datasets.config.DATASETDICT_JSON_FILENAME, datasets.config.DATASET_STATE_JSON_FILENAME)
STREAM_BATCH = 1000

Label = int | str


class Source(Protocol):
    """A dataset that can be read in parts.

    Attributes:
        features: the types of its columns.
        splits: the names of its splits.
        revision: the commit, for a dataset of the Hub.
    """

    features: datasets.Features
    splits: tuple[str, ...]
    revision: str | None

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split, without reading an image."""

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, in the order of the split: image and label, nothing decoded."""


def open_source(options: DataOptions, processes: int | None = None) -> Source:
    """Find a dataset and the types of its columns; of a Hub dataset or parquet files no row is read yet.

    Args:
        options: the dataset, its configuration and revision, and whether to stream it.
        processes: how many processes generate or read images.

    Raises:
        DataError: for a dataset that is not there, or cannot be had.
    """
    if options.dataset == "glyphs-100":
        return GlyphSource(processes)
    if options.dataset == "digits":
        return TableSource(load_digits_dataset())
    with explained(options.dataset, options.dataset_revision):
        if any(Path(options.dataset, name).is_file() for name in SAVED):
            return TableSource(datasets.load_from_disk(options.dataset))
        try:
            builder = _builder(options)
        except (OSError, ValueError) as error:
            known = None if options.streaming or is_local(options.dataset) else recall(options)
            if known is None:
                raise
            logger.warning(f"{options.dataset} cannot be asked for ({error}): using what the cache holds of it")
            return ParquetSource(options, known, processes)
        if isinstance(builder, Parquet):
            known = _learn(builder)
            if not is_local(options.dataset):
                remember(options, known)
            return ParquetSource(options, known, processes)
        if options.streaming:
            return StreamSource(builder, _commit(options, builder))
        builder.download_and_prepare(num_proc=processes)
        return TableSource(builder.as_dataset(), _commit(options, builder))


def is_local(dataset: str) -> bool:
    """Whether a dataset is a folder or a file on this machine."""
    return Path(dataset).exists()


def _builder(options: DataOptions, **arguments: Any) -> Any:
    """The builder that `datasets` chooses; `arguments` are options of that builder."""
    path = Path(options.dataset)
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"{options.dataset}: expected a folder or a .parquet file")
        return datasets.load_dataset_builder("parquet", data_files={"train": str(path)}, **arguments)
    name, revision = options.dataset_config, options.dataset_revision
    return datasets.load_dataset_builder(options.dataset, name, revision=revision, **arguments)


def _learn(builder: Any) -> KnownDataset:
    """What parquet files hold, before any row is read."""
    files = builder.config.data_files
    features = builder.info.features
    if features is None:
        features = _features_of_all({str(split): _features_of_file(paths[0]) for split, paths in files.items()})
    return KnownDataset(builder.config.name, builder.hash, tuple(str(split) for split in files), features)


def _features_of_file(path: str) -> datasets.Features:
    with fsspec.open(path, "rb") as file:
        return datasets.Features.from_arrow_schema(pq.read_schema(file))


def _features_of_all(of_splits: Mapping[str, datasets.Features]) -> datasets.Features:
    """The types of the columns, those of the first split.

    Raises:
        DataError: where a label means another class in another split.
    """
    first, *others = of_splits
    for split in others:
        for column, kind in of_splits[split].items():
            known = of_splits[first].get(column)
            both = isinstance(kind, datasets.ClassLabel) and isinstance(known, datasets.ClassLabel)
            if both and kind.names != known.names:
                place = next(i for i, pair in enumerate(zip_longest(known.names, kind.names)) if pair[0] != pair[1])
                name = [names[place] if place < len(names) else "missing" for names in (known.names, kind.names)]
                raise DataError(
                    f"column {column!r}: class {place} is {name[0]!r} in the {first} split and {name[1]!r} in the "
                    f"{split} split. Expected the same classes in all splits: bring them to one ClassLabel, with "
                    "Dataset.align_labels_with_mapping for example"
                )
    return of_splits[first]


def _commit(options: DataOptions, builder: Any) -> str | None:
    return None if is_local(options.dataset) else builder.hash


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

    def __init__(self, processes: int | None = None) -> None:
        self.processes = processes

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split, without making an image."""
        finer = 1 if name == "fine_label" else len(CLASS_NAMES) // len(SUPERCLASS_NAMES)
        return [class_id // finer for class_id in range(len(CLASS_NAMES)) for _ in range(self.per_class[split])]

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The images of these classes."""
        chosen = load_glyphs([int(label) for label in labels], num_proc=self.processes)[split]
        return chosen.select_columns([columns.image, columns.label])


class TableSource:
    """A dataset whose rows are on this machine already: labels are looked at, images are left alone."""

    def __init__(self, tables: Any, revision: str | None = None) -> None:
        if not isinstance(tables, datasets.DatasetDict):
            tables = datasets.DatasetDict({"train": tables})
        self.tables, self.revision = tables, revision
        self.splits: tuple[str, ...] = tuple(tables)
        self.features = _features_of_all({split: table.features for split, table in tables.items()})

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split."""
        return list(self.tables[split].with_format(None)[name][:])

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, by their places."""
        wanted = set(labels)
        found = [place for place, label in enumerate(self.column(split, columns.label)) if label in wanted]
        return self.tables[split].with_format(None).select(found).select_columns([columns.image, columns.label])


class ParquetSource:
    """Parquet files, here or on the Hub: other columns and the rows of other classes are dropped as files are read.

    What is kept lies in the `datasets` cache, under a name of its own for each choice of classes.
    """

    def __init__(self, options: DataOptions, known: KnownDataset, processes: int | None = None) -> None:
        self.processes, self.features, self.splits = processes, known.features, known.splits
        self.revision = None if is_local(options.dataset) else known.revision
        # what is read later is of the same commit, even if there is a new one meanwhile
        if self.revision is not None:
            options = replace(options, dataset_config=known.config, dataset_revision=known.revision)
        self.options = options
        self._builders: dict[str, Any] = {}

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split; no other column is read."""
        with explained(self.options.dataset):
            builder = self._reading(columns=[name])
            if self.options.streaming:
                batches = builder.as_streaming_dataset(split).with_format("arrow").iter(STREAM_BATCH)
                return [label for batch in batches for label in batch[name].to_pylist()]
            return list(self._prepared(builder, split, [name])[name][:])

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, chosen by a filter that the parquet reader applies."""
        kept = [columns.image, columns.label]
        with explained(self.options.dataset):
            builder = self._reading(columns=kept, filters=[(columns.label, "in", list(labels))])
            if not self.options.streaming:
                return self._prepared(builder, split, kept).select_columns(kept)
            return _stored(builder, split, columns, labels, self.features)

    def _reading(self, **arguments: Any) -> Any:
        """The builder of a choice of columns and rows, made once: it looks for the files, on the Hub by asking."""
        key = repr(arguments)
        if key not in self._builders:
            self._builders[key] = _builder(self.options, **arguments)
        return self._builders[key]

    def _prepared(self, builder: Any, split: str, columns: list[str]) -> datasets.Dataset:
        builder.info.size_in_bytes = builder.info.download_size  # of all rows, or so the disk would seem too small
        return _prepared(builder, split, _of(self.features, columns), self.processes)


class StreamSource:
    """A dataset in another format, read row by row without downloading it first."""

    def __init__(self, builder: Any, revision: str | None = None) -> None:
        self.builder, self.revision = builder, revision
        self.streams = builder.as_streaming_dataset()
        self.splits: tuple[str, ...] = tuple(str(split) for split in self.streams)
        if any(stream.features is None for stream in self.streams.values()):
            raise DataError("the types of the columns are not known before reading: leave out --streaming")
        self.features = _features_of_all({split: stream.features for split, stream in self.streams.items()})

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split; passes over the whole split."""
        stream = self.streams[split]
        images = [column for column, kind in self.features.items() if isinstance(kind, datasets.Image)]
        for image in images:
            stream = stream.cast_column(image, datasets.Image(decode=False))
        return [row[name] for row in stream]

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, written to the cache as they come by."""
        return _stored(self.builder, split, columns, labels, self.features)


def _of(features: datasets.Features, columns: Sequence[str]) -> datasets.Features:
    return datasets.Features({name: features[name] for name in columns})


def _prepared(builder: Any, split: str, features: datasets.Features, processes: int | None = None) -> datasets.Dataset:
    """What a builder keeps of a split, in the cache; it may be nothing, where test labels are secret."""
    builder.download_and_prepare(verification_mode="no_checks", num_proc=processes)
    if builder.info.splits[split].num_examples == 0:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return builder.as_dataset(split)


def _stored(
    builder: Any, split: str, columns: ImageColumns, labels: Sequence[Label], features: datasets.Features
) -> datasets.Dataset:
    """Write the chosen rows of a stream to the cache, where a later run and other processes find them."""
    kept = _of(features, [columns.image, columns.label])
    # lists would be taken for shards, and the rows be ordered by them: the labels are a tuple
    arguments = {"builder": builder, "split": split, "columns": columns, "labels": tuple(labels)}
    key = datasets.fingerprint.Hasher.hash([builder.cache_dir, split, list(kept), list(labels)])
    writer = Generator(features=kept, generator=_chosen, gen_kwargs=arguments, config_id=f"stream-{key}")
    return _prepared(writer, "train", kept)  # its only split, whatever was read


def _chosen(builder: Any, split: str, columns: ImageColumns, labels: tuple[Label, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a stream with one of these labels; their images are carried as they are encoded."""
    stream = builder.as_streaming_dataset(split).cast_column(columns.image, datasets.Image(decode=False))
    wanted = set(labels)
    for row in stream:
        if row[columns.label] in wanted:
            yield {columns.image: _with_bytes(row[columns.image]), columns.label: row[columns.label]}


def digest_of_rows(rows: datasets.Dataset, columns: ImageColumns) -> str:
    """A digest of encoded images and their labels, in hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows.cast_column(columns.image, datasets.Image(decode=False)):
        image = row[columns.image]
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        digest.update(hashlib.sha256(content).digest() + f"{row[columns.label]};".encode())
    return digest.hexdigest()


def _with_bytes(image: dict[str, Any] | None) -> dict[str, Any] | None:
    """An encoded image that needs no network: read now, unless it is a file of this machine."""
    if image is None or image["bytes"] is not None or Path(image["path"]).is_file():
        return image
    with fsspec.open(image["path"], "rb") as file:
        return image | {"bytes": file.read()}
