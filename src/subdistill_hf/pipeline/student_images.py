"""Images for a student that is there: those of its run, those of another dataset with its classes, or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.images import as_rgb
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.errors import SubDistillError


def options_of_run(image_options: Mapping[str, Any]) -> tuple[DataOptions, int]:
    """The options that the images of a run were loaded with, and the seed.

    Args:
        image_options: of its report.
    """
    known = {one.name for one in fields(DataOptions)}
    given = {name: value for name, value in image_options.items() if name in known}
    return DataOptions(**given), int(image_options.get("seed", 0))


def load_for_student(
    options: DataOptions, seed: int, classes: Sequence[str], what: str, hint: str, error: type[SubDistillError]
) -> SubtaskData:
    """Load images that must be of the student's classes.

    Args:
        options: of the images.
        seed: of what is drawn.
        classes: of the student, without an answer for unknown images.
        what: the images in messages.
        hint: how to mend it.
        error: that is raised.

    Raises:
        SubDistillError: of the given kind, when they cannot be loaded or are of other classes.
    """
    try:
        data = load_subtask(options, seed)
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
