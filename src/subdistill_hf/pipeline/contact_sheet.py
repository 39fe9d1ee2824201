"""A sheet of training images for the card: a row a class."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Final

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.functional import to_pil_image

from subdistill_hf.data.views import ViewDataset

TILE: Final = 64
GAP: Final = 4
LABEL_HEIGHT: Final = 14
MOST_CLASSES: Final = 30
_NO_CHARACTER: Final = "\uffff"  # drawn as whatever a font does not have


def contact_sheet(images: ViewDataset, classes: Sequence[str], columns: int = 8) -> Image.Image:
    """Draw the first images of each class.

    Args:
        images: with the labels 0 to C - 1; drawn without augmentation.
        classes: names of the C classes.
        columns: how many images of each, if there are as many.

    Returns:
        A row a class under its name, of the first `MOST_CLASSES`; each image fits a square of `TILE` pixels, the
        smallest enlarged as they are.
    """
    more, classes = len(classes) - MOST_CLASSES, classes[:MOST_CLASSES]
    labels = torch.tensor(images.labels)
    rows = [torch.nonzero(labels == label).flatten()[:columns].tolist() for label in range(len(classes))]
    width = max(len(row) for row in rows) * (TILE + GAP) + GAP
    row_height = LABEL_HEIGHT + TILE + GAP
    sheet = Image.new("RGB", (width, len(classes) * row_height + GAP + (LABEL_HEIGHT if more > 0 else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, row) in enumerate(zip(classes, rows, strict=True)):
        top = GAP + place * row_height
        font = _font_of(name)
        draw.text((GAP, top), _fitted_name(name, font, width - 2 * GAP), fill="black", font=font)
        for column, index in enumerate(row):
            tile = _fitted(to_pil_image(images.image(index)))
            corner = GAP + column * (TILE + GAP), top + LABEL_HEIGHT
            sheet.paste(tile, (corner[0] + (TILE - tile.width) // 2, corner[1] + (TILE - tile.height) // 2))
    if more > 0:
        draw.text((GAP, GAP + len(classes) * row_height), f"and {more:,} more", fill="black", font=_font_of(""))
    return sheet


def _font_of(name: str) -> Any:
    """Pillow's own font, which has the letters of English alone; for other names one that matplotlib finds."""
    if name.isascii() or importlib.util.find_spec("matplotlib") is None:
        return ImageFont.load_default(size=LABEL_HEIGHT - 3)
    from subdistill_hf.reporting.fonts import file_of

    return ImageFont.truetype(file_of(name), size=LABEL_HEIGHT - 3)


def _fitted_name(name: str, font: Any, width: int) -> str:
    """A name in one line, with escapes for what the font does not have, and an ellipsis where it is too long."""
    missing = bytes(font.getmask(_NO_CHARACTER))
    drawn = "".join(
        one if one.isprintable() and bytes(font.getmask(one)) != missing else one.encode("unicode_escape").decode()
        for one in name[:200]
    )
    if font.getlength(drawn) <= width:
        return drawn
    while drawn and font.getlength(f"{drawn}...") > width:
        drawn = drawn[:-1]
    return f"{drawn}..."


def _fitted(image: Image.Image) -> Image.Image:
    """As large as fits a tile; small images keep their pixels."""
    small = max(image.size) <= TILE
    return ImageOps.contain(image, (TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
