"""The kinds of images of none of the classes, which a student is tested with, and what they are called."""

from __future__ import annotations

from typing import Final

UNKNOWN_IMAGES: Final = {
    "near": "near unknown images",
    "far": "far unknown images",
    "elsewhere": "images from elsewhere",
    "unchosen": "images that the teacher takes for none of the classes",
}
"""Kind to what its images are called; `data.loading.OtherImages` says what they show."""

UNKNOWN_KINDS: Final = tuple(UNKNOWN_IMAGES)
