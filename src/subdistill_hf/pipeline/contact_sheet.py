"""A sheet of training images for the card: a row a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.functional import to_pil_image

from subdistill_hf.data.views import ViewDataset

TILE: Final = 64
GAP: Final = 4
LABEL_HEIGHT: Final = 14


def contact_sheet(images: ViewDataset, classes: Sequence[str], columns: int = 8) -> Image.Image:
    """Draw the first images of each class.

    Args:
        images: with the labels 0 to C - 1; drawn without augmentation.
        classes: names of the C classes.
        columns: how many images of each, if there are as many.

    Returns:
        A row a class under its name; each image fits a square of `TILE` pixels, the smallest enlarged as they are.
    """
    labels = torch.tensor(images.labels)
    rows = [torch.nonzero(labels == label).flatten()[:columns].tolist() for label in range(len(classes))]
    width = max(len(row) for row in rows) * (TILE + GAP) + GAP
    row_height = LABEL_HEIGHT + TILE + GAP
    sheet = Image.new("RGB", (width, len(classes) * row_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LABEL_HEIGHT - 3)
    for place, (name, row) in enumerate(zip(classes, rows, strict=True)):
        top = GAP + place * row_height
        draw.text((GAP, top), name, fill="black", font=font)
        for column, index in enumerate(row):
            tile = _fitted(to_pil_image(images.image(index)))
            corner = GAP + column * (TILE + GAP), top + LABEL_HEIGHT
            sheet.paste(tile, (corner[0] + (TILE - tile.width) // 2, corner[1] + (TILE - tile.height) // 2))
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    """As large as fits a tile; small images keep their pixels."""
    small = max(image.size) <= TILE
    return ImageOps.contain(image, (TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
