"""Facts of image files before they are decoded: sizes, depth, transparency."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import ExifTags, Image

from subdistill_hf.data.images import ImageModeError, check_mode, is_transparent, may_be_transparent
from subdistill_hf.errors import DataError

MOST_IMAGES = 500
MOST_DECODED = 100
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that exchange height and width


@dataclass(frozen=True)
class ImageFacts:
    """Facts of a sample of images, spread evenly over a dataset.

    Attributes:
        sizes: the heights and widths that occur, smallest area first.
        images: how many were looked at.
        transparent: the files (or numbers) of those that are not opaque everywhere, of the first `MOST_DECODED` that
            may be.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    images: int = 0
    transparent: tuple[str, ...] = ()

    @property
    def typical_side(self) -> int | None:
        """The larger side of the image in the middle, by area; `None` without an image."""
        return max(self.sizes[len(self.sizes) // 2]) if self.sizes else None


def image_facts(rows: datasets.Dataset, column: str) -> ImageFacts:
    """Read the headers of at most `MOST_IMAGES` images; files that cannot be read are left to who decodes them.

    Args:
        rows: with an image column.
        column: its name.

    Raises:
        DataError: for an image of more than 8 bits.
    """
    encoded = rows.cast_column(column, datasets.Image(decode=False))
    places: list[int] = np.unique(np.linspace(0, len(rows) - 1, MOST_IMAGES).astype(int)).tolist()
    sizes: list[tuple[int, int]] = []
    transparent: list[str] = []
    to_decode = MOST_DECODED
    for place in places if len(rows) else []:
        value = encoded[place][column] or {}
        name = value.get("path") or f"number {place}"
        try:
            content = value.get("bytes")
            with Image.open(value["path"] if content is None else io.BytesIO(content)) as image:
                check_mode(image)
                sizes.append(_upright_size(image))
                if to_decode and may_be_transparent(image):
                    to_decode -= 1
                    transparent += [name] if is_transparent(image) else []
        except ImageModeError as error:
            raise DataError(f"image {place}, {name}, cannot be used: {error}") from error
        except Exception:  # damaged: named with its class when it is decoded
            continue
    return ImageFacts(tuple(sorted(sizes, key=lambda size: size[0] * size[1])), len(places), tuple(transparent))


def transparency_notice(facts: Sequence[ImageFacts]) -> str | None:
    """A note on images that are not opaque; `None` where there are none."""
    found = [name for each in facts for name in each.transparent]
    if not found:
        return None
    looked_at = sum(each.images for each in facts)
    return (
        f"{len(found)} of {looked_at} images that were looked at are transparent in places, such as {found[0]}. "
        "transformers ignores transparency, so the colours that the files hold there become visible. Where these are "
        "no part of the picture, put the images on one colour first"
    )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
    return (image.width, image.height) if turned else (image.height, image.width)
