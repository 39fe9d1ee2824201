"""The classes of images from a metadata file beside them, as `datasets` reads them too."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from pyarrow import csv

from subdistill_hf.data.columns import LABEL_NAMES
from subdistill_hf.data.folder_layout import SPLIT_OF_WORD, name_splits
from subdistill_hf.data.folder_source import FolderFiles, left_out_notices, printable
from subdistill_hf.errors import DataError

FILE_NAME = "file_name"


def tells_classes(folder: Path, files: FolderFiles, label_column: str | None) -> bool:
    """Whether the metadata files name classes: by a column of a usual name, or the one that was asked for."""
    wanted = {label_column} if label_column else set(LABEL_NAMES)
    tables = [_read(folder / path) for path in files.metadata]
    return bool(tables) and all(rows and FILE_NAME in rows[0] and wanted & set(rows[0]) for rows in tables)


def read_metadata(
    folder: Path, files: FolderFiles, label_column: str | None = None
) -> tuple[datasets.DatasetDict, list[str]]:
    """The images that metadata files name, with the other columns of these files.

    Args:
        folder: the dataset.
        files: what is in it.
        label_column: the column that names classes, if it was asked for.

    Returns:
        The rows of each split, and notices of what is left out.

    Raises:
        DataError: for a file that cannot be read, or metadata of one split alone.
    """
    known = set(files.images)
    rows = [row for path in files.metadata for row in _rows(folder, path)]
    used = [row for row in rows if row[0] in known]
    missing = [path for path, _ in rows if path not in known]
    left_out = dict(files.left_out)
    left_out["that no metadata file names"] = sorted(known - {path for path, _ in used})
    notices = left_out_notices(left_out)
    if missing:
        notices.append(
            f"{len(missing)} entries of metadata files name images that are not there, such as {printable(missing[0])}"
        )
    tops = {path.partition("/")[0] for path, _ in used if "/" in path}
    named = {top for top in tops if top.casefold() in SPLIT_OF_WORD}
    splits = name_splits(sorted(named), str(folder)) if named and len(named) == len(tops) else {}
    untold = sorted({path.partition("/")[0] for path in known if "/" in path} - tops)
    if splits and (without := [top for top in untold if top.casefold() in SPLIT_OF_WORD]):
        raise DataError(
            f"{folder}: {files.metadata[0]} tells the classes of {', '.join(sorted(named))}, and no file those of "
            f"{without[0]}. Give all splits a metadata file, or none where folders tell the classes"
        )
    notices += _contradictions(used, label_column)
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path, columns in used:
        parts[splits.get(path.partition("/")[0], "train")].append({"image": str(folder / path), **columns})
    if not parts:
        raise DataError(f"{folder}: the metadata files name none of its {len(known)} images")
    tables = {split: datasets.Dataset.from_list(inside) for split, inside in parts.items()}
    return datasets.DatasetDict(
        {split: table.cast_column("image", datasets.Image()) for split, table in tables.items()}
    ), notices


def _contradictions(rows: Sequence[tuple[str, Mapping[str, Any]]], label_column: str | None) -> list[str]:
    """A notice of images in a folder of one class that have another in a metadata file."""
    columns = [label_column] if label_column else [name for name in LABEL_NAMES if rows and name in rows[0][1]]
    told = [(path, str(row[column])) for path, row in rows for column in columns[:1] if column in row]
    classes = {label for _, label in told}
    other = [
        (path, label)
        for path, label in told
        if (folders := classes & set(path.split("/")[:-1])) and label not in folders
    ]
    if not other:
        return []
    path, label = other[0]
    return [
        f"{len(other)} images lie in the folder of another class than the metadata file names, such as "
        f"{printable(path)} ({printable(label)}): what the file names counts"
    ]


def _rows(folder: Path, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path of each image that a metadata file names, and its other columns."""
    begin = path.rpartition("/")[0]
    for row in _read(folder / path):
        if row.get(FILE_NAME) is None:
            raise DataError(f"{folder / path} has a row without {FILE_NAME}, only {', '.join(map(str, row))}")
        name = str(row.pop(FILE_NAME))
        yield f"{begin}/{name}" if begin else name, row


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".csv":
            table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
            rows: list[dict[str, Any]] = table.to_pylist()
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            rows = pq.read_table(path).to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's and json's are values' errors
        raise DataError(f"{path} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} cannot be read: expected an object on each line")
    if path.suffix == ".csv" and any(isinstance(value, bytes) for row in rows for value in row.values()):
        raise DataError(f"{path} cannot be read: expected a text in UTF-8")
    return rows
