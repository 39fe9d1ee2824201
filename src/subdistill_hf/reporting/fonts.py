"""Texts in figures: which font of this machine draws their characters, and what is drawn where none does."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FAMILY: Final = "DejaVu Sans"  # which matplotlib brings along
LONGEST: Final = 32  # characters of a name
_INVISIBLE: Final = ("Cf", "Mn")  # joiners and selectors of variants: nothing is lost without them


def drawable(name: str, longest: int = LONGEST) -> str:
    """A name as figures show it: one line, of characters that a font of this machine draws.

    Args:
        name: of a class, a method or a layer.
        longest: characters that there is room for.

    Returns:
        The name; what cannot be drawn as Python's escapes (`\\n`, `\\u732b`), and the middle of a long name as an
        ellipsis.
    """
    drawn = "".join(_drawable(character) for character in name)
    if len(drawn) <= longest:
        return drawn
    tail = longest // 3
    return f"{drawn[: longest - tail - 1]}…{drawn[len(drawn) - tail :]}"


def drawable_all(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Names as figures show them; those that would look alike are told apart by their numbers.

    Args:
        names: all names of one axis.
        longest: characters that there is room for.
    """
    drawn = [drawable(name, longest) for name in names]
    return [name if drawn.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(drawn)]


def width_in_characters(text: str) -> int:
    """How much room a text takes, in characters of the Latin alphabet: those of East Asia take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def families(text: str) -> list[str]:
    """The font families that draw a text, in the order in which they are asked for a character."""
    return list(dict.fromkeys([FAMILY, *(family for one in text if (family := _family_of(one)) is not None)]))


def file_of(text: str) -> str:
    """The file of one font that draws a text, for who draws without matplotlib; of the usual one where none does."""
    usual = font_manager.findfont(FAMILY)
    files = [usual, *(font.fname for font in _fonts_of_the_machine())]
    return next((file for file in files if _characters_of(file).issuperset(map(ord, text))), usual)


def _drawable(character: str) -> str:
    """A character, or what stands for it."""
    if (character.isprintable() or unicodedata.category(character) == "Zs") and _family_of(character) is not None:
        return character
    if unicodedata.category(character) in _INVISIBLE and unicodedata.bidirectional(character) in ("BN", "NSM"):
        return ""
    return character.encode("unicode_escape").decode("ascii")


@cache
def _family_of(character: str) -> str | None:
    """The first font family that draws a character."""
    if ord(character) in _characters_of(font_manager.findfont(FAMILY)):
        return FAMILY
    found = (font.name for font in _fonts_of_the_machine() if ord(character) in _characters_of(font.fname))
    return next(found, None)


@cache
def _fonts_of_the_machine() -> tuple[font_manager.FontEntry, ...]:
    """Upright fonts that matplotlib did not bring along: its others are of formulas, and one draws boxes for all."""
    bundled = Path(matplotlib.get_data_path())
    fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    fonts = [font for font in fonts if not Path(font.fname).is_relative_to(bundled)]
    return tuple(sorted(fonts, key=lambda font: (font.name, str(font.weight), font.fname)))


@cache
def _characters_of(path: str) -> frozenset[int]:
    """The characters that a font has."""
    return frozenset(FT2Font(path).get_charmap())
