"""The colours of figures: one a method, so that no two share one."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator
from typing import Final

# Colours of Okabe and Ito, which colour-blind readers tell apart; there are seven, so the rarer methods share shades.
METHOD_COLOURS: Final = {
    "scratch": "#777777",
    "kd": "#D55E00",
    "ce_kd": "#F2A673",
    "dkd": "#8A3D00",
    "fitnet": "#009E73",
    "attention_transfer": "#CC79A7",
    "vid": "#56B4E9",
    "vkd": "#E69F00",
    "spkd": "#B7A800",
    "subdistill": "#0072B2",
}
VARIANT_COLOURS: Final = ("#6BAED6", "#08306B", "#5B5BD6", "#00A6A6", "#B39DDB", "#7A9E00")
OTHER_COLOURS: Final = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, SOFT, GRID = "#333333", "#777777", "#E5E5E5"

_GOLDEN: Final = 0.618034  # steps of this share of a circle never meet


def distinct_colours(methods: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Choose a colour for each method of a figure.

    Args:
        methods: the name of each, and the kind of method that it is.

    Returns:
        Name to colour, all of them different: that of its kind for the first of a kind that has one, else a colour of
        variants or a new one.
    """
    methods = list(methods)
    colours: dict[str, str] = {}
    for name, kind in methods:
        own = METHOD_COLOURS.get(kind)
        if own is not None and own not in colours.values():
            colours[name] = own
    others = other_colours()
    for name, _ in methods:
        while name not in colours:
            colour = next(others)
            if colour not in colours.values() and colour not in (INK, SOFT):
                colours[name] = colour
    return {name: colours[name] for name, _ in methods}


def other_colours() -> Iterator[str]:
    """The colours of variants, then hues without end, darker from round to round."""
    yield from VARIANT_COLOURS
    number = 0
    while True:
        red, green, blue = colorsys.hls_to_rgb(number * _GOLDEN % 1, 0.62 - 0.07 * (number // 8 % 5), 0.65)
        yield f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"
        number += 1
