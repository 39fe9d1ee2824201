"""What was learnt of a dataset of the Hub, kept in the cache for when the Hub cannot be reached."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import datasets

from subdistill_hf.config.options import DataOptions

FOLDER = "subdistill_hf"


@dataclass(frozen=True)
class KnownDataset:
    """What must be known of parquet files to find in the cache what was kept of them.

    Attributes:
        config: name of the configuration.
        revision: the commit.
        splits: names of the splits.
        features: types of the columns.
    """

    config: str
    revision: str
    splits: tuple[str, ...]
    features: datasets.Features


def remember(options: DataOptions, known: KnownDataset) -> None:
    """Write down what a Hub dataset was when it was opened."""
    path = _path(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    text = {"config": known.config, "revision": known.revision, "splits": known.splits}
    part.write_text(json.dumps(text | {"features": known.features.to_dict()}), encoding="utf-8")
    part.replace(path)


def recall(options: DataOptions) -> KnownDataset | None:
    """What was written down when the same dataset was last opened; `None` when it never was."""
    path = _path(options)
    if not path.is_file():
        return None
    text = json.loads(path.read_text(encoding="utf-8"))
    features = datasets.Features.from_dict(text["features"])
    return KnownDataset(text["config"], text["revision"], tuple(text["splits"]), features)


def _path(options: DataOptions) -> Path:
    asked = [options.dataset, options.dataset_config, options.dataset_revision]
    return Path(datasets.config.HF_DATASETS_CACHE, FOLDER, f"{datasets.fingerprint.Hasher.hash(asked)}.json")
