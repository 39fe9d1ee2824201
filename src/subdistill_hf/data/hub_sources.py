"""Datasets of the Hub: parquet files, images in folders, and what else `datasets` reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi, hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.errors import explained
from subdistill_hf.data.folder_source import FolderFiles, FolderSource, UnlabelledFolder
from subdistill_hf.data.known_datasets import KnownDataset, recall, recall_files, remember, remember_files
from subdistill_hf.data.parquet_files import check_guessed_splits, learn_files
from subdistill_hf.data.parquet_source import ParquetSource
from subdistill_hf.data.tables import ImageSource, StreamSource, TableSource
from subdistill_hf.errors import DataError
from subdistill_hf.hub.files import CARD_FILE

logger = logging.getLogger(__name__)

DOWNLOADS = 8


def open_hub(options: DataOptions, processes: int | None, labelled: bool = True) -> ImageSource:
    """A dataset of the Hub, or what the cache holds of it when the Hub cannot be asked.

    Args:
        options: the dataset, its configuration and revision, and whether to stream it.
        processes: how many processes read images.
        labelled: whether its images need classes; folders of images may have any layout where they do not.

    Returns:
        A `Source`, but for folders of images that need no classes.

    Raises:
        DataError: for files that do not say clearly what they are.
        OSError: and others of the client libraries, when it cannot be had.
    """
    try:
        builder = make_builder(options)
    except (OSError, ValueError) as error:
        source = None if options.streaming else _recalled(options, processes, error, labelled)
        if source is None:
            raise
        return source
    if isinstance(builder, Parquet):
        return _hub_parquet(options, builder, processes)
    declared = declares_files(_hub_card(options.dataset, builder.hash))
    if isinstance(builder, ImageFolder) and not declared:
        paths = HfApi().list_repo_files(options.dataset, repo_type="dataset", revision=builder.hash)
        files = FolderFiles()
        for path in sorted(paths):
            files.add(path)
        if files.images and not files.metadata and not files.archives:
            remember_files(options, builder.hash, paths)
            return _hub_folder(options, files, builder.hash, labelled)
    if builder.config.data_files and not declared:
        check_guessed_splits(builder.config.data_files, options.dataset)
    if isinstance(builder, Arrow):
        learn_files({str(split): list(names) for split, names in builder.config.data_files.items()})
    if options.streaming:
        return StreamSource(builder, builder.hash)
    return prepared_table(builder, processes, builder.hash)


def _recalled(options: DataOptions, processes: int | None, error: Exception, labelled: bool) -> ImageSource | None:
    """The cached source of a dataset of the Hub, when that cannot be asked."""
    known, listed = recall(options), recall_files(options)
    if known is not None or listed is not None:
        logger.warning(f"{options.dataset} cannot be asked for ({error}): using what the cache holds of it")
    if known is not None:
        return ParquetSource(options.dataset, known, _opener(options, known), False, processes, known.revision)
    if listed is None:
        return None
    files = FolderFiles()
    for path in sorted(listed[1]):
        files.add(path)
    return _hub_folder(options, files, listed[0], labelled)


def _hub_parquet(options: DataOptions, builder: Any, processes: int | None) -> ParquetSource:
    chosen = {str(split): [str(name) for name in names] for split, names in builder.config.data_files.items()}
    known = recall(options)
    if known is None or known.revision != builder.hash or known.config != builder.config.name:
        if not declares_files(_hub_card(options.dataset, builder.hash)):
            check_guessed_splits(chosen, options.dataset)
        declared, config, revision = builder.info.features, builder.config.name, builder.hash

        def learn() -> KnownDataset:
            learnt = learn_files(chosen, declared, config, revision)
            remember(options, learnt)
            return learnt

        if declared is None:
            known = learn()
        else:  # the files are looked at when they are read
            known = KnownDataset(config, revision, tuple(chosen), declared)
            return ParquetSource(
                options.dataset, known, _opener(options, known), options.streaming, processes, revision, learn=learn
            )
    return ParquetSource(options.dataset, known, _opener(options, known), options.streaming, processes, known.revision)


def _opener(options: DataOptions, known: KnownDataset) -> Callable[..., Any]:
    """The function that makes builders of the commit that is known, even if there is a new one meanwhile."""
    fixed = replace(options, dataset_config=known.config, dataset_revision=known.revision)
    return lambda **arguments: make_builder(fixed, **arguments)


def _hub_card(dataset: str, revision: str) -> Path:
    """The README of a dataset of the Hub; a file that is not there if it has none."""
    try:
        return Path(hf_hub_download(dataset, CARD_FILE, repo_type="dataset", revision=revision))
    except EntryNotFoundError:
        return Path(dataset, CARD_FILE)


def _hub_folder(
    options: DataOptions, files: FolderFiles, revision: str, labelled: bool
) -> FolderSource | UnlabelledFolder:
    """A dataset of the Hub of images in folders, of which only those of the subtask are downloaded."""

    def download(path: str) -> str:
        return hf_hub_download(options.dataset, path, repo_type="dataset", revision=revision)

    def locate(paths: Sequence[str]) -> list[str]:
        with explained(options.dataset), ThreadPoolExecutor(DOWNLOADS) as readers:
            return list(readers.map(download, paths))

    kind = FolderSource if labelled else UnlabelledFolder
    return kind(files, options.dataset, locate, revision)


def make_builder(options: DataOptions, **arguments: Any) -> Any:
    """The builder that `datasets` chooses; `arguments` are options of that builder.

    Raises:
        OSError: and others of the client libraries, when it cannot be had.
    """
    name, revision = options.dataset_config, options.dataset_revision
    builder = datasets.load_dataset_builder(options.dataset, name, revision=revision, **arguments)
    if isinstance(builder, Cache) and revision not in (None, builder.hash):
        # `datasets` before 5 takes another revision that it has in its cache for one that is not there
        HfApi().dataset_info(options.dataset, revision=revision)
    return builder


def prepared_table(
    builder: Any, processes: int | None, revision: str | None = None, notices: Sequence[str] = ()
) -> TableSource:
    """All rows of a builder, in the cache."""
    builder.download_and_prepare(num_proc=processes)
    return TableSource(builder.as_dataset(), revision, notices)


def declares_files(card: Path) -> bool:
    """Whether a README says which files are of which split."""
    try:
        configs = (metadata_load(card) or {}).get("configs") if card.is_file() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{card}: its metadata cannot be read: {error}") from error
    return any("data_files" in config or "data_dir" in config for config in configs or [])
