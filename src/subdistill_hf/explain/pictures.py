"""Pictures of heat maps beside the image, in colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from subdistill_hf.explain.heatmaps import Seen, on_grid

FOR: Final = (213, 94, 0)
AGAINST: Final = (0, 114, 178)
"""The vermilion and the blue of Okabe and Ito."""
LEAST_SIDE, MOST_SIDE = 160, 320
"""Of a picture, in pixels: small images are enlarged by a whole number, large ones are reduced."""
BRIGHTEST: Final = 0.995
"""The share of the values of both heat maps that are below the end of the colour scale."""
GAP, LINE, MARGIN = 8, 18, 4
INK, PAPER, EDGE = (40, 40, 40), (255, 255, 255), (200, 200, 200)
FRAME: Final = 3


def picture_of(image: Tensor) -> Image.Image:
    """A byte image `(3, H, W)` in the size of pictures."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    width, height = picture.size
    if min(width, height) < LEAST_SIDE:
        factor = -(-LEAST_SIDE // min(width, height))
        width, height = width * factor, height * factor
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    if max(width, height) > MOST_SIDE:
        factor_down = MOST_SIDE / max(width, height)
        size = max(1, round(width * factor_down)), max(1, round(height * factor_down))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def shares_on(picture: Image.Image, relevance: Tensor, seen: Seen) -> Tensor:
    """The share of all absolute relevance at each pixel of a picture, with its sign, `(H, W)`.

    Args:
        picture: of the image.
        relevance: of the pixels of the network's input, `(H', W')`.
        seen: where this input lies in the image.
    """
    total = relevance.abs().sum()
    shares = relevance / total if total > 0 else relevance
    return on_grid(shares[None], seen, picture.height, picture.width)[0]


def common_scale(maps: Sequence[Tensor]) -> float:
    """The end of a colour scale for some heat maps: nearly their largest absolute value."""
    values = torch.cat([one.abs().flatten() for one in maps])
    return float(values.quantile(BRIGHTEST)) or float(values.max())


def coloured(shares: Tensor, scale: float) -> Image.Image:
    """A heat map `(H, W)`: vermilion where values speak for the class, blue against it, white at 0."""
    strength = (shares / scale if scale > 0 else shares).clamp(-1, 1).numpy()[..., None]
    ends = np.where(strength > 0, np.array(FOR, float), np.array(AGAINST, float))
    pixels = np.array(PAPER, float) + np.abs(strength) * (ends - np.array(PAPER, float))
    return Image.fromarray(pixels.round().astype(np.uint8))


def panel(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures of one size side by side, each under its caption, above the colour scale."""
    above = side_by_side(pictures, captions)
    whole = Image.new("RGB", (above.width, above.height + LINE + MARGIN), PAPER)
    whole.paste(above, (0, 0))
    _draw_scale(whole, pictures[0].width + GAP, above.height + MARGIN, ImageFont.load_default(size=12))
    return whole


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures side by side, each under its caption."""
    lefts = [sum(one.width + GAP for one in pictures[:number]) for number in range(len(pictures))]
    size = lefts[-1] + pictures[-1].width, LINE + max(one.height for one in pictures)
    whole = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=12)
    for left, picture, caption in zip(lefts, pictures, captions, strict=True):
        draw.text((left, 2), caption, INK, font)
        whole.paste(picture, (left, LINE))
        edges = left + picture.width - 1, LINE + picture.height - 1
        draw.rectangle((left, LINE, *edges), outline=EDGE)
    return whole


def _draw_scale(whole: Image.Image, left: int, top: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """The colour scale below the heat maps."""
    draw = ImageDraw.Draw(whole)
    words = ("against", "for the class")
    widths = [round(draw.textlength(word, font)) + GAP for word in words]
    length = max(20, whole.width - left - sum(widths) - GAP)
    bar = coloured(torch.linspace(-1, 1, length).expand(LINE - 8, -1), 1.0)
    draw.text((left, top), words[0], INK, font)
    whole.paste(bar, (left + widths[0], top + 3))
    draw.text((left + widths[0] + length + GAP, top), words[1], INK, font)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    whole = Image.new("RGB", (max(one.width for one in pictures), sum(one.height + GAP for one in pictures)), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + GAP
    return whole


def framed(picture: Image.Image, row: int, column: int, grid: tuple[int, int], seen: Seen) -> Image.Image:
    """A picture with a frame around one place of a layer's grid.

    Args:
        picture: of the image.
        row: of the place.
        column: of the place.
        grid: rows and columns of the layer, which cover the network's input.
        seen: where this input lies in the image.
    """
    rows, columns = grid
    vertical, horizontal = (seen.bottom - seen.top) / rows, (seen.right - seen.left) / columns
    top, bottom = (round((seen.top + place * vertical) * picture.height) for place in (row, row + 1))
    left, right = (round((seen.left + place * horizontal) * picture.width) for place in (column, column + 1))
    marked = picture.copy()
    draw = ImageDraw.Draw(marked)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=PAPER, width=FRAME + 2)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=FOR, width=FRAME)
    return marked


def save(picture: Image.Image, folder: Path, name: str) -> str:
    """Write a picture as PNG, and return the name of its file."""
    picture.save(folder / name, optimize=True)
    return name
