"""The classes of images from a metadata file beside them, of the kinds that `datasets` reads too."""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from subdistill_hf.data.columns import LABEL_NAMES
from subdistill_hf.data.folder_layout import SPLIT_OF_WORD, name_splits
from subdistill_hf.data.folder_source import FolderFiles, left_out_notices, printable
from subdistill_hf.errors import DataError

FILE_NAME: Final = "file_name"
WHOLE_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""How a whole number of 64 bits is written: 007 is a text, as a date is."""
SEPARATORS: Final = (",", ";", "\t")
Row = dict[str, Any]


def tells_classes(folder: Path, files: FolderFiles, label_column: str | None) -> bool:
    """Whether the metadata files name classes: by a column of a usual name, or the one that was asked for."""
    wanted = {label_column} if label_column else set(LABEL_NAMES)
    columns = [{name for row in _read(folder / path) for name in row} for path in files.metadata]
    return bool(columns) and all(FILE_NAME in names and wanted & names for names in columns)


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
    rows = _rows(folder, files.metadata)
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
    told = [(path, str(row[column])) for path, row in rows for column in columns[:1] if row[column] is not None]
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


def _rows(folder: Path, paths: Sequence[str]) -> list[tuple[str, Row]]:
    """The path of each image that metadata files name, and its other columns: each row has all, in order.

    A column of whole numbers stays one. Any other column of plain values is one of texts, as the files spell them.
    """
    found = [(path, row) for path in paths for row in _read(folder / path)]
    kinds: dict[str, set[type]] = defaultdict(set)
    for path, row in found:
        if row.get(FILE_NAME) is None:
            raise DataError(f"{folder / path} has a row without {FILE_NAME}, only {', '.join(map(str, row))}")
        for name, value in row.items():
            kinds[name] |= set() if value is None else {type(value)}
    texts = {name for name, held in kinds.items() if held != {int} and held <= {str, int, float, bool}}
    del kinds[FILE_NAME]
    return [
        (
            posixpath.normpath(posixpath.join(posixpath.dirname(path), str(row[FILE_NAME]))),
            {name: _spelled(row.get(name)) if name in texts else row.get(name) for name in kinds},
        )
        for path, row in found
    ]


def _spelled(value: Any) -> str | None:
    """A plain value as a text; nothing stays nothing."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _read(path: Path) -> list[Row]:
    try:
        if path.suffix == ".parquet":
            return list(pq.read_table(path).to_pylist())
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix == ".csv":
            return _rows_of_csv(text)
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read: expected a text in UTF-8") from error
    except (ValueError, OSError) as error:  # pyarrow's and json's are values' errors
        raise DataError(f"{path} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} cannot be read: expected an object on each line")
    return rows


def _separated(content: bytes) -> tuple[csv.ParseOptions, list[str]]:
    """How a table is separated, and its columns: by commas, or by what spreadsheets write in other languages."""
    tried = []
    for separator in SEPARATORS:
        parsing = csv.ParseOptions(newlines_in_values=True, delimiter=separator)
        tried.append((parsing, csv.open_csv(io.BytesIO(content), parse_options=parsing).schema.names))
        if FILE_NAME in tried[-1][1]:
            return tried[-1]
    return tried[0]


def _rows_of_csv(text: str) -> list[Row]:
    """The rows of a table: an empty field is nothing, and a column of nothing but whole numbers is read as such."""
    content = text.encode()
    parsing, names = _separated(content)
    as_texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    columns = csv.read_csv(io.BytesIO(content), parse_options=parsing, convert_options=as_texts).to_pydict()
    for name, values in columns.items():
        number = int if all(WHOLE_NUMBER.fullmatch(value) for value in values if value) else str
        columns[name] = [number(value) if value else None for value in values]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
