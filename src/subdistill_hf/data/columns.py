"""Which columns of a dataset hold the image, the class and the superclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from subdistill_hf.errors import DataError

Label = int | str

OF_TAR_FILES = ("__key__", "__url__")
"""Columns that `datasets` makes of tar files, with the place of each entry."""
WHOLE_NUMBERS = "whole numbers"
NOTHING = "nothing"
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls")
SUPERCLASS_NAMES = ("coarse_label", "superclass")
IMAGE_ADVICE = (
    "expected images (datasets.Image), bytes of image files, or structs of bytes and path. Names of files become "
    "images with Dataset.cast_column(NAME, datasets.Image())"
)
LABEL_ADVICE = (
    "expected ClassLabel, texts or whole numbers. Other numbers become whole ones with "
    'Dataset.cast_column(NAME, datasets.Value("int64")), and truth values become texts with datasets.Value("string")'
)


@dataclass(frozen=True)
class ImageColumns:
    """The columns of an image dataset: the image, the class, and (if there is one) the superclass."""

    image: str
    label: str
    superclass: str | None = None

    @classmethod
    def of(
        cls,
        features: datasets.Features,
        image: str | None = None,
        label: str | None = None,
        superclass: str | None = None,
    ) -> ImageColumns:
        """Take the columns that were named, and find the others by their types.

        The image is the only `Image` column, or else the only one of encoded images: of bytes, or of structs of bytes
        and path. The class is the only `ClassLabel` column; of several the one with a
        usual name, or of two the one with more classes. Without a `ClassLabel` column it is the only column of texts
        or whole numbers, or the one with a usual name. The superclass is another `ClassLabel` column with fewer
        classes: the only one, or the one with a usual name.

        Args:
            features: the types of all columns.
            image: name of the image column.
            label: name of the class column: `ClassLabel`, texts or whole numbers.
            superclass: name of the superclass column, likewise.

        Raises:
            DataError: when a named column is not there or has another type, or several would do.
        """
        image = image_column(features, image)
        label = _given(label, "label_column", _label_columns(features), features, LABEL_ADVICE) or _find_label(
            features
        )
        superclass = _given(superclass, "superclass_column", _label_columns(features), features, LABEL_ADVICE)
        return cls(image, label, superclass or _find_superclass(features, label))


def image_column(features: datasets.Features, given: str | None = None) -> str:
    """The column of the images: the one that was named, or the one that is found by its type, see `ImageColumns.of`.

    Raises:
        DataError: when the named column is not there or has another type, or several would do.
    """
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    encoded = [name for name, kind in features.items() if is_encoded_image(kind)]
    return _given(given, "image_column", images + encoded, features, IMAGE_ADVICE) or _only(
        images or encoded, "image", features, IMAGE_ADVICE
    )


def is_encoded_image(kind: Any) -> bool:
    """Whether a column that is no `Image` holds files of images: bytes, or structs with bytes, and perhaps a path."""
    if isinstance(kind, dict):
        return isinstance(kind.get("bytes"), datasets.Value) and is_encoded_image(kind["bytes"])
    return isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")


def described(kind: Any) -> str:
    """The contents of a column, in words: types that are read alike have the same."""
    if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"}):
        return "images"
    if isinstance(kind, datasets.ClassLabel):
        return WHOLE_NUMBERS
    if isinstance(kind, datasets.Value):
        words = {
            "string": "texts",
            "large_string": "texts",
            "null": NOTHING,
            "binary": "bytes",
            "large_binary": "bytes",
        }
        return WHOLE_NUMBERS if kind.dtype.startswith(("int", "uint")) else words.get(kind.dtype, kind.dtype)
    return _type(kind)


def is_class(label: Label | None) -> bool:
    """Whether a text or number names a class: neither missing, nor blank, nor negative."""
    return label is not None and (bool(label.strip()) if isinstance(label, str) else label >= 0)


def _given(name: str | None, option: str, possible: list[str], features: datasets.Features, advice: str) -> str | None:
    if name is None or name in possible:
        return name
    problem = f"has type {_type(features[name])}" if name in features else "is not there"
    expected = f"expected one of {', '.join(possible)} in {_described(features)}" if possible else advice
    raise DataError(f"{option}={name!r} {problem}: {expected}")


def _only(names: list[str], what: str, features: datasets.Features, advice: str) -> str:
    if len(names) == 1:
        return names[0]
    if names:
        raise DataError(f"several columns may hold the {what}: {', '.join(names)}. Choose one with --{what}_column")
    raise DataError(f"expected a column for the {what}, found {_described(features)}: {advice}")


def _class_label_columns(features: datasets.Features) -> list[str]:
    return [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]


def _label_columns(features: datasets.Features) -> list[str]:
    """Columns that can tell classes: `ClassLabel`, texts and whole numbers."""
    return [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.ClassLabel)
        or (
            isinstance(kind, datasets.Value)
            and (kind.dtype in ("string", "large_string") or kind.dtype.startswith(("int", "uint")))
        )
    ]


def _find_label(features: datasets.Features) -> str:
    names = _class_label_columns(features)
    found = [name for name in names or _label_columns(features) if name not in OF_TAR_FILES]
    if not found and OF_TAR_FILES[0] in features:
        raise DataError(
            "the tar files hold images, and no file such as NAME.cls beside them. Unpack packed folders of classes, "
            "and give the folder that this makes"
        )
    usual = [name for name in found if name in LABEL_NAMES]
    if len(usual) == 1:
        return usual[0]
    if len(names) == 2:
        finer, coarser = sorted(names, key=lambda name: -int(features[name].num_classes))
        if features[finer].num_classes > features[coarser].num_classes:
            return finer
    return _only(found, "label", features, LABEL_ADVICE)


def _find_superclass(features: datasets.Features, label: str) -> str | None:
    if not isinstance(features[label], datasets.ClassLabel):
        return None
    classes = features[label].num_classes
    coarser = [name for name in _class_label_columns(features) if features[name].num_classes < classes]
    if len(coarser) > 1:
        coarser = [name for name in coarser if name in SUPERCLASS_NAMES]
    return coarser[0] if len(coarser) == 1 else None


def _described(features: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {_type(kind)}" for name, kind in features.items()) or "no columns"


def _type(kind: Any) -> str:
    """The contents of a column, in a word or two."""
    if isinstance(kind, datasets.Value):
        return str(kind.dtype).removeprefix("large_")
    return f"structs of {', '.join(kind)}" if isinstance(kind, dict) else type(kind).__name__
