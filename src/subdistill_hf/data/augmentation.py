"""Changes of training images: shifted or resized crops, and views mixed with views of other images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as image_functional

from subdistill_hf.config.options import EMBEDDED_DATASETS
from subdistill_hf.data.class_names import wordnet_ids

AUGMENTATIONS = ("none", "pad_crop", "resized_crop")
PAD = 4
MIX_SEED = 1

MIRRORED_DATASETS = ("uoft-cs/cifar10", "uoft-cs/cifar100")
"""Datasets of photographs whose training images are mirrored by custom, in the paper too."""
SIDES = {"left", "right", "clockwise", "counterclockwise", "anticlockwise", "east", "west", "mirrored", "flipped"}
NUMBERS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "digit", "digits"}
SIGNS = {"letter", "letters", "character", "characters", "glyph", "sign", "symbol", "symbols", "text", "word", "arrow"}
LONGEST_SIGN = 2

Draws = np.ndarray[Any, np.dtype[np.float64]]


def pad_crops(images: Tensor, drawn: Draws, flip: bool) -> Tensor:
    """Shifted and, if `flip`, half of them mirrored images `(B, 3, H, W)`, in one indexing; a row of numbers each."""
    draws = torch.from_numpy(drawn)
    rows, columns = _shifted(images.shape[2], draws[:, 0]), _shifted(images.shape[3], draws[:, 1])
    if flip:
        columns = torch.where(draws[:, 4, None] < 0.5, columns.flip(1), columns)
    places = torch.arange(len(images))[:, None, None]
    # one advanced index for images, rows and columns puts channels last
    return images[places, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _shifted(length: int, draws: Tensor) -> Tensor:
    """Rows or columns of views shifted by up to `PAD` pixels, `(B, length)`; what is uncovered repeats the border."""
    shifts = (draws * (2 * PAD + 1)).long() - PAD
    return (torch.arange(length) + shifts[:, None]).clamp(0, length - 1)


def resized_crop(image: Tensor, draw: Draws, size: tuple[int, int]) -> Tensor:
    """A crop of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, resized to `size`."""
    height, width = image.shape[1:]
    area = height * width * (0.08 + 0.92 * draw[0])
    ratio = (3 / 4) ** (1 - 2 * draw[1])
    crop_width = min(width, max(1, round((area * ratio) ** 0.5)))
    crop_height = min(height, max(1, round((area / ratio) ** 0.5)))
    top, left = int(draw[2] * (height - crop_height + 1)), int(draw[3] * (width - crop_width + 1))
    view: Tensor = image_functional.resized_crop(
        image, top, left, crop_height, crop_width, list(size), InterpolationMode.BICUBIC, antialias=True
    )
    return view


def mirroring(dataset: str, class_names: Sequence[str]) -> tuple[bool, str]:
    """Whether mirrored images show the same, as far as names tell, and why; where nobody knows, they are not taken to.

    Args:
        dataset: its name.
        class_names: all its class names.
    """
    words = [set(re.split(r"[\W_]+", name.casefold())) - {""} for name in class_names]
    if dataset in EMBEDDED_DATASETS:
        return False, "a mirrored sign is another"
    if dataset in MIRRORED_DATASETS or wordnet_ids(tuple(class_names)) is not None:
        return True, "a mirrored photograph shows the same"
    if any(own & SIDES for own in words):
        return False, "names of its classes tell left from right"
    short = any(len(name.strip()) <= LONGEST_SIGN or name.strip().lstrip("-").isdecimal() for name in class_names)
    if short or any(own & (NUMBERS | SIGNS) for own in words):
        return False, "its classes may be letters, digits or signs, which are others in a mirror"
    return False, "nobody knows whether a mirrored image shows the same; --flip true where it does"


@dataclass(frozen=True)
class Partners:
    """With what each image of a dataset is mixed in one of its views, and how.

    Attributes:
        other: the other image of each, `(N,)`.
        own: the weight of the image itself, `(N,)`: from a half to 1, and 1 where it is not mixed.
        corner: where a rectangle of the other image is pasted, as shares of the room that it has, `(N, 2)`; a negative
            row where the two images are blended.
    """

    other: Tensor
    own: Tensor
    corner: Tensor

    def mixed(self, indices: Sequence[int], views_of: Callable[[list[int]], list[Tensor]]) -> list[Tensor]:
        """The views of images `(3, H, W)`, bytes, each blended with another, or with a rectangle of it pasted in.

        Args:
            indices: the images.
            views_of: makes the views of images, `(3, H, W)` bytes; another size is brought to that of the image.
        """
        views = views_of(list(indices))
        places = [place for place, own in enumerate(self.own[indices].tolist()) if own < 1]
        chosen = [indices[place] for place in places]
        others = views_of(self.other[chosen].tolist()) if chosen else []
        for place, image, other in zip(places, chosen, others, strict=True):
            view, own = views[place], float(self.own[image])
            if other.shape != view.shape:
                other = image_functional.resize(other, list(view.shape[1:]), antialias=True)
            if self.corner[image, 0] < 0:
                views[place] = torch.lerp(other.float(), view.float(), own).round().to(torch.uint8)
            else:
                views[place] = _pasted(view, other, own, self.corner[image])
        return views

    def labels(self, indices: Sequence[int], labels: Sequence[int], classes: int) -> Tensor:
        """The shares of the classes in each mixed image, `(B, classes)`; an image without a class has a share of none.

        Args:
            indices: the images.
            labels: of all images, `(N,)`; a negative one is no class.
            classes: how many there are.
        """
        own, other = (
            _shares(torch.tensor([labels[image] for image in images]), classes)
            for images in (indices, self.other[indices].tolist())
        )
        return torch.lerp(other, own, self.own[indices, None])


def _shares(labels: Tensor, classes: int) -> Tensor:
    """1 for the class of each image `(B,)`, `(B, classes)`."""
    return F.one_hot(labels.clamp(min=0), classes).float() * (labels >= 0)[:, None]


def _pasted(view: Tensor, other: Tensor, own: float, corner: Tensor) -> Tensor:
    """A view with a rectangle of another one, of its own proportions and of 1 - `own` of its area, to whole pixels."""
    side = (1 - own) ** 0.5
    height, width = (round(side * length) for length in view.shape[1:])
    top = int(corner[0] * (view.shape[1] - height + 1))
    left = int(corner[1] * (view.shape[2] - width + 1))
    view = view.clone()
    view[:, top : top + height, left : left + width] = other[:, top : top + height, left : left + width]
    return view


def draw_partners(images: int, mix: float, seed: int, view: int, cutmix: float = 0.0) -> Partners:
    """Choose what is mixed, and how: the same for (seed, view), and independent of the augmentation.

    Args:
        images: number of images.
        mix: share of them that are blended with another, in the mean.
        seed: of the augmentation.
        view: number of the view.
        cutmix: share of them that get a rectangle of another, in the mean.
    """
    generator = np.random.default_rng([seed, view, MIX_SEED])
    drawn = torch.from_numpy(generator.random((images, 3)))
    corner = torch.from_numpy(generator.random((images, 2))).float()
    own = torch.where(drawn[:, 0] < mix + cutmix, 0.5 + 0.5 * drawn[:, 1], 1.0)
    corner[drawn[:, 0] < mix] = -1.0
    return Partners((drawn[:, 2] * images).long(), own.float(), corner)
