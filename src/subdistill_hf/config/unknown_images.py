"""The kinds of images of none of the classes, which a student is tested with, and what they are called."""

from __future__ import annotations

from typing import Final

UNKNOWN_IMAGES: Final = {
    "near": "near unknown images",
    "far": "far unknown images",
    "elsewhere": "images from elsewhere",
    "unchosen": "unchosen images",
}
"""Kind to what its images are called; `data.other_images.OtherImages` says what they show."""

UNKNOWN_KINDS: Final = tuple(UNKNOWN_IMAGES)

UNCHOSEN_BELOW: Final = 0.5
"""Of a dataset without labels, an image is unchosen where the teacher gives all classes together less than this
probability, and less than the threshold of those that are kept."""


def unchosen_below(threshold: float) -> float:
    """The probability below which an image is unchosen, see `UNCHOSEN_BELOW`.

    Args:
        threshold: of those that are kept.
    """
    return min(threshold, UNCHOSEN_BELOW)
