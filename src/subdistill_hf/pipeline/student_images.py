"""Images for a student that is there: those of its run, those of another dataset with its classes, or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from subdistill_hf.config.options import DataOptions
from subdistill_hf.config.validation import NO_LABELS
from subdistill_hf.data.images import as_rgb
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.pipeline.without_labels import load_chosen


def options_of_run(image_options: Mapping[str, Any]) -> tuple[DataOptions, int]:
    """The options that the images of a run were loaded with, and the seed.

    Args:
        image_options: of its report.
    """
    known = {one.name for one in fields(DataOptions)}
    given = {name: value for name, value in image_options.items() if name in known}
    return DataOptions(**given), int(image_options.get("seed", 0))


def load_of_run(image_options: Mapping[str, Any]) -> SubtaskData:
    """Load the images of a run; of one without labels, those that its teacher chose, with its answers as labels.

    Args:
        image_options: of its report.

    Raises:
        SubDistillError: when they cannot be loaded any more.
    """
    options, seed = options_of_run(image_options)
    if options.label_column != NO_LABELS:
        return load_subtask(options, seed)
    if "chosen" not in image_options:
        raise DataError("the report, of an earlier version, does not say which of them the teacher chose")
    return load_chosen(options, int(image_options["unlabelled_images"]), image_options["chosen"], seed)


def load_for_student(
    load: Callable[[], SubtaskData], classes: Sequence[str], what: str, hint: str, error: type[SubDistillError]
) -> SubtaskData:
    """Load images that must be of the student's classes.

    Args:
        load: loads them.
        classes: of the student, without an answer for unknown images.
        what: the images in messages.
        hint: how to mend it.
        error: that is raised.

    Raises:
        SubDistillError: of the given kind, when they cannot be loaded or are of other classes.
    """
    try:
        data = load()
    except SubDistillError as reason:
        raise error(f"{what}: {str(reason).rstrip('.')}: {hint}") from reason
    if list(data.subtask.names) != list(classes):
        raise error(
            f"{what} are of the classes {', '.join(data.subtask.names)}, the student's are {', '.join(classes)}: "
            f"{hint}"
        )
    return data


def read_image(path: Path, error: type[SubDistillError], what: str = "") -> npt.NDArray[np.uint8]:
    """The bytes of an image file, upright as a student is trained with it, `(H, W, 3)`.

    Args:
        path: of the file.
        error: that is raised.
        what: begins the message.

    Raises:
        SubDistillError: of the given kind, when it holds no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(as_rgb(image))
    except Exception as reason:  # of damaged files Pillow and its plugins raise nearly anything
        raise error(f"{what}{path.name} cannot be used: {reason}. Remove or replace it") from reason


def evenly_spread(count: int, most: int) -> list[int]:
    """Places of some of many images, spread evenly over all.

    Args:
        count: of the images.
        most: how many are chosen, at most.
    """
    places: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return places
