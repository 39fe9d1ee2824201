"""The images of a dataset as bytes: of small datasets decoded once, and kept once for all that show them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.marks import MarkedRows
from subdistill_hf.data.stored_images import encoded_image, identity_of_rows
from subdistill_hf.errors import DataError

DECODE_AHEAD_BYTES = 512 * 2**20
DEEP_MODES = {"I;16": 16, "I;16L": 16, "I;16B": 16, "I;16N": 16, "I": 32, "F": 32}
"""Modes of Pillow whose values do not fit 8 bits, and how many bits they have."""
OBJECT_IN_MEMORY = re.compile(r" <_io\.BytesIO object at 0x[0-9a-f]+>")
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")

ImageKey = tuple[datasets.Dataset, str, str]
"""A dataset (this very object), its image column, and its marks."""


@dataclass(frozen=True, eq=False)
class KeptImages:
    """Decoded images: all `(N, 3, H, W)` where they are of one size, or else one by one."""

    images: Tensor | list[Tensor]


class ImageStore:
    """The decoded images of a run: those of a dataset are kept for as long as somebody shows them."""

    def __init__(self) -> None:
        self._kept: weakref.WeakValueDictionary[ImageKey, KeptImages] = weakref.WeakValueDictionary()

    def get(self, key: ImageKey) -> KeptImages | None:
        """The value that is kept under a key."""
        return self._kept.get(key)

    def keep(self, key: ImageKey, images: Tensor | list[Tensor]) -> KeptImages:
        """Keep images until nobody holds what this returns."""
        kept = self._kept[key] = KeptImages(images)
        return kept


class DecodedImages:
    """The images of a dataset, `(3, H, W)` bytes each, by index.

    Few images of one size are decoded when this is made, and few of several sizes if they are wanted again and again.

    Args:
        dataset: images and labels.
        columns: their columns.
        labels: of the images.
        marked: which images are shown with a spurious mark.
        often: whether each image is wanted many times.
        store: keeps what is decoded; one that several share decodes their images once.
        ahead: decode few images when this is made; otherwise each is decoded when it is asked for.

    Raises:
        DataError: for an image that cannot be decoded.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        columns: ImageColumns,
        labels: Sequence[int],
        marked: MarkedRows | None = None,
        often: bool = False,
        store: ImageStore | None = None,
        ahead: bool = True,
    ) -> None:
        self.dataset, self.columns, self.labels, self.marked = dataset, columns, labels, marked
        self._kept = self._decode_ahead(often, ImageStore() if store is None else store) if ahead else None

    @property
    def one_size(self) -> Tensor | None:
        """All images `(N, 3, H, W)`, if they were decoded and are of one size."""
        return self._kept.images if self._kept is not None and isinstance(self._kept.images, Tensor) else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        return self._decode(index) if self._kept is None else self._kept.images[index]

    def at(self, indices: Sequence[int]) -> list[Tensor]:
        """Several images, `(3, H, W)` bytes each."""
        return [self[index] for index in indices]

    def digest(self) -> bytes:
        """Of all images and their marks; the same whether they are kept for others or not."""
        if self.one_size is not None:
            return self.one_size.numpy().tobytes()
        return (identity_of_rows(self.dataset, self.columns.image) + self._marks).encode()

    def check(self) -> None:
        """Decode every image that was not decoded yet.

        Raises:
            DataError: naming one that cannot be.
        """
        if self._kept is None:
            for index in range(len(self)):
                self._decode(index)

    @property
    def _marks(self) -> str:
        return "" if self.marked is None else self.marked.identity

    def _decode_ahead(self, often: bool, store: ImageStore) -> KeptImages | None:
        first = self._decode(0)
        if first.numel() * len(self) > DECODE_AHEAD_BYTES:
            return None
        key = self.dataset, self.columns.image, self._marks
        if (kept := store.get(key)) is not None:
            return kept
        images, size, one_size = [first], first.numel(), True
        for index in range(1, len(self)):
            image = self._decode(index)
            one_size, size = one_size and image.shape == first.shape, size + image.numel()
            if size > DECODE_AHEAD_BYTES or not (one_size or often):
                return None
            images.append(image)
        return store.keep(key, torch.stack(images) if one_size else images)

    def _decode(self, index: int) -> Tensor:
        try:
            with self._opened(index) as opened:
                image = as_rgb(opened)
        except ImageModeError as error:
            raise DataError(f"{self._named(index)} cannot be used: {error}") from error
        except Exception as error:  # of damaged files Pillow and its plugins raise nearly anything
            reason = OBJECT_IN_MEMORY.sub("", str(error)).rstrip(".") or type(error).__name__
            raise DataError(f"{self._named(index)} cannot be decoded: {reason}. Remove or replace it") from error
        if self.marked is not None:
            image = self.marked(image, index)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _opened(self, index: int) -> Image.Image:
        image: Image.Image | None = self.dataset[index][self.columns.image]
        if image is None:
            raise ValueError("there is no image")
        return image

    def _named(self, index: int) -> str:
        """An image in a message: its place, its file if the dataset knows it, and its class."""
        path = encoded_image(self.dataset, self.columns.image, index).get("path")
        return f"image {index}{f', {path}' if path else ''} (class {self.labels[index]})"


class ImageModeError(ValueError):
    """An image whose values an image processor of transformers would not see as they are."""


def as_rgb(image: Image.Image) -> Image.Image:
    """An image upright and as RGB of 8 bits, as `transformers.image_utils.load_image` makes it.

    Raises:
        ImageModeError: for values of more than 8 bits, which would be cut off at 255.
    """
    check_mode(image)
    return ImageOps.exif_transpose(image).convert("RGB")


def check_mode(image: Image.Image) -> None:
    """Refuse values of more than 8 bits; reads no pixel.

    Raises:
        ImageModeError: naming the mode, and what to do.
    """
    if image.mode in DEEP_MODES:
        raise ImageModeError(
            f"it has grey values of {DEEP_MODES[image.mode]} bits (mode {image.mode}), which transformers cuts off at "
            "255, so that most of the picture is lost wherever the student is used. Bring the files to 8 bits first, "
            "by the range that their values have: for all 16 bits "
            "Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))"
        )


def is_transparent(image: Image.Image) -> bool:
    """Whether some pixel of an image is not opaque."""
    if not may_be_transparent(image):
        return False
    least: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(least < 255)


def may_be_transparent(image: Image.Image) -> bool:
    """Whether an image says how opaque its pixels are; reads none."""
    return image.mode in ALPHA_MODES or "transparency" in image.info
