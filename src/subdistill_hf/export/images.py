"""The images that an export calibrates int8 with, chooses by, and measures with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.folder_source import is_image_file
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.export.errors import ExportError
from subdistill_hf.formatting import last_part
from subdistill_hf.hub.snippet import EXAMPLE_FILE
from subdistill_hf.pipeline.student_images import evenly_spread, load_for_student, load_of_run, read_image

Bytes = npt.NDArray[np.uint8]

MOST_CALIBRATION_IMAGES: Final = 128
MOST_IMAGES: Final = 2000
MOST_BYTES: Final = 512 * 2**20
"""Of the images that are measured with; they are in memory at once."""
MADE_UP_SIZES: Final = ((64, 64), (96, 64), (51, 120), (224, 224))


@dataclass(frozen=True)
class ImageSet:
    """Images as bytes `(H, W, 3)`, with their classes where they are known.

    Attributes:
        images: N images.
        labels: the student's output of each.
    """

    images: tuple[Bytes, ...]
    labels: tuple[int, ...] | None = None

    def accuracy(self, logits: npt.NDArray[Any]) -> float | None:
        """The share that logits `(N, C)` classify correctly; `None` without labels."""
        return None if self.labels is None else float((logits.argmax(axis=1) == np.asarray(self.labels)).mean())


@dataclass(frozen=True)
class ExportImages:
    """The images of an export.

    Attributes:
        calibration: give int8 its ranges; none without images of the student's kind.
        validation: choose among the ways to int8.
        test: what is reported was measured with.
        described: the test images in words.
        chosen_on: which images `validation` holds, in words.
    """

    calibration: ImageSet
    validation: ImageSet
    test: ImageSet
    described: str
    chosen_on: str = "the same images"


def images_of_run(options: Mapping[str, Any], classes: Sequence[str]) -> ExportImages:
    """The images that a run trained, validated and tested its student with; of one without labels, without classes.

    Args:
        options: `image_options` of its report.
        classes: of the student.

    Raises:
        ExportError: when they cannot be loaded any more, or are of other classes.
    """
    return _of_dataset(lambda: load_of_run(options), classes, "the images of the run", "give --calibration")


def calibration_images(place: str, classes: Sequence[str]) -> ExportImages:
    """The images of a dataset with the student's classes, or of a folder without classes.

    Args:
        place: a folder of images alone, or what `--dataset` takes.
        classes: of the student.

    Raises:
        ExportError: for a dataset of other classes, or images that cannot be read.
    """
    folder = Path(place)
    if folder.is_dir() and (files := _image_files(folder)):
        chosen = evenly_spread(len(files), 2 * MOST_CALIBRATION_IMAGES)
        images = [read_image(files[number], ExportError) for number in chosen]
        # every second one measures what the others have calibrated; one alone does both
        calibration, test = ImageSet(tuple(images[::2])), ImageSet(tuple(images[1::2] or images))
        name = last_part(folder)
        which = f"images of the folder {name}, without classes"
        which = which if len(images) == len(files) else f"{len(images):,} of the {len(files):,} {which}"
        return ExportImages(calibration, test, test, which)
    options = DataOptions(dataset=place, classes=list(classes))
    hint = "expected images of the student's classes, in folders of these names"
    return _of_dataset(lambda: load_subtask(options), classes, f"calibration={place!r}", hint)


def made_up_images(folder: Path) -> ExportImages:
    """Images of noise, and the student's example image: enough to compare two programs, not to measure accuracy.

    Args:
        folder: of the student.
    """
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in MADE_UP_SIZES]
    example = folder / EXAMPLE_FILE
    if example.is_file():
        images.insert(0, read_image(example, ExportError))
    test = ImageSet(tuple(images))
    described = "images of noise" + (" and the example image" if example.is_file() else "")
    return ExportImages(ImageSet(()), test, test, described)


def _of_dataset(load: Callable[[], SubtaskData], classes: Sequence[str], what: str, hint: str) -> ExportImages:
    data = load_for_student(load, classes, what, hint, ExportError)
    test, total = _set_of(data, "test", MOST_IMAGES), len(data.test)
    count = f"{len(test.images):,} of the {total:,}" if len(test.images) < total else f"the {total:,}"
    choosing = "validation" if len(data.validation) else "train"  # of a run that has held out none
    return ExportImages(
        _set_of(data, "train", MOST_CALIBRATION_IMAGES),
        _set_of(data, choosing, MOST_IMAGES),
        test,
        f"{count} test images of {data.name}{', without labels' if data.labels_by_teacher else ''}",
        "validation images" if choosing == "validation" else "training images",
    )


def _set_of(data: SubtaskData, split: str, most: int) -> ImageSet:
    """The images of a split, or some that are evenly spread over it."""
    views: ViewDataset = data.views(split)
    first = views.image(0)
    places = evenly_spread(len(views), max(1, min(most, MOST_BYTES // first.numel())))
    images = tuple(np.ascontiguousarray(views.image(place).permute(1, 2, 0).numpy()) for place in places)
    labels = None if data.labels_by_teacher else tuple(int(views.labels[place]) for place in places)
    return ImageSet(images, labels)


def _image_files(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, if no other folder lies in it; what is hidden does not count."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any(path.is_dir() for path in paths):
        return []
    return [path for path in paths if is_image_file(path)]
