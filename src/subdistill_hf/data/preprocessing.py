"""The work of an image processor on byte images: the pixels that a network takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as image_functional
from torchvision.transforms.v2.functional import normalize
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from subdistill_hf.errors import DataError

SIZE_SETTINGS = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad", "pad_size")


def process(processor: Any, images: Sequence[Tensor]) -> Tensor:
    """Apply an image processor to byte images `(3, H, W)`; gives `(B, 3, H', W')`.

    Those of timm scale PIL images, one by one, on a CPU. On another device, and then of images of one size, their
    steps are taken with all of them at once. Interpolation rounds otherwise there: by a level of 255 in smooth
    images, by more at sharp edges.
    """
    steps = _steps_of_timm(processor)
    if steps is not None and images[0].device.type != "cpu":
        return in_batch(steps, torch.stack(list(images)))
    inputs: list[Any] = list(images)
    if isinstance(processor, TimmWrapperImageProcessor):
        inputs = [image_functional.to_pil_image(image) for image in images]
    options = {"disable_grouping": False} if isinstance(processor, TorchvisionBackend) else {}  # a batch at a time
    values: Tensor = processor(images=inputs, return_tensors="pt", **options)["pixel_values"]
    return values


def check_fixed_size(processor: Any, sizes: Iterable[tuple[int, int]], who: str) -> None:
    """Refuse an image processor that makes images of several sizes of the images at hand.

    Args:
        processor: the image processor.
        sizes: heights and widths of images; the extreme ones are tried.
        who: whose processor it is, in messages.

    Raises:
        DataError: naming the settings that matter.
    """
    ordered = sorted(set(sizes), key=lambda size: size[0] / size[1])
    by_area = sorted(ordered, key=lambda size: size[0] * size[1])
    tried = dict.fromkeys([*ordered[:1], *ordered[-1:], *by_area[:1], *by_area[-1:]])
    given: dict[tuple[int, int], tuple[int, int]] = {}
    for height, width in tried:
        try:
            pixels = process(processor, [torch.zeros(3, height, width, dtype=torch.uint8)])
        except (ValueError, RuntimeError) as error:
            raise DataError(
                f"the image processor of {who} cannot take images of {height}x{width} pixels: {error}"
            ) from error
        given[height, width] = int(pixels.shape[2]), int(pixels.shape[3])
    if len(set(given.values())) > 1:
        made = ", ".join(f"{h}x{w} of {height}x{width}" for (height, width), (h, w) in given.items())
        settings = {name: getattr(processor, name, None) for name in SIZE_SETTINGS}
        told = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
        raise DataError(
            f"the image processor of {who} makes images of several sizes ({made}), which cannot be in one batch: its "
            f"settings are {told}. Give it a height and a width as size, or do_center_crop and a crop_size, in its "
            "preprocessor_config.json"
        )


def works_on_tensors(processor: Any) -> bool:
    """Whether a processor can do its work on an accelerator."""
    return isinstance(processor, TorchvisionBackend) or _steps_of_timm(processor) is not None


def _steps_of_timm(processor: Any) -> list[Callable[[Any], Any]] | None:
    """The steps of one of timm's processors, if all can be taken with tensors."""
    if not isinstance(processor, TimmWrapperImageProcessor):
        return None
    steps: list[Callable[[Any], Any]] = processor.val_transforms.transforms
    known = (transforms.Resize, transforms.CenterCrop, transforms.Normalize, transforms.ToTensor)
    return steps if all(isinstance(step, known) for step in steps) else None


def in_batch(steps: Sequence[Callable[[Any], Any]], images: Tensor) -> Tensor:
    """Take the steps of a processor of timm with byte images `(B, 3, H, W)` at once."""
    for step in steps:
        if isinstance(step, transforms.ToTensor):
            images = images.float() / 255
        elif isinstance(step, transforms.Normalize):  # its own call looks at the device's numbers, for which it waits
            images = normalize(images, torch.as_tensor(step.mean).tolist(), torch.as_tensor(step.std).tolist())
        else:
            images = step(images)
    return images


def preprocessing_of(processor: Any) -> dict[str, Any]:
    """The settings of a processor, for comparison; some classes do things of their own."""
    described = {**processor.to_dict(), "class": type(processor).__name__}
    for name in ("_processor_class", "image_processor_type", "architecture", "pretrained_cfg"):
        described.pop(name, None)
    return described
