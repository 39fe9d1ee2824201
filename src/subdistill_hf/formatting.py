"""Numbers, durations and lists as a reader wants them, and tables for the terminal."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path


def format_percent(fraction: float | None) -> str | None:
    """Write a share in percent.

    Args:
        fraction: the share, or `None` when it is unknown.

    Returns:
        One decimal; `> 99.9 %` for what only rounding would make 100 %; `None` when it is unknown.
    """
    if fraction is None:
        return None
    return "> 99.9 %" if 0.9995 <= fraction < 1 else f"{100 * fraction:.1f} %"


def binomial_error(accuracy: float, images: int) -> float:
    """Estimate the standard error of an accuracy measured on independent images.

    Args:
        accuracy: share of the images that were classified correctly.
        images: their number.

    Returns:
        The binomial standard error: 0 when none or all are correct, where the estimate says nothing.
    """
    return math.sqrt(accuracy * (1 - accuracy) / images)


def difference_error(first: float, second: float, images: int) -> float:
    """Estimate the standard error of a difference of accuracies, as if each had been measured on images of its own.

    Args:
        first: one accuracy.
        second: the other.
        images: how many images each was measured on.
    """
    return math.hypot(binomial_error(first, images), binomial_error(second, images))


def accuracy_with_error(accuracy: float, images: int) -> str:
    """Write an accuracy with its standard error, where the error says something."""
    error = binomial_error(accuracy, images)
    digits = 1 if error >= 0.0005 else 2
    measured = f"{100 * accuracy:.{digits}f} ± {100 * error:.{digits}f} %"
    return measured if error > 0 else str(format_percent(accuracy))


def count(number: int | None) -> str | None:
    """Write a number with thousands separators; `None` stays unknown."""
    return None if number is None else f"{number:,}"


def operations(number: int | None) -> str | None:
    """Write a number of floating-point operations with three digits; `None` stays unknown."""
    if number is None:
        return None
    for size, unit in ((1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return f"{number} FLOPs"


def energy(kilowatt_hours: float | None) -> str | None:
    """Write an energy with two digits; `None` stays unknown."""
    if kilowatt_hours is None:
        return None
    return f"{kilowatt_hours:.2g} kWh" if kilowatt_hours >= 0.1 else f"{1000 * kilowatt_hours:.2g} Wh"


def file_size(size: int) -> str:
    """Write a file size in decimal units."""
    if size < 1_000_000:
        return f"{size / 1000:.1f} kB"
    return f"{size / 1_000_000:.1f} MB"


def memory(size: float) -> str:
    """Bytes as MiB, or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def ratio_in_words(ratio: float, more: str, less: str) -> str:
    """Write a ratio as a comparison that is never below one."""
    word, value = (more, ratio) if ratio >= 1 else (less, 1 / ratio)
    return f"{value:,.0f} times {word}" if value >= 10 else f"{value:.1f} times {word}"


def milliseconds(value: float) -> str:
    """Write a time in milliseconds with three digits."""
    return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


def duration(seconds: float | None) -> str | None:
    """Write a duration in its two largest units."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def joined(names: Sequence[str]) -> str:
    """List names as a sentence does."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def slug(text: str, otherwise: str = "unnamed") -> str:
    """Reduce a name to the characters that the Hub allows in identifiers.

    Args:
        text: the name; accents are left out.
        otherwise: what is returned where no character is left.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w.-]+", "-", plain).strip("-.") or otherwise


def last_part(place: str | Path) -> str:
    """What a folder or a file is called: the last part of its path, also where that is `.` or `..`."""
    name = Path(place).name
    return name if name not in ("", "..") else Path(place).resolve().name


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten dotted layer names to what tells them apart, with the one shared part before it."""
    split = [name.split(".") for name in names]
    if len(split) == 1:
        return [".".join(split[0][-2:])]
    shared = 0
    while split and len({tuple(parts[: shared + 1]) for parts in split}) == 1 and shared < len(split[0]):
        shared += 1
    return [".".join(parts[max(0, shared - 1) :]) for parts in split]


def table(rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    """Align columns under a ruled header.

    Args:
        rows: the header, then the rows.
        numbers_from: the first column that is aligned to the right; none by default.
    """
    columns = range(len(rows[0]))
    widths = [max(len(row[column]) for row in rows) for column in columns]

    def line(cells: Sequence[str]) -> str:
        right = numbers_from if numbers_from is not None else len(widths)
        aligned = [
            cell.rjust(width) if column >= right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    ruler = "  ".join("-" * width for width in widths)
    return "\n".join([line(rows[0]), ruler, *(line(row) for row in rows[1:])])
