"""Read the values of a student recipe."""

from __future__ import annotations

from collections.abc import Sequence


def positive(key: str, value: str | int) -> int:
    """The whole number of at least 1 that a recipe gives for a key."""
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"expected whole numbers of at least 1 for {key}, found {value!r}")
    return int(value)


def factor(value: str | float) -> float:
    """The width factor that a recipe gives, above 0 and at most 4."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 4:
        raise ValueError(f"expected a factor above 0 and at most 4 for width, found {value!r}")
    return number


def refuse_unknown(options: dict[str, str], known: Sequence[str]) -> None:
    """Refuse what is left of a recipe's options."""
    if options:
        raise ValueError(f"unknown key {next(iter(options))!r}: expected {', '.join(known)}")
