"""scikit-learn's handwritten digits (1,797 real 8x8 scans) in the schema of glyphs-100."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from PIL import Image

from subdistill_hf.config.extras import require_extra

__all__ = ["DIGIT_NAMES", "DIGIT_SUPERCLASSES", "DIGIT_SUPERCLASS_NAMES", "load_digits_dataset"]

DIGIT_NAMES: Final[tuple[str, ...]] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)

DIGIT_SUPERCLASSES: Final[dict[str, tuple[str, ...]]] = {"even": DIGIT_NAMES[::2], "odd": DIGIT_NAMES[1::2]}

DIGIT_SUPERCLASS_NAMES: Final[tuple[str, ...]] = tuple(DIGIT_SUPERCLASSES)


def load_digits_dataset(test_share: float = 0.3, image_size: int = 32) -> Any:
    """Load the digits as RGB images, enlarged bicubically.

    Args:
        test_share: Share of each class's images, its last ones, that form the test split.
        image_size: Side of the images in pixels.

    Returns:
        A `datasets.DatasetDict` with the splits `train` and `test`, rows ordered by class, then as
        scikit-learn has them, and the features `img`, `fine_label` (10 names) and `coarse_label`
        (`even`, `odd`).
    """
    require_extra("digits", "the dataset digits")
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature
    from sklearn.datasets import load_digits

    if not 0 < test_share < 1:
        raise ValueError(f"expected test_share between 0 and 1, both exclusive, found {test_share}")
    if image_size < 8:
        raise ValueError(f"expected image_size to be 8 or more, found {image_size}")
    features = Features(
        {
            "img": ImageFeature(),
            "fine_label": ClassLabel(names=list(DIGIT_NAMES)),
            "coarse_label": ClassLabel(names=list(DIGIT_SUPERCLASS_NAMES)),
        }
    )
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    splits: dict[str, dict[str, list[Any]]] = {split: {name: [] for name in features} for split in ("train", "test")}
    for label in range(len(DIGIT_NAMES)):
        rows = np.flatnonzero(digits.target == label)
        first_test = len(rows) - max(1, min(len(rows) - 1, round(test_share * len(rows))))
        for place, row in enumerate(rows):
            columns = splits["train" if place < first_test else "test"]
            columns["img"].append(_enlarge(pixels[row], image_size))
            columns["fine_label"].append(label)
            columns["coarse_label"].append(label % 2)
    return DatasetDict({split: Dataset.from_dict(columns, features=features) for split, columns in splits.items()})


def _enlarge(pixels: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> Image.Image:
    """Turn grey pixels `(8, 8)` into an RGB image of `size` by `size`."""
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
