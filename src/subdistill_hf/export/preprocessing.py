"""The work of an image processor as a short list of steps, which other runtimes can take too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from subdistill_hf.export.errors import ExportError

Interpolation = Literal["bilinear", "bicubic"]
Order = Literal["horizontal", "pillow13"]
INTERPOLATIONS: Final[dict[int, Interpolation]] = {2: "bilinear", 3: "bicubic"}
"""By the numbers that Pillow gives them, which the configurations of image processors hold."""
INTERPOLATIONS_OF_TORCHVISION: Final[dict[InterpolationMode, Interpolation]] = {
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
}
WITHOUT_CROP_FROM: Final = 384
"""ConvNeXt's processor resizes to this size and above without a crop."""
RGB: Final = 3
INSTEAD: Final = (
    "Scaling (bilinear or bicubic), cutting out the centre and normalisation can be; for this student give "
    "--preprocessing outside, and do its preprocessing on the device"
)


@dataclass(frozen=True)
class Resize:
    """Scale an image, with antialiasing.

    Attributes:
        height: pixels; with `width` 0, of the shorter side, and the longer one keeps the proportions.
        width: pixels.
        interpolation: of the filter.
        order: which side is scaled first: always the horizontal one, as torchvision and Pillow before 13 do; or, as
            Pillow 13 does, the vertical one where the height loses more than twice as many pixels as the width, which
            loses none where it grows. What is between is rounded to bytes.
    """

    height: int
    width: int = 0
    interpolation: Interpolation = "bilinear"
    order: Order = "horizontal"


@dataclass(frozen=True)
class CentreCrop:
    """Cut the centre out of an image, which is padded with black where it is too small.

    Attributes:
        height: pixels.
        width: pixels.
        half_even: whether half of an odd margin is rounded to the even number (torchvision), or down (transformers).
    """

    height: int
    width: int
    half_even: bool = False


@dataclass(frozen=True)
class Normalise:
    """(value - mean) / deviation for each channel, of bytes from 0 to 255.

    Attributes:
        mean: of the channels, R, G, B.
        deviation: of the channels.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


Step = Resize | CentreCrop | Normalise


@cache
def order_of_pillow() -> Order:
    """Which side the installed Pillow scales first, by what it makes of noise.

    Its version would not say it of a fork, nor of a build between two versions. For a third order, images of noise
    differ in `parity.check_preprocessing`.
    """
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8))
    size, bicubic = (15, 10), Image.Resampling.BICUBIC
    vertical_first = noise.resize((noise.width, size[1]), bicubic).resize(size, bicubic)
    return "pillow13" if noise.resize(size, bicubic).tobytes() == vertical_first.tobytes() else "horizontal"


def steps_of(processor: Any) -> tuple[Step, ...]:
    """The steps of an image processor, in their order.

    Args:
        processor: of timm's or transformers'. What a class of transformers does beyond its settings is not seen here:
            compare the pixels, see `parity.check_preprocessing`.

    Raises:
        ExportError: for a step that is not of the three kinds, naming it.
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        return tuple(step for one in processor.val_transforms.transforms for step in _step_of_timm(one))
    if not isinstance(processor, TorchvisionBackend | PilBackend):
        raise _unknown(f"{type(processor).__name__} is none of transformers' image processors")
    return (*_size_steps(processor), *_normalise(processor))


def described(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """The steps as values that `json` takes."""
    return [{"step": type(step).__name__, **asdict(step)} for step in steps]


def in_words(step: Step) -> str:
    """One of the steps as a command."""
    if isinstance(step, Normalise):
        return f"from the bytes of R, G and B subtract {_rounded(step.mean)}, and divide by {_rounded(step.deviation)}"
    if isinstance(step, CentreCrop):
        return f"cut out the centre, {step.height} x {step.width} pixels"
    size = f"{step.height} x {step.width} pixels" if step.width else f"a shorter side of {step.height} pixels"
    return f"scale to {size}, {step.interpolation} with antialiasing"


def _rounded(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.5g}" for value in values)


def output_size(steps: tuple[Step, ...]) -> tuple[int, int] | None:
    """Height and width of what the steps make of every image; `None` where it depends on the image."""
    for step in reversed(steps):
        if isinstance(step, CentreCrop) or (isinstance(step, Resize) and step.width):
            return step.height, step.width
        if isinstance(step, Resize):
            return None
    return None


def _step_of_timm(transform: Any) -> list[Step]:
    """The steps of one of the transforms that timm's processors are made of."""
    if isinstance(transform, transforms.ToTensor):
        return []
    if isinstance(transform, transforms.Resize):
        interpolation = INTERPOLATIONS_OF_TORCHVISION.get(transform.interpolation)
        if interpolation is None or transform.max_size is not None:
            raise _unknown(f"it scales images with {transform}")
        height, width = (transform.size, 0) if isinstance(transform.size, int) else (*transform.size, 0)[:2]
        return [Resize(height, width, interpolation, order_of_pillow())]
    if isinstance(transform, transforms.CenterCrop):
        height, width = transform.size
        return [CentreCrop(height, width, half_even=True)]
    if isinstance(transform, transforms.Normalize):
        mean, deviation = ([float(value) for value in values] for values in (transform.mean, transform.std))
        return [_of_bytes(mean, deviation, 1 / 255)]
    raise _unknown(f"it takes the step {transform}")


def _size_steps(processor: Any) -> list[Step]:
    """How a processor of transformers changes the size of images."""
    if getattr(processor, "do_pad", False):
        raise _unknown(f"{type(processor).__name__} has do_pad")
    steps: list[Step] = []
    if processor.do_resize:
        interpolation = INTERPOLATIONS.get(int(processor.resample))
        if interpolation is None:
            raise _unknown(f"it scales images with resample={processor.resample}")
        order: Order = order_of_pillow() if isinstance(processor, PilBackend) else "horizontal"
        steps += _resize(processor, interpolation, order)
    if processor.do_center_crop:
        size = dict(processor.crop_size)
        steps.append(CentreCrop(int(size["height"]), int(size["width"])))
    return steps


def _resize(processor: Any, interpolation: Interpolation, order: Order) -> list[Step]:
    size = {name: int(value) for name, value in dict(processor.size).items() if value is not None}
    if set(size) == {"height", "width"}:
        return [Resize(size["height"], size["width"], interpolation, order)]
    if set(size) != {"shortest_edge"}:
        raise _unknown(f"{type(processor).__name__} has size={size}")
    edge = size["shortest_edge"]
    if (share := getattr(processor, "crop_pct", None)) is None:
        return [Resize(edge, 0, interpolation, order)]
    if edge >= WITHOUT_CROP_FROM:
        return [Resize(edge, edge, interpolation, order)]
    return [Resize(int(edge / share), 0, interpolation, order), CentreCrop(edge, edge)]


def _normalise(processor: Any) -> list[Step]:
    """How a processor of transformers scales the values of pixels."""
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    if not processor.do_normalize:
        return [_of_bytes([offset] * RGB, [1.0] * RGB, factor)]
    mean, deviation = (
        [float(value)] * RGB if isinstance(value, int | float) else [float(one) for one in value]
        for value in (processor.image_mean, processor.image_std)
    )
    steps: list[Step] = [_of_bytes([value + offset for value in mean], deviation, factor)]
    if getattr(processor, "include_top", False):  # of EfficientNet's, which divides once more
        steps.append(_of_bytes([0.0] * RGB, deviation, 1.0))
    return steps


def _of_bytes(mean: list[float], deviation: list[float], factor: float) -> Normalise:
    """A normalisation of `factor` times the byte."""
    red, green, blue = (value / factor for value in mean)
    of_red, of_green, of_blue = (value / factor for value in deviation)
    return Normalise((red, green, blue), (of_red, of_green, of_blue))


def _unknown(what: str) -> ExportError:
    return ExportError(f"the student's image processor cannot be put into the exported file: {what}. {INSTEAD}")
