"""Dataclasses from JSON values: every value is checked against the type of its field."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class DecodingError(ValueError):
    """A JSON value that does not fit the type of its field."""


def decode(kind: type[T], value: Any, place: str = "") -> T:
    """Build a dataclass from a JSON object.

    Args:
        kind: the dataclass. Its fields are of plain types, other dataclasses, `tuple[..., ...]`, `Mapping[str, ...]`,
            or `... | None`.
        value: the object, as `json` gives it. Fields with a default may be missing, other entries are left out.
        place: where the object stands in the document, for messages; empty for the document itself.

    Raises:
        DecodingError: naming the place, what is expected there and what was found.
    """
    if not isinstance(value, Mapping):
        raise DecodingError(f"expected an object{_at(place)}, found {_described(value)}")
    types_of = get_type_hints(kind)
    found = {}
    for field in fields(kind):  # type: ignore[arg-type]
        inner = f"{place}.{field.name}" if place else field.name
        if field.name in value:
            found[field.name] = _decode_any(types_of[field.name], value[field.name], inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DecodingError(f"expected an entry {inner!r}, found none")
    return kind(**found)


def _decode_any(kind: Any, value: Any, place: str) -> Any:
    """A value of any of the types that a field may have."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        (kind,) = (one for one in inner if one is not types.NoneType)
        return None if value is None else _decode_any(kind, value, place)
    if isinstance(kind, type) and is_dataclass(kind):
        return decode(kind, value, place)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise DecodingError(f"expected a list{_at(place)}, found {_described(value)}")
        return tuple(_decode_any(inner[0], one, f"{place}[{number}]") for number, one in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise DecodingError(f"expected an object{_at(place)}, found {_described(value)}")
        return {key: _decode_any(inner[1], one, f"{place}.{key}") for key, one in value.items()}
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise DecodingError(f"expected {_NAMES[kind]}{_at(place)}, found {_described(value)}")
    return value


def _at(place: str) -> str:
    return f" in {place!r}" if place else ""


def _described(value: Any) -> str:
    """A value, or only its kind when it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
