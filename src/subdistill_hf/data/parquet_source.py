"""Parquet files, here or on the Hub, of which only the rows that are wanted are kept."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from subdistill_hf.data.cached_rows import prepared, stored, stored_images
from subdistill_hf.data.columns import ImageColumns, Label
from subdistill_hf.data.errors import explained
from subdistill_hf.data.known_datasets import KnownDataset
from subdistill_hf.data.parquet_files import count_without_class
from subdistill_hf.data.tables import draw_rows, drawn_rows

STREAM_BATCH = ROWS_AT_ONCE = 1000
WHOLE_FILES = 2**28
"""Local files of fewer bytes in all are known by their contents, others by their ends, lengths and times."""
END_OF_FILE = 2**16


def open_local_files(files: Mapping[str, Sequence[str]]) -> Callable[..., Any]:
    """The function that makes builders of parquet files of this machine, cached by the files' contents."""
    name = f"files-{_digest_of_files([path for paths in files.values() for path in paths])}"
    escaped = {split: [glob.escape(path) for path in paths] for split, paths in files.items()}

    def open_builder(**arguments: Any) -> Any:
        return datasets.load_dataset_builder("parquet", name, data_files=escaped, **arguments)

    return open_builder


def _digest_of_files(paths: Sequence[str]) -> str:
    """Tells files from others that lay in their places, even within the same second."""
    digest = hashlib.sha256()
    whole = sum(Path(path).stat().st_size for path in paths) <= WHOLE_FILES
    for path in paths:
        status = Path(path).stat()
        with Path(path).open("rb") as file:
            if whole:
                content = file.read()
            else:
                file.seek(max(0, status.st_size - END_OF_FILE))
                content = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode() + file.read()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


class ParquetSource:
    """Parquet files, here or on the Hub: other columns and the rows of other classes are dropped as files are read.

    What is kept lies in the `datasets` cache, under a name of its own for each choice of classes.

    Args:
        dataset: what the dataset is called in messages.
        known: its configuration, commit, splits and columns.
        open_builder: makes a builder that reads some columns and rows.
        streaming: keep only the rows that are wanted, without downloading the rest.
        processes: how many processes read files.
        revision: the commit, for a dataset of the Hub.
        notices: what was left out.
        learn: looks at the ends of the files, where that is still to be done.
    """

    def __init__(
        self,
        dataset: str,
        known: KnownDataset,
        open_builder: Callable[..., Any],
        streaming: bool = False,
        processes: int | None = None,
        revision: str | None = None,
        notices: Sequence[str] = (),
        learn: Callable[[], KnownDataset] | None = None,
    ) -> None:
        self.dataset, self.open_builder, self.streaming, self.processes = dataset, open_builder, streaming, processes
        self.known, self.revision, self.notices = known, revision, notices
        self.features, self.splits, self.unusable = known.features, known.splits, known.unusable
        self._learn = learn
        self._builders: dict[str, Any] = {}
        self._columns: dict[tuple[str, str], list[Label | None]] = {}

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all rows of a split, read once; no other column is read."""
        if (split, name) not in self._columns:
            with explained(self.dataset):
                self._columns[split, name] = self._read_column(split, name)
        return self._columns[split, name]

    def _read_column(self, split: str, name: str) -> list[Label | None]:
        builder = self._reading(columns=[name])
        if self.streaming:
            self._look_at_files()
            batches = builder.as_streaming_dataset(split).with_format("arrow").iter(STREAM_BATCH)
            return [label for batch in batches for label in batch[name].to_pylist()]
        return list(self._prepared(builder, split, [name])[name][:])

    def count(self, split: str) -> None:
        """Not known before rows are read."""
        return

    def without_class(self, split: str, name: str) -> int:
        """The rows whose labels are missing, blank or negative.

        They are counted where the ends of files tell of any, and where labels are texts, which all are read anyway.
        """
        texts = isinstance(self.features[name], datasets.Value) and self.features[name].dtype.endswith("string")
        if not texts and name not in self.known.without_class.get(split, ()):
            return 0
        return count_without_class(self.column(split, name), name, self.features[name])

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The rows with one of these labels, chosen by a filter that the parquet reader applies."""
        kept = [columns.image, columns.label]
        with explained(self.dataset):
            builder = self._reading(columns=kept, filters=[(columns.label, "in", list(labels))])
            if not self.streaming:
                return self._prepared(builder, split, kept).select_columns(kept)
            self._look_at_files()
            return stored(builder, split, columns, labels, self.features)

    def some_rows(
        self, split: str, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
    ) -> datasets.Dataset:
        """Some rows with these labels."""
        return drawn_rows(self.rows(split, columns, labels), columns, labels, each, seed)

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """Some images: of all rows, or of a stream from its beginning, see `cached_rows.stored_images`."""
        with explained(self.dataset):
            builder = self._reading(columns=[column])
            if self.streaming:
                return stored_images(builder, split, column, most, seed)
            rows = self._prepared(builder, split, [column])
        return rows.select(draw_rows(len(rows), most, seed)).select_columns([column])

    def _reading(self, columns: list[str], **arguments: Any) -> Any:
        """The builder of a choice of columns and rows, made once: it looks for the files, on the Hub by asking.

        It reads no split that lacks one of the columns: a builder would read all of its splits at once.
        """
        key = repr((columns, arguments))
        if key not in self._builders:  # without a batch size, a file without rows could not be read
            builder = self.open_builder(columns=columns, batch_size=ROWS_AT_ONCE, **arguments)
            for split in list(builder.config.data_files or ()):  # a dataset of the cache, off line, has none
                if set(columns) & set(self.unusable.get(str(split), ())):
                    del builder.config.data_files[split]
            self._builders[key] = builder
        return self._builders[key]

    def _prepared(self, builder: Any, split: str, columns: list[str]) -> datasets.Dataset:
        builder.info.size_in_bytes = builder.info.download_size  # of all rows, or so the disk would seem too small
        features = datasets.Features({name: self.features[name] for name in columns})
        rows = prepared(builder, split, features, self.processes)
        self._look_at_files()
        return rows

    def _look_at_files(self) -> None:
        """Refuse files whose labels mean other classes than was taken for granted; once."""
        if self._learn is not None:
            self.known, self._learn = self._learn(), None
