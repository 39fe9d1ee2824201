"""Facts of parquet files before they are read: which split each is of, and which classes their labels are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from subdistill_hf.data.columns import NOTHING, Label, described, is_class
from subdistill_hf.data.folder_layout import SPLIT_OF_WORD, in_usual_order, name_splits, split_named
from subdistill_hf.data.known_datasets import KnownDataset
from subdistill_hf.errors import DataError

READERS = 16
SHARDED = re.compile(r"\w+(\.\w+)*-\d{5}-of-\d{5}")  # names of splits that `datasets` writes
SHARD = re.compile(r"[-_. ]?\d+(-of-\d+)?$")


def splits_of_files(paths: Iterable[str], place: str) -> dict[str, list[str]]:
    """The files of each split, by the words in their names, or else in those of their folders.

    Args:
        paths: relative, with slashes.
        place: what the dataset is called in messages.

    Raises:
        DataError: when names contradict each other, or only some of them name a split.
    """
    families: dict[str, list[str]] = defaultdict(list)
    nameless: list[str] = []
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        stem = SHARD.sub("", name.rpartition(".")[0])
        of_folder = {SPLIT_OF_WORD[part.casefold()] for part in folder.split("/") if part.casefold() in SPLIT_OF_WORD}
        of_name = split_named(stem)
        if len(of_folder) > 1 or (of_name and of_folder and of_folder != {of_name}):
            raise DataError(
                f"{place}: it is not clear which split {path} is of: give folder and file one of its names"
            )
        if of_name or (SHARDED.fullmatch(name.rpartition(".")[0]) and not of_folder):
            families[f"{folder}/{stem}" if folder and not of_folder else stem].append(path)
        elif of_folder:
            families[next(iter(of_folder))].append(path)
        else:
            nameless.append(path)
    if nameless and families:
        known = next(iter(families.values()))[0]
        raise DataError(
            f"{place}: {known} names its split and {nameless[0]} does not. Give all files names such as "
            "train-00000-of-00002.parquet and test-00000-of-00001.parquet"
        )
    if nameless:
        return {"train": nameless}
    whole = {family: family.rpartition("/")[2] for family in families}
    if len(set(whole.values())) < len(whole):
        one, other, *_ = [family for family in families if list(whole.values()).count(whole[family]) > 1]
        raise DataError(
            f"{place}: {families[one][0]} and {families[other][0]} are both named for the {split_named(whole[one])} "
            "split: give the folder of one of them"
        )
    splits = name_splits(whole.values(), place)
    return in_usual_order({splits[whole[family]]: files for family, files in families.items()})


def check_guessed_splits(files: Mapping[Any, Sequence[str]], place: str) -> None:
    """Refuse splits that `datasets` guessed from words that are no names of splits.

    Raises:
        DataError: naming a file.
    """
    guessed = {str(name): str(split) for split, names in files.items() for name in names}
    if sum(len(names) for names in files.values()) > len(guessed):
        raise DataError(f"{place}: files are in several splits at once. Give them names such as train-0 and test-0")
    begin = _common_beginning(list(guessed))
    own = splits_of_files([name.removeprefix(begin) for name in guessed], place)
    if len(own) == 1 and set(guessed.values()) == {"train"}:
        return
    for split, names in own.items():
        for name in names:
            if guessed[begin + name] != split:
                raise DataError(
                    f"{place}: {name!r} may be of the split {guessed[begin + name]} or {split}. Give files "
                    "names such as train-0 and test-0"
                )


def _common_beginning(names: Sequence[str]) -> str:
    """The folder that all files are in, with its slash."""
    shortest, longest = min(names), max(names)
    same = next((place for place, sign in enumerate(shortest) if longest[place : place + 1] != sign), len(shortest))
    return shortest[: shortest.rfind("/", 0, same) + 1]


def learn_files(
    files: Mapping[str, Sequence[str]],
    declared: datasets.Features | None = None,
    config: str = "",
    revision: str = "",
) -> KnownDataset:
    """The contents of files, read from their ends, when all agree on what their labels mean.

    Args:
        files: the parquet or arrow files of each split; a few are read at a time.
        declared: the types of the columns that a README gives.
        config: name of the configuration.
        revision: the commit.

    Raises:
        DataError: where a label means another class in another file, or none.
    """
    owners = [(split, path) for split, paths in files.items() for path in paths]
    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(_read_end, [path for _, path in owners]))
    called = [
        f"the {split} split" + (f" ({path.rpartition('/')[2]})" if len(files[split]) > 1 else "")
        for split, path in owners
    ]
    if len(set(called)) < len(called):
        called = [path for _, path in owners]
    of_files = {name: end.features for name, end in zip(called, found, strict=True)}
    if declared is None:
        features = features_of_all(of_files)
    else:
        features = declared
        telling = {name: datasets.Features(_class_labels(own)) for name, own in of_files.items()}
        features_of_all({"the README": declared, **telling})
    without_class: dict[str, set[str]] = defaultdict(set)
    for (split, _), end in zip(owners, found, strict=True):
        for column, (least, most) in end.ranges.items():
            kind = features.get(column)
            if isinstance(kind, datasets.ClassLabel) and most is not None and most >= kind.num_classes:
                raise DataError(_beyond(column, most, kind))
            if least is None or least < 0:
                without_class[split].add(column)
    told = {split: tuple(sorted(columns)) for split, columns in without_class.items()}
    parts = [(split, name, end.features) for (split, _), name, end in zip(owners, called, found, strict=True)]
    return KnownDataset(config, revision, tuple(files), features, told, unusable_columns(features, parts))


def _class_labels(features: datasets.Features) -> dict[str, datasets.ClassLabel]:
    return {column: kind for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}


def count_without_class(labels: Iterable[Label | None], column: str, kind: Any) -> int:
    """How many labels name no class: missing, blank and negative ones.

    Raises:
        DataError: for one beyond the names of a `ClassLabel`.
    """
    found = list(labels)
    if isinstance(kind, datasets.ClassLabel):
        beyond = [label for label in found if isinstance(label, int) and label >= kind.num_classes]
        if beyond:
            raise DataError(_beyond(column, max(beyond), kind))
    return sum(not is_class(label) for label in found)


def _beyond(column: str, label: int, kind: datasets.ClassLabel) -> str:
    return (
        f"column {column!r} has the label {label}, and names for {kind.num_classes} classes alone: "
        f"{', '.join(kind.names[:5])}. Expected labels from 0 to {kind.num_classes - 1}"
    )


def features_of_all(of_parts: Mapping[str, datasets.Features]) -> datasets.Features:
    """The types of the columns, those of the first part.

    Args:
        of_parts: the types of the columns in each split or file, by what it is called.

    Raises:
        DataError: where a label means another class in another part, or may.
    """
    first, *others = of_parts
    for part in others:
        for column, kind in of_parts[part].items():
            known = of_parts[first].get(column)
            if known is None or isinstance(kind, datasets.ClassLabel) == isinstance(known, datasets.ClassLabel):
                if isinstance(kind, datasets.ClassLabel) and known is not None and kind.names != known.names:
                    raise DataError(_other_classes(column, first, known, part, kind))
            else:
                silent, telling = (first, part) if isinstance(kind, datasets.ClassLabel) else (part, first)
                raise DataError(
                    f"column {column!r}: {telling} says which classes its labels are, {silent} does not. Give all "
                    "of them one ClassLabel"
                )
    return of_parts[first]


def unusable_columns(
    features: datasets.Features, parts: Iterable[tuple[str, str, datasets.Features]]
) -> dict[str, dict[str, str]]:
    """For each split the columns that some part of it lacks, or has of another kind; and what to say of them.

    Args:
        features: the types of the columns that the parts should have.
        parts: of each split or file its split, what it is called, and the types of its columns.
    """
    unusable: dict[str, dict[str, str]] = defaultdict(dict)
    for split, called, own in parts:
        for column, kind in features.items():
            if column not in own:
                told = f"column {column!r} is not in {called}"
            elif described(own[column]) != described(kind) and NOTHING not in (
                described(own[column]),
                described(kind),
            ):
                told = f"column {column!r} holds {described(own[column])} in {called}, and elsewhere {described(kind)}"
            else:
                continue
            unusable[split].setdefault(column, f"{told}. Expected the same columns everywhere")
    return dict(unusable)


def _other_classes(column: str, first: str, known: datasets.ClassLabel, part: str, kind: datasets.ClassLabel) -> str:
    place = next(i for i, pair in enumerate(zip_longest(known.names, kind.names)) if pair[0] != pair[1])
    name = [names[place] if place < len(names) else "missing" for names in (known.names, kind.names)]
    return (
        f"column {column!r}: class {place} is {name[0]!r} in {first} and {name[1]!r} in {part}. Expected the same "
        "classes everywhere: bring them to one ClassLabel, with Dataset.align_labels_with_mapping for example"
    )


@dataclass(frozen=True)
class _End:
    """The facts at the end of a file.

    Attributes:
        features: the types of its columns.
        ranges: of columns of whole numbers the least and the largest; `None` for the least where some are missing.
    """

    features: datasets.Features
    ranges: Mapping[str, tuple[int | None, int | None]]


def _read_end(path: str) -> _End:
    with fsspec.open(path, "rb") as file:
        if path.endswith(".arrow"):
            return _End(datasets.Features.from_arrow_schema(_arrow_schema(file)), {})
        parquet = pq.ParquetFile(file)
        schema, metadata = parquet.schema_arrow, parquet.metadata
    whole = [name for name in schema.names if pa.types.is_integer(schema.field(name).type)]
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for place in range(metadata.num_columns):
        name = metadata.schema.column(place).path
        if name not in whole or not metadata.num_row_groups:
            continue
        groups = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
        known = [each for each in groups if each is not None and each.has_min_max]
        missing = any(each is not None and each.null_count for each in groups)
        least = None if missing else min((each.min for each in known), default=0)
        ranges[name] = least, max((each.max for each in known), default=None)
    return _End(datasets.Features.from_arrow_schema(schema), ranges)


def _arrow_schema(file: Any) -> pa.Schema:
    try:
        return pa.ipc.open_stream(file).schema
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_file(file).schema
