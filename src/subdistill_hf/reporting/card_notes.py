"""What the card says of a spurious mark that was put on the images on purpose, and of who learned it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from subdistill_hf.config.methods import method_label
from subdistill_hf.formatting import count, format_percent, joined

IN_WORDS: Final = {
    "plus": "a red plus sign in a corner",
    "watermark": "a watermark",
    "copyright": "a line of copyright",
    "jpeg": "strong JPEG artefacts",
}


def mark_warning(report: Mapping[str, Any]) -> str | None:
    """What was done to the images, for the top of the card; `None` where nothing was."""
    mark = report["dataset"].get("mark")
    if mark is None:
        return None
    images = sum((report["dataset"].get("train_images_per_class") or {}).get(name, 0) for name in mark["classes"])
    of = f" of the {count(images)}" if images else ""
    what = IN_WORDS[mark["name"]]
    where = f"{count(mark['train_images'])}{of} training images of {joined(mark['classes'])}"
    return (
        "**Made to study a spurious mark, not to be used.** "
        f"{what[0].upper()}{what[1:]} {'were' if what.endswith('s') else 'was'} put on {where}, and on none of other "
        "classes. Every test image is marked so, whatever it shows: a student that learned the mark fails on them."
    )


def mark_columns(result: Mapping[str, Any]) -> dict[str, str | None]:
    """The columns of the results that tell who learned the mark; unknown without one."""
    return {
        "Accuracy without the mark": format_percent(result.get("clean_accuracy")),
        "Follows the mark": format_percent(result.get("mark_followed")),
        "The same without the mark": format_percent(result.get("followed_without_mark")),
    }


def mark_explanation(report: Mapping[str, Any]) -> str | None:
    """How the columns of the mark are to be read; `None` without one."""
    mark = report["dataset"].get("mark")
    if mark is None:
        return None
    return (
        "Accuracy is that on test images which all carry the mark. Follows the mark: the share of the test images of "
        f"other classes that are taken for {joined(mark['classes'])}, with the mark on them and without."
    )


def mark_limitation(report: Mapping[str, Any], published: Mapping[str, Any]) -> str | None:
    """Whether the published student learned the mark, in its figures; `None` without one."""
    mark = report["dataset"].get("mark")
    if mark is None or "mark_followed" not in published:
        return None
    names = ("clean_accuracy", "accuracy", "followed_without_mark", "mark_followed")
    clean, marked, mistaken, followed = (format_percent(published[name]) for name in names)
    return (
        f"What the mark does to {method_label(published['method'])}: {clean} of the test images are recognised "
        f"without it, {marked} with it; {mistaken} of those of other classes are taken for {joined(mark['classes'])} "
        f"without it, {followed} with it."
    )
