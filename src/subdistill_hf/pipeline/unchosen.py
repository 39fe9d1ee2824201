"""Images of a dataset without labels that the teacher takes for none of the classes: for training and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.unknown_images import UNCHOSEN_BELOW, UNKNOWN_IMAGES, unchosen_below
from subdistill_hf.config.validation import NO_LABELS
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.other_classes import GLANCED, as_others, other_images, used_once, with_taught
from subdistill_hf.data.other_images import OtherImages
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.data.unlabelled import SPLITS, UnlabelledDataset
from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.pipeline.selection import Part, Selection

DRAWN: Final = {
    "train": "unchosen training images",
    "validation": "unchosen validation images",
    "test": UNKNOWN_IMAGES["unchosen"],
}
"""What images of none of the classes are called in notices."""


def check_teacher_knows_others(options: TaskOptions, teacher: LoadedModel, subtask: Subtask) -> None:
    """Refuse a teacher without an answer for images of none of the classes, where it is asked for that.

    Args:
        options: whether it is.
        teacher: the teacher.
        subtask: the classes.

    Raises:
        SubDistillError: when it knows these classes alone.
    """
    if len(teacher.labels) > len(subtask.names):
        return
    if options.other_class:
        raise SubDistillError(
            f"other_class: the teacher {teacher.name!r} knows the classes of the subtask alone, and has no answer for "
            "others: give one that knows more"
        )
    if options.label_column == NO_LABELS and must_be_tested(options):
        raise SubDistillError(
            f"test_unknown: the teacher {teacher.name!r} knows the classes of the subtask alone, and takes no image "
            "for another: give one that knows more, or --unknown_images"
        )


def unchosen_parts(
    rest: Part,
    rest_of_test: Part,
    chosen: tuple[Part, Part, Part],
    subtask: Subtask,
    options: TaskOptions,
    seed: int,
) -> list[Part]:
    """The images of none of the classes for training, validation and test; without an answer for them, for the test.

    None for training or validation is a near-duplicate of another image of the run, and none for the test of one that
    the student or its threshold has seen. Where nobody asked for them, they are few.

    Args:
        rest: those that a training could have.
        rest_of_test: those of the test.
        chosen: the images of the classes for training, validation and test.
        subtask: the classes.
        options: whether there is an answer for them, and how many are to be trained with.
        seed: of the choice.
    """
    none, (train, validation, test) = rest.chosen(np.empty(0, np.int64)), chosen
    if options.test_unknown is False and not options.other_class:
        return [none, none, none]
    asked = options.other_class or options.test_unknown
    usable, _ = rest_of_test.unlike(train, validation)
    tested = usable.drawn(len(test.places) if asked else min(GLANCED, len(test.places)), seed)
    if not options.other_class:
        return [none, none, tested]
    usable, _ = rest.unlike(tested, *chosen)
    wanted = other_images(options, len(train.places) + len(validation.places), subtask)
    held_out = max(1, round(options.validation_share * wanted))
    own_validation, others = usable.divided(min(1.0, held_out / max(1, len(usable.places))), seed)
    others, _ = others.unlike(own_validation)
    return [others.drawn(wanted - held_out, seed), own_validation, tested]


def with_unchosen(
    data: SubtaskData,
    found: UnlabelledDataset,
    parts: Sequence[Part],
    options: TaskOptions,
    selection: Selection,
) -> SubtaskData:
    """The images with those that the teacher takes for none of the classes, of each of `SPLITS`, none of them twice.

    Args:
        data: the images of the classes.
        found: the images that the others are of.
        parts: for training, validation and test, see `unchosen_parts`.
        options: whether there is an answer for them.
        selection: what became of the images that a training could have.

    Raises:
        DataError: when there are none for what was asked for.
    """
    drawn = {
        DRAWN[split]: images.rows.select(list(part.places))
        for split, images, part in reversed(list(zip(SPLITS, found.of_parts(), parts, strict=True)))
        if part.places
    }
    data, once = used_once(data, drawn, options.dataset)
    train, validation, test = (once.get(DRAWN[split]) for split in SPLITS)
    lacks_taught = options.other_class and (train is None or validation is None)
    if lacks_taught or (test is None and must_be_tested(options)):
        raise DataError(_none_unchosen(options, selection))
    if test is None:
        return data
    others = OtherImages(
        unchosen=as_others(data, test),
        train_images=0 if train is None else len(train),
        answered=options.other_class,
    )
    data = replace(data, others=others)
    return data if train is None or validation is None else with_taught(data, train, validation)


def must_be_tested(options: TaskOptions) -> bool:
    """Whether there must be images that the teacher takes for none of the classes to test with."""
    return options.other_class or (bool(options.test_unknown) and options.unknown_images is None)


def _none_unchosen(options: TaskOptions, selection: Selection) -> str:
    """Why there is no image of none of the classes, for a training or a test that needs some, and what to do."""
    least = unchosen_below(options.unlabelled_threshold)
    option = "other_class" if options.other_class else "test_unknown"
    higher = ", or a higher --unlabelled_threshold" if least < UNCHOSEN_BELOW else ""
    return (
        f"{option}: expected images that the teacher takes for none of the classes, below a probability of {least:g}, "
        f"{'to train and to test with' if options.other_class else 'to test with'}: found "
        f"{sum(mass < least for mass in selection.masses)} of {selection.found} images for the training, and too few "
        f"that are no copies of others. Give images that show other things too{higher}"
    )
