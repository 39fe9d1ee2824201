"""Where rows come from: embedded data, a folder, files or the Hub; read only as far as they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import datasets
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.parquet.parquet import Parquet

from subdistill_hf.config.options import EMBEDDED_DATASETS, DataOptions
from subdistill_hf.data.columns import is_encoded_image
from subdistill_hf.data.embedded.digits import load_digits_dataset
from subdistill_hf.data.errors import WHAT_IS_EXPECTED, explained
from subdistill_hf.data.folder_metadata import read_metadata, tells_classes
from subdistill_hf.data.folder_source import (
    ARCHIVES,
    FolderFiles,
    FolderSource,
    UnlabelledFolder,
    left_out_notices,
    scan_folder,
)
from subdistill_hf.data.hub_sources import declares_files, make_builder, open_hub, prepared_table
from subdistill_hf.data.parquet_files import check_guessed_splits, learn_files, splits_of_files
from subdistill_hf.data.parquet_source import ParquetSource, open_local_files
from subdistill_hf.data.tables import GlyphSource, ImageSource, Source, StreamSource, TableSource
from subdistill_hf.errors import DataError
from subdistill_hf.hub.errors import missing_place
from subdistill_hf.hub.files import CARD_FILE

TABLES = {".arrow", ".csv", ".json", ".jsonl", ".tsv"}
"""Endings of files of rows that `datasets` reads, and that may hold images or name them."""
SAVED = (datasets.config.DATASETDICT_JSON_FILENAME, datasets.config.DATASET_STATE_JSON_FILENAME)


def open_source(options: DataOptions, processes: int | None = None) -> Source:
    """Find a dataset and the types of its columns; of a Hub dataset or parquet files no row is read yet.

    Args:
        options: the dataset, its configuration and revision, and whether to stream it.
        processes: how many processes generate or read images.

    Raises:
        DataError: for a dataset that is not there, cannot be had, or whose files do not say clearly what they are.
    """
    if options.dataset in EMBEDDED_DATASETS:
        source: Source = (
            GlyphSource(processes) if options.dataset == "glyphs-100" else TableSource(load_digits_dataset())
        )
        if Path(options.dataset).exists():
            source.notices = [f"{options.dataset} is the embedded dataset: for the folder, give ./{options.dataset}"]
        return source
    if missing := missing_place(options.dataset):
        raise DataError(f"dataset {options.dataset!r} cannot be loaded: {missing}. {WHAT_IS_EXPECTED}")
    with explained(options.dataset, options.dataset_revision):
        if is_local(options.dataset):
            return _open_local(options, processes)
        return cast(Source, open_hub(options, processes))


def open_images(options: DataOptions, processes: int | None = None) -> ImageSource:
    """Find images that need no classes; a folder of them may have any layout.

    Args:
        options: as for `open_source`.
        processes: as for `open_source`.

    Raises:
        DataError: as `open_source` does.
    """
    path = Path(options.dataset)
    if options.dataset in EMBEDDED_DATASETS or missing_place(options.dataset) or path.is_file():
        return open_source(options, processes)
    with explained(options.dataset, options.dataset_revision):
        if not is_local(options.dataset):
            return open_hub(options, processes, labelled=False)
        files = scan_folder(path)
        saved = any((path / name).is_file() for name in SAVED)
        tables = bool(files.parquet) and (not files.images or _hold_images(path / files.parquet[0]))
        if files.images and not (saved or tables or declares_files(path / CARD_FILE)):
            root = path.absolute()
            return UnlabelledFolder(files, options.dataset, lambda names: [str(root / name) for name in names])
    return open_source(options, processes)


def is_local(dataset: str) -> bool:
    """Whether a dataset is a folder or a file on this machine, and none that is embedded."""
    return dataset not in EMBEDDED_DATASETS and Path(dataset).exists()


# Of this machine


def _open_local(options: DataOptions, processes: int | None) -> Source:
    path = Path(options.dataset)
    if path.is_file():
        if path.suffix.lower() in ARCHIVES:
            raise DataError(f"{options.dataset} is packed: unpack it, and give the folder that this makes")
        if path.suffix.lower() != ".parquet":
            raise DataError(f"{options.dataset}: expected a folder or a .parquet file")
        return _local_parquet(options, {"train": [str(path)]}, processes)
    if any((path / name).is_file() for name in SAVED):
        return TableSource(datasets.load_from_disk(options.dataset))
    files = scan_folder(path)
    if declares_files(path / CARD_FILE):
        return _declared(options, files, processes)
    if files.parquet and (not files.images or _hold_images(path / files.parquet[0])):
        left_out = left_out_notices({**files.left_out, "beside parquet files": files.images})
        found = splits_of_files(files.parquet, options.dataset)
        there = {split: [str(path / name) for name in names] for split, names in found.items()}
        return _local_parquet(options, there, processes, notices=left_out)
    if files.images and files.metadata and tells_classes(path, files, options.label_column):
        tables, notices = read_metadata(path, files, options.label_column)
        return TableSource(tables, notices=notices)
    if files.images:
        source = FolderSource(files, options.dataset, lambda names: [str(path.absolute() / name) for name in names])
        if files.metadata:
            unread = f"{files.metadata[0]} is not read: the folders of the images tell their classes"
            source.notices = [*source.notices, unread]
        return source
    return _open_other(options, files, processes)


def _declared(options: DataOptions, files: FolderFiles, processes: int | None) -> Source:
    """A folder whose README says which files are of which split."""
    builder = make_builder(options)
    chosen = {str(split): [str(name) for name in names] for split, names in builder.config.data_files.items()}
    used = {str(Path(name).resolve()) for names in chosen.values() for name in names}
    path = Path(options.dataset)
    unused = [name for name in files.images + files.parquet if str((path / name).resolve()) not in used]
    notices = left_out_notices({**files.left_out, "that the README gives to no split": unused})
    if isinstance(builder, Parquet):
        return _local_parquet(options, chosen, processes, builder.info.features, notices)
    return prepared_table(builder, processes, notices=notices)


def _local_parquet(
    options: DataOptions,
    files: Mapping[str, Sequence[str]],
    processes: int | None,
    declared: datasets.Features | None = None,
    notices: Sequence[str] = (),
) -> ParquetSource:
    known = learn_files(files, declared)
    return ParquetSource(
        options.dataset, known, open_local_files(files), options.streaming, processes, notices=notices
    )


def _hold_images(path: Path) -> bool:
    """Whether a parquet file has a column of images, or else it describes the images beside it."""
    features = learn_files({"train": [str(path)]}).features
    return any(isinstance(kind, datasets.Image) or is_encoded_image(kind) for kind in features.values())


def _open_other(options: DataOptions, files: FolderFiles, processes: int | None) -> Source:
    """A folder of another format that `datasets` reads."""
    packed = [name for name in files.archives if not name.endswith(".tar")]
    if packed:
        raise DataError(
            f"dataset {options.dataset!r} cannot be loaded: it holds packed files alone, such as {packed[0]}. Unpack "
            f"them, and give the folder that this makes. {WHAT_IS_EXPECTED}"
        )
    if not files.archives and not any(Path(name).suffix.lower() in TABLES for name in files.others):
        left_out = "".join(f"; {notice}" for notice in left_out_notices(files.left_out))
        why = f"it holds no images that are read{left_out}"
        raise DataError(f"dataset {options.dataset!r} cannot be loaded: {why}. {WHAT_IS_EXPECTED}")
    builder = make_builder(options)
    check_guessed_splits(builder.config.data_files, options.dataset)
    if isinstance(builder, Arrow):
        learn_files({str(split): list(names) for split, names in builder.config.data_files.items()})
    if options.streaming:
        return StreamSource(builder)
    return prepared_table(builder, processes)
