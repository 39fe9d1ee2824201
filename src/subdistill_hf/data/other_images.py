"""Images of none of the classes, and the name of the answer for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import datasets

from subdistill_hf.config.unknown_images import UNKNOWN_KINDS

OTHER: Final = "none of these"
"""The name of the output for images of none of the classes."""


@dataclass(frozen=True)
class OtherImages:
    """Images of none of the classes: of a dataset's other classes, from elsewhere, or by the teacher.

    Attributes:
        near: test images of classes that the student is trained with as "none of these"; `None` where there are none.
        far: test images of the other ones.
        elsewhere: images of another dataset.
        elsewhere_name: the name of that dataset.
        unchosen: of a dataset without labels, test images that the teacher takes for none of the classes.
        seen: the names of the classes that are among its training images.
        unseen: the names of those that are not.
        train_images: number of training images with the answer "none of these".
        answered: whether the student has an answer for them.
    """

    near: datasets.Dataset | None = None
    far: datasets.Dataset | None = None
    elsewhere: datasets.Dataset | None = None
    elsewhere_name: str | None = None
    unchosen: datasets.Dataset | None = None
    seen: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    train_images: int = 0
    answered: bool = False

    def counts(self) -> dict[str, int]:
        """Kind to number of images that are tested with, as far as there are any."""
        found = {kind: getattr(self, kind) for kind in UNKNOWN_KINDS}
        return {kind: len(rows) for kind, rows in found.items() if rows is not None}
