"""The images that are explained: files that the user names, or test images of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from subdistill_hf.data.folder_source import is_image_file
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.pipeline.student_images import evenly_spread, load_for_student, load_of_run, read_image

GIVE_IMAGES: Final = "give --images, files or folders"
"""What to do where the images of a run cannot be loaded."""


@dataclass(frozen=True)
class ImagesToExplain:
    """N images.

    Attributes:
        images: bytes `(3, H, W)` each.
        names: of the images.
        labels: their classes, where they are known.
        marks: where the spurious mark lies in each, `(H, W)`, for images that carry one.
        described: the images in words.
    """

    images: tuple[Tensor, ...]
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    marks: tuple[Tensor | None, ...]
    described: str


def images_of_paths(paths: Sequence[str], classes: Sequence[str], most: int) -> ImagesToExplain:
    """The images of some files and folders; a folder that is named as a class gives its images that label.

    Args:
        paths: of image files, and of folders that hold some, below them too.
        classes: of the student.
        most: of more images, some that are spread evenly over all.

    Raises:
        ExplainError: for a path that is not there or holds no image, or a file that is none.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if is_image_file(file))
            if not found:
                raise ExplainError(f"images: the folder {name} holds no image: expected PNG, JPEG or the like")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ExplainError(f"images: there is no file or folder {name}")
    chosen = [files[place] for place in evenly_spread(len(files), most)]
    labels = [next((part.name for part in file.parents if part.name in classes), None) for file in chosen]
    count = f"{len(chosen):,}" if len(chosen) == len(files) else f"{len(chosen):,} of the {len(files):,}"
    return ImagesToExplain(
        images=tuple(map(_read, chosen)),
        names=tuple(file.name for file in chosen),
        labels=tuple(labels),
        marks=(None,) * len(chosen),
        described=f"{count} {'image that was' if len(files) == 1 else 'images that were'} given",
    )


def data_of_run(image_options: Mapping[str, Any], classes: Sequence[str], hint: str = GIVE_IMAGES) -> SubtaskData:
    """The images that a run was trained and tested with; without labels, its teacher's answers are their classes.

    Args:
        image_options: of its report; empty for a student without one.
        classes: of the student, without an answer for unknown images.
        hint: what to do without them.

    Raises:
        ExplainError: when they cannot be loaded any more, or are of other classes.
    """
    if not image_options:
        raise ExplainError(f"the student's folder does not say which images it was tested with: {hint}")
    return load_for_student(lambda: load_of_run(image_options), classes, "the images of the run", hint, ExplainError)


def test_images(data: SubtaskData, most: int) -> ImagesToExplain:
    """Test images of a run, spread evenly over all.

    Args:
        data: see `data_of_run`.
        most: number of images at most.
    """
    views = data.views("test")
    places = evenly_spread(len(views), most)
    images = tuple(views.image(place) for place in places)
    marks: tuple[Tensor | None, ...] = (None,) * len(images)
    if data.marking is not None:
        plain = data.views("test", marked=None)
        pairs = zip(images, (plain.image(place) for place in places), strict=True)
        marks = tuple((marked != image).any(dim=0) for marked, image in pairs)
    count = f"{len(places):,} of the {len(views):,}" if len(places) < len(views) else f"the {len(views):,}"
    return ImagesToExplain(
        images=images,
        names=tuple(f"test image {place}" for place in places),
        labels=tuple(data.subtask.names[views.labels[place]] for place in places),
        marks=marks,
        described=f"{count} test image{'' if len(views) == 1 else 's'} of {data.name}"
        + (", without labels: the classes are the teacher's answers" if data.labels_by_teacher else ""),
    )


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_image(path, ExplainError, "images: ")).permute(2, 0, 1)
