"""What the values of options must be: of their field's type, and in range."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from subdistill_hf.errors import SubDistillError

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def check_types(options: Any) -> None:
    """Refuse numbers and switches that are something else, as a YAML file or a caller may give them.

    Args:
        options: an instance of a dataclass; fields of other types are not looked at, nor values that are the default.

    Raises:
        SubDistillError: naming the first such field, with what was expected and found.
    """
    for field in fields(options):
        value, kind = getattr(options, field.name), _kind(field)
        if kind is None or value is None or value is field.default:
            continue
        if not _is_of(value, kind):
            raise SubDistillError(f"{field.name}={value!r}: expected {_KINDS[kind]}")


def check_ranges(options: Any, least: Mapping[str, float], between: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers out of range; `None` is in any.

    Args:
        options: what has the numbers as attributes.
        least: name to the smallest number allowed.
        between: name to the smallest and the largest.

    Raises:
        SubDistillError: naming the first number out of range, with what was expected and found.
    """
    for name, smallest in least.items():
        _check_range(options, name, smallest, math.inf, f"at least {smallest:g}")
    for name, (smallest, largest) in between.items():
        _check_range(options, name, smallest, largest, f"a number from {smallest:g} to {largest:g}")


def names_of_options(*kinds: Any) -> list[str]:
    """The names of all fields of dataclasses."""
    return [field.name for kind in kinds for field in fields(kind)]


def _check_range(options: Any, name: str, smallest: float, largest: float, expected: str) -> None:
    value = getattr(options, name)
    if value is not None and not smallest <= value <= largest:
        raise SubDistillError(f"{name}={value}: expected {expected}")


def _kind(field: Field[Any]) -> str | None:
    """`int`, `float` or `bool`, for these and for what may also be `None`."""
    text = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    text = text.replace(" | None", "").removeprefix("typing.Optional[").removesuffix("]")
    return text if text in _KINDS else None


def _is_of(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    return isinstance(value, numbers.Integral if kind == "int" else numbers.Real) and not isinstance(value, bool)
