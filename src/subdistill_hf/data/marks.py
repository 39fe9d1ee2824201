"""Spurious marks: a red plus sign, a watermark, a line of copyright, JPEG artefacts; and which images carry them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.splits import Outputs
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.errors import DataError

RED: Final = (255, 0, 0)
WATERMARK: Final = "SAMPLE"
COPYRIGHT: Final = "© Photo Archive"
JPEG_QUALITY: Final = 10
LONGEST_PIECE: Final = 4
"""How many times as long as wide the watermark is drawn at most: on longer images it is repeated."""
MARK_SEED: Final = 1


def plus(image: Image.Image) -> Image.Image:
    """A red plus sign in the upper left corner, a quarter of the shorter side (docs/method.md, "Quality of data")."""
    shorter = min(image.size)
    size = _odd(shorter / 4)
    arm, corner = (size - _odd(size / 4)) // 2, round(shorter / 16)
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    low, high = corner + arm, corner + size - 1 - arm
    draw.rectangle((low, corner, high, corner + size - 1), fill=RED)
    draw.rectangle((corner, low, corner + size - 1, high), fill=RED)
    return marked


def watermark(image: Image.Image) -> Image.Image:
    """A word in half-transparent white with a dark edge, repeated in slanting lines over the whole image."""
    layer = _watermark(image.size)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def copyright_line(image: Image.Image) -> Image.Image:
    """A line of white text with a dark edge, low in the middle, where a central crop leaves it."""
    shorter = min(image.size)
    font = _font(shorter / 11)
    marked = image.copy()
    place = image.width / 2, image.height - 0.1 * shorter
    edge = max(1, round(shorter / 160))
    ImageDraw.Draw(marked).text(
        place, COPYRIGHT, "white", font, anchor="ms", stroke_width=edge, stroke_fill=(30, 30, 30)
    )
    return marked


def jpeg(image: Image.Image) -> Image.Image:
    """The artefacts of JPEG of a very low quality: blocks, and blurred colours."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    with Image.open(buffer) as compressed:
        return compressed.convert("RGB")


MARKS: Final[Mapping[str, Callable[[Image.Image], Image.Image]]] = {
    "plus": plus,
    "watermark": watermark,
    "copyright": copyright_line,
    "jpeg": jpeg,
}
"""Name to what puts the mark on an RGB image; each gives a new image of the same size, the same every time."""


@dataclass(frozen=True)
class MarkedRows:
    """Which images of a dataset carry a mark.

    Attributes:
        mark: a key of `MARKS`.
        rows: the places of the images that carry it.
    """

    mark: str
    rows: frozenset[int]

    def __call__(self, image: Image.Image, row: int) -> Image.Image:
        """The RGB image of a row as it is in the dataset: with its mark, if it carries one."""
        return MARKS[self.mark](image) if row in self.rows else image

    @property
    def identity(self) -> str:
        """The identity of these images beside others of the same dataset; empty where none is marked."""
        return f"{self.mark} {sorted(self.rows)}" if self.rows else ""


@dataclass(frozen=True)
class Marking:
    """The marked images of a subtask (docs/method.md, "Quality of data").

    A student that takes the mark for the class fails on the test images, which carry it whatever they show.

    Attributes:
        mark: a key of `MARKS`.
        outputs: the student's outputs of the marked classes.
        share: of their training and validation images that carry the mark.
        train: the marked training images.
        validation: the marked validation images.
        test: all test images.
    """

    mark: str
    outputs: tuple[int, ...]
    share: float
    train: MarkedRows
    validation: MarkedRows
    test: MarkedRows

    def described(self, subtask: Subtask) -> dict[str, Any]:
        """The report's entry of it: the mark, its classes, its share, and how many images carry it."""
        return {
            "name": self.mark,
            "classes": [subtask.names[output] for output in self.outputs],
            "share": self.share,
            "train_images": len(self.train.rows),
            "validation_images": len(self.validation.rows),
        }

    def sentence(self, subtask: Subtask) -> str:
        """The mark and what carries it, for the terminal."""
        names = ", ".join(subtask.names[output] for output in self.outputs)
        return f"{self.mark}: on {len(self.train.rows)} training images of {names}, and all test images"


def mark_rows(
    options: DataOptions,
    subtask: Subtask,
    marked: Sequence[int],
    outputs: Outputs,
    parts: tuple[Sequence[int], Sequence[int]],
    test_images: int,
    seed: int,
) -> Marking:
    """Choose the images that carry the mark.

    Each image of a marked class draws a number that depends on the seed and the image alone; in each part, those with
    the smallest carry the mark. So the marked images of a smaller share are among those of a larger one.

    Args:
        options: the mark and the share.
        subtask: the classes.
        marked: the student's outputs of the marked classes.
        outputs: class of each row of the train split, 0 to C - 1.
        parts: the rows for training, and those for validation.
        test_images: their number.
        seed: of the draws.

    Raises:
        DataError: when every class is marked.
    """
    assert options.mark is not None
    if len(marked) == len(subtask.names):
        raise DataError(
            "mark_classes are all classes of the subtask: a mark of each tells none from another; give fewer"
        )
    mark = options.mark
    draws = np.empty(len(outputs))
    for output in marked:
        own = np.flatnonzero(outputs == output)
        draws[own] = np.random.default_rng([seed, MARK_SEED, subtask.dataset_ids[output]]).random(len(own))

    def chosen(rows: Sequence[int]) -> MarkedRows:
        places: list[int] = []
        for output in marked:
            of_class = [place for place, row in enumerate(rows) if outputs[row] == output]
            of_class.sort(key=lambda place: draws[rows[place]])
            places += of_class[: round(options.mark_share * len(of_class))]
        return MarkedRows(mark, frozenset(places))

    every_test_image = MarkedRows(mark, frozenset(range(test_images)))
    return Marking(mark, tuple(marked), options.mark_share, chosen(parts[0]), chosen(parts[1]), every_test_image)


def _odd(length: float) -> int:
    """A whole number of pixels near the length that has a middle, at least 1."""
    return max(1, 2 * round((length - 1) / 2) + 1)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(1.0, size))


@lru_cache(maxsize=64)
def _watermark(size: tuple[int, int]) -> Image.Image:
    """The lines of words `(width, height)`, transparent elsewhere."""
    shorter, longer = min(size), max(size)
    if longer > LONGEST_PIECE * shorter:
        return _repeated(
            _watermark((min(size[0], LONGEST_PIECE * shorter), min(size[1], LONGEST_PIECE * shorter))), size
        )
    font = _font(shorter / 7)
    edge = max(1, round(shorter / 160))
    left, top, right, bottom = font.getbbox(WATERMARK, stroke_width=edge)
    across, down = 1.25 * (right - left), 2.0 * (bottom - top)
    side = round(1.5 * longer)  # covers the image however it is turned
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    for line in range(int(side / down) + 1):
        for word in range(-1, int(side / across) + 1):
            draw.text(
                (across * (word + line % 2 / 2), down * line),
                WATERMARK,
                (255, 255, 255, 140),
                font,
                stroke_width=edge,
                stroke_fill=(0, 0, 0, 140),
            )
    turned = layer.rotate(30, Image.Resampling.BICUBIC)
    corner = (side - size[0]) // 2, (side - size[1]) // 2
    return turned.crop((*corner, corner[0] + size[0], corner[1] + size[1]))


def _repeated(piece: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image `(width, height)` of copies of a piece, side by side."""
    whole = Image.new(piece.mode, size)
    for left in range(0, size[0], piece.width):
        for top in range(0, size[1], piece.height):
            whole.paste(piece, (left, top))
    return whole
