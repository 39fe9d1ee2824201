"""The explained examples of a student, for its page: images with the heat maps of teacher and student."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from subdistill_hf.reporting.explained import (
    EXPLANATIONS_FILE,
    EXPLANATIONS_FOLDER,
    ExplainedImage,
    Explanations,
)

EXAMPLES_FOLDER: Final = "examples"
PICTURES: Final = ("image", "teacher", "student")
"""What the pictures of an example show."""
MOST_EXAMPLES: Final = 12


def copy_examples(student: Path, place: Path, earlier: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Copy the pictures of explained examples to the page of a student; those of an earlier page are removed.

    Args:
        student: its folder.
        place: of the page.
        earlier: the examples of the page that is there, as this function returned them.

    Returns:
        Of each example its `name`, its `target` class, the `answers` of teacher and student, and the paths of its
        pictures below the page: those of `PICTURES`. None for a student that was not explained.

    Raises:
        ExplanationsError: when its explanations cannot be read.
    """
    target = place / EXAMPLES_FOLDER
    explained = (student / EXPLANATIONS_FOLDER / EXPLANATIONS_FILE).is_file()
    images = Explanations.load(student).images if explained else ()
    for example in earlier:
        for path in (example[kind] for kind in PICTURES):
            (target / Path(path).name).unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds files of the user
        target.rmdir()
    pictured = [image for image in images if _pictures_of(student, image)]
    examples = []
    for image in pictured[:MOST_EXAMPLES]:
        target.mkdir(parents=True, exist_ok=True)
        pictures = _pictures_of(student, image)
        for path in pictures.values():
            shutil.copyfile(path, target / path.name)
        examples.append(
            {
                "name": image.name,
                "target": image.target,
                "answers": {"teacher": image.teacher.answer, "student": image.student.answer},
                **{kind: f"{EXAMPLES_FOLDER}/{path.name}" for kind, path in pictures.items()},
            }
        )
    return examples


def _pictures_of(student: Path, image: ExplainedImage) -> dict[str, Path]:
    """The pictures of an example, by what they show; none unless all are there."""
    named = dict(zip(PICTURES, (image.picture, image.teacher.picture, image.student.picture), strict=True))
    folder = student / EXPLANATIONS_FOLDER
    paths = {kind: folder / Path(name).name for kind, name in named.items() if name is not None}
    return paths if len(paths) == len(named) and all(path.is_file() for path in paths.values()) else {}
