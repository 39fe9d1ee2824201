"""Whether exported files do what the student does in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from subdistill_hf.export.device_files import Runner
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.images import Bytes
from subdistill_hf.export.preprocessing import INSTEAD, Normalise, Resize, Step
from subdistill_hf.export.student import TorchStudent

LARGEST_DIFFERENCE: Final = 2.01
"""Levels of 255 that a pixel of a file may differ by: torchvision's weights of a filter have 16 bits,
onnxruntime's and Pillow's 22."""
LARGEST_MEAN_DIFFERENCE: Final = 0.2
PROBED_SIZES: Final = ((32, 32), (40, 90), (91, 40), (201, 300), (300, 201), (17, 23))
"""Heights and widths that are compared for every student; `_sizes_around` adds those near its own size."""
MOST_COMPARED: Final = 100


@dataclass(frozen=True)
class Difference:
    """How far two sets of values lie apart.

    Attributes:
        largest: absolute difference.
        mean: of the absolute differences.
    """

    largest: float
    mean: float


def check_preprocessing(
    student: TorchStudent, steps: tuple[Step, ...], run: Runner, images: Sequence[Bytes]
) -> Difference:
    """Compare the pixels that a format makes in these steps with those of the student's image processor.

    Args:
        student: with the processor.
        steps: see `preprocessing.steps_of`.
        run: takes the steps, see `device_files.DeviceFiles.preprocessing_runner`.
        images: of the student's kind; noise of several sizes is compared as well, tall and odd ones among them.

    Returns:
        The difference in levels of 255, of all images.

    Raises:
        ExportError: where the processor does something that the steps do not say.
    """
    unit = np.prod([one.deviation for one in steps if isinstance(one, Normalise)], axis=0).reshape(3, 1, 1)
    noise = np.random.default_rng(0)
    probes = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in probed_sizes(steps)]
    differences = []
    for image in [*probes, *images[:MOST_COMPARED]]:
        (expected,) = student.pixels([image])
        found = run(image[None])[0]
        if found.shape != expected.shape:
            raise _differs(student, f"an image of {image.shape[0]}x{image.shape[1]} pixels becomes another size")
        levels = np.abs(found - expected) * unit
        differences.append(Difference(float(levels.max()), float(levels.mean())))
    worst = Difference(max(one.largest for one in differences), max(one.mean for one in differences))
    if worst.largest > LARGEST_DIFFERENCE or worst.mean > LARGEST_MEAN_DIFFERENCE:
        raise _differs(student, f"pixels differ by up to {worst.largest:.1f} of 255 levels")
    return worst


def probed_sizes(steps: tuple[Step, ...]) -> tuple[tuple[int, int], ...]:
    """Heights and widths of the images of noise that preprocessing is compared on.

    Args:
        steps: see `preprocessing.steps_of`.
    """
    return (*PROBED_SIZES, *(size for step in steps if isinstance(step, Resize) for size in _sizes_around(step)))


def _sizes_around(step: Resize) -> tuple[tuple[int, int], ...]:
    """Sizes near that of a step, where an error of scaling is largest: a fixed size would be far from many students'.

    Two lie on both sides of where Pillow 13 turns to scaling the height first: what it rounds between differs with the
    order. Those whose longer side is left alone have all remainders of margins by 4, which centre crops may halve in
    different ways.
    """
    height, width = step.height, step.width or step.height
    more = max(height, width) // 8 + 1
    on_the_border = (height + 2 * more, width + more) if step.width else (2 * (height + more), height + more)
    beyond = (on_the_border[0] + 3, on_the_border[1])
    sizes = [on_the_border, beyond, (3 * height, width + 1), (height + 2, 3 * width + 1)]
    if not step.width:
        sizes += [size for longer in range(height + 1, height + 5) for size in ((height, longer), (longer, height))]
    return tuple(sizes)


def logit_difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The largest absolute difference between logits `(N, C)`."""
    return float(np.abs(found - expected).max())


def agreement(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The share of the images that two sets of logits `(N, C)` put in the same class."""
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _differs(student: TorchStudent, what: str) -> ExportError:
    name = type(student.loaded.processor).__name__
    return ExportError(
        f"the student's image processor cannot be put into the exported file: {name} does more than its settings say "
        f"({what}). {INSTEAD}"
    )
