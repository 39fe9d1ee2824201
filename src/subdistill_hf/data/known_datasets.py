"""Facts of a dataset of the Hub, kept in the cache for when the Hub cannot be reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from subdistill_hf.config.options import DataOptions
from subdistill_hf.config.output_folder import written_whole

FOLDER = "subdistill_hf"


@dataclass(frozen=True)
class KnownDataset:
    """The facts of parquet files that are needed to find in the cache what was kept of them.

    Attributes:
        config: name of the configuration.
        revision: the commit.
        splits: names of the splits.
        features: types of the columns.
        without_class: for each split the columns of labels some of which are missing or negative.
        unusable: for each split the columns that not all its files have alike, and what to say of them.
    """

    config: str
    revision: str
    splits: tuple[str, ...]
    features: datasets.Features
    without_class: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unusable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def remember(options: DataOptions, known: KnownDataset) -> None:
    """Write down what a Hub dataset was when it was opened."""
    text = {"config": known.config, "revision": known.revision, "splits": known.splits}
    columns = {"without_class": dict(known.without_class), "unusable": dict(known.unusable)}
    _write(_path(options), text | {"features": known.features.to_dict()} | columns)


def recall(options: DataOptions) -> KnownDataset | None:
    """The facts that were kept when the dataset was last opened; `None` when it never was."""
    path = _path(options)
    if not path.is_file():
        return None
    text = json.loads(path.read_text(encoding="utf-8"))
    features = datasets.Features.from_dict(text["features"])
    without_class = {split: tuple(columns) for split, columns in text.get("without_class", {}).items()}
    splits, unusable = tuple(text["splits"]), text.get("unusable", {})
    return KnownDataset(text["config"], text["revision"], splits, features, without_class, unusable)


def remember_files(options: DataOptions, revision: str, paths: list[str]) -> None:
    """Write down the files of a Hub dataset of images in folders."""
    _write(_path(options, "files"), {"revision": revision, "paths": paths})


def recall_files(options: DataOptions) -> tuple[str, list[str]] | None:
    """The commit and the files that were written down; `None` when they never were."""
    path = _path(options, "files")
    if not path.is_file():
        return None
    text = json.loads(path.read_text(encoding="utf-8"))
    return text["revision"], text["paths"]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


def _path(options: DataOptions, *more: str) -> Path:
    asked = [options.dataset, options.dataset_config, options.dataset_revision, *more]
    return Path(datasets.config.HF_DATASETS_CACHE, FOLDER, f"{datasets.fingerprint.Hasher.hash(asked)}.json")
