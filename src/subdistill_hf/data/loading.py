"""Images of the subtask: which rows are read, and how they are split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import datasets
import numpy as np

from subdistill_hf.config.options import EMBEDDED_DATASETS, DataOptions
from subdistill_hf.config.unknown_images import UNKNOWN_KINDS
from subdistill_hf.config.validation import NO_LABELS, check_data_options
from subdistill_hf.data.columns import ImageColumns, Label, is_class
from subdistill_hf.data.folder_layout import SPLIT_OF_WORD, composed
from subdistill_hf.data.image_facts import image_facts, transparency_notice
from subdistill_hf.data.images import ImageStore
from subdistill_hf.data.labelled_rows import with_subtask_labels
from subdistill_hf.data.marks import MarkedRows, Marking, mark_rows
from subdistill_hf.data.notices import Notices, untested_classes, unused_splits
from subdistill_hf.data.other_images import OTHER, OtherImages
from subdistill_hf.data.repeated_images import without_repeated
from subdistill_hf.data.sources import is_local, open_source
from subdistill_hf.data.splits import held_out_test, train_and_validation
from subdistill_hf.data.stored_images import chosen, content_digests
from subdistill_hf.data.subtask import Subtask, SubtaskError, Superclasses, outputs_of, resolve_classes
from subdistill_hf.data.tables import Source, StreamSource
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DataError
from subdistill_hf.formatting import last_part

OFFICIAL_TEST_SPLITS = ("test", "validation")
SPLIT_COLUMNS = ("split", "splits", "subset", "set", "partition", "usage", "phase")
"""Columns that may tell the split of each row, in datasets that are one table."""


def known_classes(outputs: Sequence[str], other: bool) -> tuple[str, ...]:
    """The classes among the names of a student's outputs.

    Args:
        outputs: all names, in their order.
        other: whether the last one is the answer for other images.
    """
    return tuple(outputs[:-1] if other else outputs)


@dataclass(frozen=True)
class SubtaskData:
    """The images of one subtask; labels are the student's outputs, 0 to C - 1.

    Attributes:
        name: name of the dataset.
        hub_id: its id on the Hub, if it comes from there.
        subtask: the classes.
        class_names: all class names of the dataset.
        train: training images with labels.
        validation: images held out of training, for choosing the checkpoint.
        test: the test images, for the final figures.
        test_split: the split that they are, or where they were held out of, in words.
        columns: the image and label columns.
        official_test: whether the test images are a split of the dataset's own.
        revision: the commit of a dataset of the Hub.
        marking: which images are shown with a spurious mark; the rows themselves hold the images without it.
        sizes: heights and widths that occur among the images, in a sample that is spread evenly over all.
        typical_side: the larger side of the test image in the middle, by area, of such a sample.
        notices: what of the dataset is not used, or should be known of it.
        others: images of none of the classes, if there is an answer for them or they are to be tested with.
        labels_by_teacher: whether the labels are the teacher's answers, since the dataset has none.
        chosen: then of each split the number of images that were `drawn`, and class name to `places` among them.
        taught: the training images, and those without labels behind them; the same as `train` where there are none.
        store: keeps decoded images once for all views of them.
    """

    name: str
    hub_id: str | None
    subtask: Subtask
    class_names: tuple[str, ...]
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    test_split: str
    columns: ImageColumns
    official_test: bool = True
    revision: str | None = None
    marking: Marking | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    typical_side: int = 0
    notices: tuple[str, ...] = ()
    others: OtherImages | None = None
    labels_by_teacher: bool = False
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    taught: datasets.Dataset | None = None
    store: ImageStore = field(default_factory=ImageStore, compare=False)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the student's outputs: the classes, and the answer "none of these" behind them."""
        answered = self.others is not None and self.others.answered
        return (*self.subtask.names, OTHER) if answered else self.subtask.names

    def with_unlabelled(self, rows: datasets.Dataset) -> SubtaskData:
        """The same with more training images, which have no labels; their columns are those of the others."""
        return replace(self, taught=datasets.concatenate_datasets([self.train, rows]))

    def rows(self, split: str) -> datasets.Dataset:
        """The rows of `"train"`, `"taught"`, `"validation"` or `"test"`; or the unknown ones of `UNKNOWN_KINDS`."""
        if split == "taught" and self.taught is None:
            return self.train
        found: datasets.Dataset = getattr(self.others if split in UNKNOWN_KINDS else self, split)
        return found

    def marked(self, split: str) -> MarkedRows | None:
        """The marked images of a split; `None` without a mark."""
        rows: MarkedRows | None = getattr(self.marking, "train" if split == "taught" else split, None)
        return rows

    def views(self, split: str, augmentation: str = "none", flip: bool = False, **further: Any) -> ViewDataset:
        """Views of the images of a split, with the mark if there is one.

        Args:
            split: which images, see `rows`.
            augmentation: see `ViewDataset`.
            flip: see `ViewDataset`.
            further: other arguments of `ViewDataset`; `marked=None` shows the images without the mark.
        """
        chosen = {"marked": self.marked(split), "store": self.store, **further}
        return ViewDataset(self.rows(split), self.columns, augmentation, flip, **chosen)

    def images_per_class(self) -> dict[str, int]:
        """Class name to number of training images."""
        counts = np.bincount(self.train[self.columns.label], minlength=len(self.output_names))
        return dict(zip(self.output_names, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Classes:
    """All classes of a dataset, by their ids: their names, and how the label column spells them."""

    names: tuple[str, ...]
    labels: tuple[Label, ...]


ClassCheck = Callable[[Subtask, Sequence[str]], None]
"""Refuses a subtask among all class names of its dataset."""


def load_subtask(
    options: DataOptions, seed: int = 0, processes: int | None = None, check: ClassCheck | None = None
) -> SubtaskData:
    """Load the images of the subtask's classes only; others are dropped before anything is decoded.

    Training and validation images are chosen per class, the same for a seed; those of a smaller share or number are
    among those of a larger one. What is on the disk and not used is said as a warning, and kept in `notices`.

    Args:
        options: dataset, classes, columns and splits.
        seed: of the choice of training and validation images.
        processes: how many processes generate or read images.
        check: of the classes, before any image is read.

    Raises:
        SubtaskError: for classes that are unknown or have no images.
        DataError: for a dataset that cannot be loaded, has no images, labels, or test split, whose files do not say
            clearly what they are, or options that contradict each other.
    """
    source, columns = _labelled_source(options, processes)
    notices = Notices(source.notices)
    classes = all_classes(source, columns, options.train_split)

    def superclasses() -> Mapping[str, Sequence[str]]:
        return _superclasses(source, columns, classes, options.train_split)

    subtask = resolve_classes(options.classes, classes.names, superclasses)
    if check is not None:
        check(subtask, classes.names)
    marked = _marked_outputs(options, subtask, classes, superclasses)
    rows, tested, test = _rows_of(source, columns, classes, subtask, options, notices)
    outputs = np.asarray(rows[columns.label][:], dtype=np.int64)
    try:
        train_rows, validation_rows = train_and_validation(outputs, subtask, options, seed)
    except SubtaskError as error:
        raise SubtaskError("; ".join([str(error), *notices.said])) from error
    notices.add(untested_classes(subtask, test[columns.label][:]))
    facts = [image_facts(part, columns.image) for part in (rows, test)]
    notices.add([notice] if (notice := transparency_notice(facts)) else [])
    marking = None
    if marked:
        marking = mark_rows(options, subtask, marked, outputs, (train_rows, validation_rows), len(test), seed)
    local = is_local(options.dataset)
    return SubtaskData(
        name=last_part(options.dataset) if local else options.dataset,
        hub_id=None if local or options.dataset in EMBEDDED_DATASETS else options.dataset,
        subtask=subtask,
        class_names=classes.names,
        train=rows.select(train_rows),
        validation=rows.select(validation_rows),
        test=test,
        test_split=tested or f"held out of {options.train_split}",
        columns=columns,
        official_test=tested is not None,
        revision=source.revision,
        marking=marking,
        sizes=tuple(sorted({size for each in facts for size in each.sizes})),
        typical_side=facts[1].typical_side or 0,
        notices=tuple(notices.said),
    )


def _rows_of(
    source: Source, columns: ImageColumns, classes: Classes, subtask: Subtask, options: DataOptions, notices: Notices
) -> tuple[datasets.Dataset, str | None, datasets.Dataset]:
    """The subtask's images for training, the name of the official test split, if that is tested with, and the test."""
    labels = [classes.labels[class_id] for class_id in subtask.dataset_ids]
    rows = with_subtask_labels(source.rows(options.train_split, columns, labels), columns, subtask, labels)
    tested, test, held_out = None, None, np.zeros(len(rows), bool)
    if options.test_fraction is None:
        tested, test = _official_test(source, columns, labels, options)
        test = with_subtask_labels(test, columns, subtask, labels)
    else:
        outputs = np.asarray(rows[columns.label][:], dtype=np.int64)
        held_out = held_out_test(outputs, list(content_digests(rows, columns.image)), options.test_fraction)
    notices.add(unused_splits(source, columns.label, options.train_split, tested))
    if tested is not None:
        notices.add(_unknown_labels(source, columns.label, classes, tested))
    kept = [np.ones(len(part), bool) for part in (rows, test) if part is not None]
    if options.dataset not in EMBEDDED_DATASETS:
        kept, repeated = without_repeated(rows, test, columns)
        notices.add(repeated)
    test = chosen(rows, kept[0] & held_out) if test is None else chosen(test, kept[1])
    return chosen(rows, kept[0] & ~held_out), tested, test


def _labelled_source(options: DataOptions, processes: int | None) -> tuple[Source, ImageColumns]:
    """A dataset with labelled images in its training split, and the columns of these.

    Raises:
        DataError: for anything else.
    """
    check_data_options(options)
    if options.label_column == NO_LABELS:
        raise DataError(f"label_column={NO_LABELS}: expected images with labels, without which only distill works")
    source = open_source(options, processes)
    if options.train_split not in source.splits:
        raise DataError(
            f"expected a {options.train_split} split, found {', '.join(source.splits)}: choose one with --train_split"
        )
    columns = ImageColumns.of(source.features, options.image_column, options.label_column, options.superclass_column)
    _check_usable(source, options.train_split, columns.image, columns.label)
    _refuse_mixed_splits(source, options.train_split, columns)
    return source, columns


def _check_usable(source: Source, split: str, *columns: str) -> None:
    """Refuse columns that not all parts of a split have alike.

    Raises:
        DataError: naming the part.
    """
    for column in columns:
        if reason := source.unusable.get(split, {}).get(column):
            raise DataError(reason)


def _refuse_mixed_splits(source: Source, split: str, columns: ImageColumns) -> None:
    """Refuse training rows of which a column says that they are of several splits; a stream is not read for it.

    Raises:
        DataError: naming the column.
    """
    others = set(source.features) - {columns.image, columns.label, columns.superclass}
    for name in () if isinstance(source, StreamSource) else sorted(others):
        kind = source.features[name]
        texts = isinstance(kind, datasets.ClassLabel) or (isinstance(kind, datasets.Value) and "string" in kind.dtype)
        if name.casefold() not in SPLIT_COLUMNS or not texts or source.unusable.get(split, {}).get(name):
            continue
        values: set[Any] = {value for value in source.column(split, name) if value is not None}
        told = sorted(kind.names[value] if isinstance(kind, datasets.ClassLabel) else value for value in values)
        if len(told) > 1 and any(value.casefold() in SPLIT_OF_WORD for value in told):
            raise DataError(
                f"column {name!r} says that the rows of the {split} split are of several splits "
                f"({', '.join(map(repr, told[:5]))}), which would be mixed. Expected a file or a folder for each, "
                "such as train.parquet and test.parquet: write them, or leave the column out if it means another thing"
            )


def _unknown_labels(source: Source, column: str, classes: Classes, test: str) -> list[str]:
    """The test images of classes that no training image has, where the labels themselves are the classes' names.

    Raises:
        DataError: for a label that is the text of a training image's but for the encoding of its accents.
    """
    if isinstance(source.features[column], datasets.ClassLabel):
        return []
    found = [label for label in source.column(test, column) if is_class(label)]
    unknown = sorted({str(label) for label in found} - set(classes.names))
    _refuse_respelled([*classes.names, *unknown], column)
    if not unknown:
        return []
    count = sum(str(label) in unknown for label in found)
    return [
        f"left out: {count} images of the split {test} of classes that no training image has: "
        f"{', '.join(map(repr, unknown[:5]))}"
    ]


def _refuse_respelled(names: Sequence[str], column: str) -> None:
    """Refuse texts that differ in the encoding of their accents alone: they look the same.

    Raises:
        DataError: naming one.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(composed(name), name)) != name:
            raise DataError(
                f"column {column!r} has the label {name!r} in two spellings, {other!a} and {name!a}: bring "
                "all to one with unicodedata.normalize('NFC', label)"
            )


def all_classes(source: Source, columns: ImageColumns, split: str) -> Classes:
    """The classes that the label column declares, or else the distinct texts or numbers in it, sorted.

    As with `ClassLabel`, a negative number marks an image without a class, and so does a blank text.

    Raises:
        DataError: for texts that differ in the encoding of their accents alone.
    """
    kind = source.features[columns.label]
    if isinstance(kind, datasets.ClassLabel):
        return Classes(tuple(kind.names), tuple(range(kind.num_classes)))
    labels: list[Any] = sorted({label for label in source.column(split, columns.label) if is_class(label)})
    _refuse_respelled([str(label) for label in labels], columns.label)
    return Classes(tuple(str(label) for label in labels), tuple(labels))


def classes_of_dataset(options: DataOptions) -> tuple[tuple[str, ...], Callable[[], Superclasses]]:
    """The names of all classes of a dataset, and what reads its superclasses; no image is.

    Args:
        options: the dataset and its columns.

    Raises:
        DataError: as `load_subtask` does.
    """
    source = open_source(options)
    columns = ImageColumns.of(source.features, options.image_column, options.label_column, options.superclass_column)
    _check_usable(source, options.train_split, columns.label)
    classes = all_classes(source, columns, options.train_split)
    return classes.names, lru_cache(lambda: _superclasses(source, columns, classes, options.train_split))


def _superclasses(source: Source, columns: ImageColumns, classes: Classes, split: str) -> Mapping[str, Sequence[str]]:
    """The classes of each superclass, read from the label columns."""
    if columns.superclass is None:
        return {}
    _check_usable(source, split, columns.superclass)
    kind = source.features[columns.superclass]
    fine, coarse = (source.column(split, name) for name in (columns.label, columns.superclass))
    by_label = dict(zip(classes.labels, classes.names, strict=True))
    owner: dict[str, str] = {}
    pairs: set[tuple[Any, Any]] = {pair for pair in zip(fine, coarse, strict=True) if None not in pair}
    for label, superclass in sorted(pair for pair in pairs if pair[0] in by_label):
        name = kind.names[superclass] if isinstance(kind, datasets.ClassLabel) else str(superclass)
        if owner.setdefault(by_label[label], name) != name:
            raise DataError(
                f"column {columns.superclass!r} holds no superclasses of {columns.label!r}: class {by_label[label]!r} "
                f"is in {owner[by_label[label]]!r} and {name!r}. Choose another with --superclass_column"
            )
    grouped: dict[str, list[str]] = {}
    for class_name, name in owner.items():
        grouped.setdefault(name, []).append(class_name)
    return grouped


def _marked_outputs(
    options: DataOptions,
    subtask: Subtask,
    classes: Classes,
    superclasses: Callable[[], Mapping[str, Sequence[str]]],
) -> tuple[int, ...]:
    """The student's outputs of the classes that carry the mark; none without one."""
    if options.mark is None:
        return ()
    try:
        return outputs_of(options.mark_classes, subtask, classes.names, superclasses) or (0,)
    except SubtaskError as error:
        raise SubtaskError(f"mark_classes: {error}") from error


def _official_test(
    source: Source, columns: ImageColumns, labels: Sequence[Label], options: DataOptions
) -> tuple[str, datasets.Dataset]:
    """The first official split with labelled images of the subtask, and these: some keep test labels secret."""
    if options.test_split == options.train_split:
        raise DataError(
            f"test_split={options.test_split} is the split that is trained on: give another, or hold out a share of "
            "it with --test_fraction 0.2"
        )
    wanted = OFFICIAL_TEST_SPLITS if options.test_split is None else (options.test_split,)
    official = [name for name in wanted if name in source.splits and name != options.train_split]
    if not official:
        raise DataError(
            f"dataset {options.dataset!r} has no {' or '.join(wanted)} split, only "
            f"{', '.join(source.splits)}: choose one with --test_split, or hold out a share of the training images "
            "with --test_fraction 0.2"
        )
    usable = [name for name in official if not {columns.image, columns.label} & set(source.unusable.get(name, {}))]
    if not usable:
        _check_usable(source, official[0], columns.image, columns.label)
    for name in usable:
        rows = source.rows(name, columns, labels)
        if len(rows):
            return name, rows
    raise DataError(f"the {' and '.join(official)} split of {options.dataset!r} has no image of the subtask's classes")
