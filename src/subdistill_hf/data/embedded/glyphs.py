"""Draw the images of glyphs-100, with the symbols of the DejaVu fonts that lie in `fonts`.

Each image depends on `(seed, split, class, index)` alone, so a subtask that is generated alone holds
exactly the rows it has in the whole dataset.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, GLYPHS

Split = Literal["train", "test"]

GENERATOR_VERSION: Final = 2
"""Part of the cache key; raise it with every change that alters a pixel."""

IMAGE_SIZE: Final = 32

FONT_FACES: Final[tuple[str, ...]] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
)

FONTS: Final = Path(__file__).parent / "fonts"
SYMBOLS_FILE: Final = "symbols.json"

_CANVAS: Final = 2 * IMAGE_SIZE  # glyphs and lines are drawn at twice the size, then halved
_INK: Final = 42.0  # longer side of an unscaled glyph on that canvas
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Pixel centres in [-1, 1], for the background's gradient.
_ROWS, _COLUMNS = (
    ((np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5) / IMAGE_SIZE * 2 - 1).astype(np.float32)[axis] for axis in (0, 1)
)


@lru_cache(maxsize=1)
def _symbols() -> dict[str, str]:
    """The symbols that each face has, as `scripts/subset_fonts.py` wrote them."""
    symbols: dict[str, str] = json.loads((FONTS / SYMBOLS_FILE).read_text(encoding="utf-8"))
    return symbols


@lru_cache(maxsize=len(GLYPHS))
def faces_of(class_id: int) -> tuple[str, ...]:
    """Name the faces of `FONT_FACES` that have the glyph of a class: the others are never used for it."""
    return tuple(face for face in FONT_FACES if GLYPHS[class_id] in _symbols()[face])


@lru_cache(maxsize=len(GLYPHS) * len(FONT_FACES))
def _glyph_mask(class_id: int, face: str) -> Image.Image:
    """Draw a class's glyph upright and centred by its ink, its longer side `_INK` pixels long."""
    path = str(FONTS / f"{face}.ttf")
    glyph = GLYPHS[class_id]
    probe = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = probe.getbbox(glyph)
    size = 100 * _INK / max(right - left, bottom - top)
    font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(glyph)
    mask = Image.new("L", (_CANVAS, _CANVAS))
    place = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    ImageDraw.Draw(mask).text(place, glyph, fill=255, font=font)
    return mask


def _between(uniform: float, low: float, high: float) -> float:
    return low + (high - low) * float(uniform)


def _affine(draws: NDArray[np.float64]) -> tuple[float, float, float, float, float, float]:
    """Turn five uniform draws into Pillow's six numbers, which map an output pixel to its source."""
    scale = _between(draws[0], 0.55, 1.15)
    angle = math.radians(_between(draws[1], -20.0, 20.0))
    slant = _between(draws[2], -0.2, 0.2)
    # The whole glyph's box stays on the canvas, give or take two pixels of the final image.
    room = max(0.0, (_CANVAS - _INK * scale) / 2 - 2)
    shift_x, shift_y = (_between(draw, -room, room) for draw in draws[3:5])
    matrix = (
        scale
        * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        @ np.array([[1.0, slant], [0.0, 1.0]])
    )
    (a, b), (d, e) = np.linalg.inv(matrix).tolist()
    centre = _CANVAS / 2
    target_x, target_y = centre + shift_x, centre + shift_y
    return a, b, centre - a * target_x - b * target_y, d, e, centre - d * target_x - e * target_y


def _colour(draws: NDArray[np.float64], brightness: float) -> NDArray[np.float32]:
    """Turn three uniform draws into a random hue of the brightness asked for (0 to 255)."""
    tint = (draws * 150 - 75).astype(np.float32)
    return np.clip(tint - tint @ _LUMA + np.float32(brightness), 0, 255).astype(np.float32, copy=False)


def _lines(draws: NDArray[np.float64], most: int) -> NDArray[np.float32]:
    """Turn `2 + 4 * most` uniform draws into the coverage (0 to 1) of up to `most` random lines."""
    mask = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(mask)
    for ends in draws[2:].reshape(most, 4)[: int(draws[0] * (most + 1))]:
        pen.line([float(end) * _CANVAS for end in ends], fill=255, width=1 + int(draws[1] * 3))
    return np.asarray(mask.reduce(2), dtype=np.float32) / np.float32(255)


def _mix(canvas: NDArray[np.float32], coverage: NDArray[np.float32], colour: NDArray[np.float32]) -> None:
    """Paint a colour over the canvas in place, where `coverage` is 1."""
    canvas += coverage[:, :, None] * (colour - canvas)


def _check_ids(seed: int, split: str, class_id: int, index: int) -> None:
    if split not in get_args(Split):
        raise ValueError(f"expected split to be one of {get_args(Split)}, found {split!r}")
    if not 0 <= class_id < len(CLASS_NAMES):
        raise ValueError(f"expected a class id from 0 to {len(CLASS_NAMES) - 1}, found {class_id}")
    if seed < 0 or index < 0:
        raise ValueError(f"expected seed and index to be 0 or more, found seed={seed} and index={index}")


def render(seed: int, split: Split, class_id: int, index: int) -> Image.Image:
    """Draw one image, a pure function of its four arguments.

    Args:
        seed: The dataset's seed, 0 or more.
        split: `"train"` or `"test"`.
        class_id: The class, 0 to 99, see `CLASS_NAMES`.
        index: The image's number inside its class and split.

    Returns:
        A 32x32 RGB image.
    """
    _check_ids(seed, split, class_id, index)
    entropy = [seed, get_args(Split).index(split), class_id, index]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    draws = generator.random(64)

    faces = faces_of(class_id)
    mask = _glyph_mask(class_id, faces[int(draws[0] * len(faces))])
    mask = mask.transform(mask.size, Image.Transform.AFFINE, _affine(draws[1:6]), Image.Resampling.BILINEAR)
    coverage = np.asarray(mask.reduce(2), dtype=np.float32) / np.float32(255)

    # The background's brightness leaves room for the glyph's on at least one side.
    contrast = _between(draws[6], 36, 130)
    backdrop = _between(draws[7], 35, 220)
    darker = backdrop - contrast >= 5 and (draws[8] < 0.5 or backdrop + contrast > 250)
    brightness = backdrop - contrast if darker else min(backdrop + contrast, 250)
    start, end = _colour(draws[9:12], backdrop - 14), _colour(draws[12:15], backdrop + 14)
    direction = 2 * math.pi * float(draws[15])
    slope = (math.cos(direction) * _COLUMNS + math.sin(direction) * _ROWS) * np.float32(0.35)
    share = np.clip(slope + np.float32(0.5), 0, 1)
    canvas = (start + share[:, :, None] * (end - start)).astype(np.float32, copy=False)

    spread = 70 * (2 * draws[16:18] - 1)
    _mix(canvas, _lines(draws[18:36], 4) * np.float32(0.8), _colour(draws[36:39], backdrop + spread[0]))
    _mix(canvas, coverage, _colour(draws[39:42], brightness))
    _mix(canvas, _lines(draws[42:56], 3) * np.float32(0.8), _colour(draws[56:59], backdrop + spread[1]))

    noise = _between(draws[63] ** 1.15, 4, 39)
    blur = _between(draws[62], -0.6, 0.9)
    if blur > 0.1:
        blurred = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        canvas = np.asarray(blurred, dtype=np.float32)
    canvas = canvas + np.float32(noise) * generator.standard_normal(canvas.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
