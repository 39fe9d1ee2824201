"""Markdown of texts that are data: a name of a class is shown as it is, whatever characters it is made of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

# The pipe would end a cell of a table, the dollar sign begins a formula on the Hub and on GitHub.
_MARKUP: Final = re.compile(
    r"""[`*\[\]|~$]
    | (?<![^\W_])_ | _(?![^\W_])   # an underscore within a word is one
    | (?<!\S)\#                    # a heading, or its end
    """,
    re.VERBOSE,
)
_HTML: Final = re.compile(r"""[<>\\] | &(?=\#?\w+;)""", re.VERBOSE)  # a backslash before another escape would undo it
_AT_THE_ENDS: Final = re.compile(r"^\s+|\s+$")  # which a cell of a table would lose
_PLAIN_CODE: Final = re.compile(r"[^`|]+")
_CHANGES_DIRECTION: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def text(value: Any) -> str:
    """Escape what Markdown, HTML and formulas would make of a text.

    Args:
        value: a text, for example the name of a class.

    Returns:
        One line of Markdown that is shown as the text. Tabs, line breaks and blanks at the ends become references;
        what no document can hold, and what would turn the direction of what follows, becomes its code (`\\u202e`).
    """
    escaped = _HTML.sub(lambda found: f"&#{ord(found[0])};", str(value))
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", escaped)
    escaped = _AT_THE_ENDS.sub(lambda found: "".join(map(_reference, found[0])), escaped)
    return "".join(character if character.isprintable() else _visible(character) for character in escaped)


def _visible(character: str) -> str:
    """A character that is not printable, as it can stand in a line of Markdown."""
    must_change = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _CHANGES_DIRECTION
    return _reference(character) if must_change else character


def _reference(character: str) -> str:
    """A character by its number: to the reader as it is, or else as a code."""
    shown = character in "\t\n\r" or unicodedata.category(character) in ("Zs", "Zl", "Zp")
    return f"&#{ord(character)};" if shown else f"&#92;u{ord(character):04x}"


def code(value: Any) -> str:
    """Write a value as inline code, in a sentence or in a cell of a table."""
    value = str(value)
    return f"`{value}`" if _PLAIN_CODE.fullmatch(value) and value.isprintable() else f"<code>{text(value)}</code>"


def fenced(value: str, language: str = "") -> str:
    """Write a text as a block of code that ends where the text does."""
    value = value.encode("utf-8", errors="backslashreplace").decode("utf-8")  # names of files may be no text
    longest = max((len(run) for run in re.findall(r"`{3,}", value)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{value.strip()}\n{fence}"


def table(rows: Sequence[Mapping[str, str | None]]) -> str:
    """Write a table, without the columns in which every cell is unknown; empty without rows.

    Args:
        rows: column to cell, both Markdown; a cell that is unknown is `None`.
    """
    columns = [column for column in (rows[0] if rows else {}) if any(row[column] is not None for row in rows)]
    if not columns:
        return ""
    lines = [columns, ["---"] * len(columns)]
    lines += [["–" if row[column] is None else str(row[column]) for column in columns] for row in rows]  # noqa: RUF001
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hub_link(name: str, hub_id: str | None, kind: str = "") -> str:
    """Link a repository of the Hub; a model or dataset that is on no hub is just named."""
    return f"[{hub_id}](https://huggingface.co/{kind}{hub_id})" if hub_id else code(name)
