"""Figures of a page as SVG: axes, lines and points, in colours that suit a light and a dark page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from markupsafe import Markup

LIGHT, DARK = "#ffffff", "#14181d"
"""The paper of the page."""
INK_ON_DARK: Final = "#e8ecf1"
_NEARLY_BLACK: Final = 0.02
LEAST_CONTRAST: Final = 3.0  # of a graphic with the paper (WCAG 2.2, 1.4.11)
LEAST_RATIO: Final = 8
"""Of the ends of an axis with ticks at 1, 2, 5."""
DASHES: Final = ("", "7 3", "2 3", "10 3 2 3", "1 4", "12 4")
"""Of lines, so that they are told apart without colours."""


def element(name: str, content: Markup | str = "", /, **attributes: Any) -> Markup:
    """An element of SVG.

    Args:
        name: of the element.
        content: what stands in it.
        **attributes: `None` for one that is left out; `class_` is `class`, and `_` within a name a hyphen.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value) if _is_number(value) else value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, content)


def both_papers(colour: str) -> str:
    """A colour that can be seen on the light and on the dark page, for CSS.

    Args:
        colour: `#RRGGBB`; made darker or lighter as far as needed.
    """
    on_dark = INK_ON_DARK if _luminance(colour) < _NEARLY_BLACK else _seen(colour, DARK, "#ffffff")
    return f"light-dark({_seen(colour, LIGHT, '#000000')}, {on_dark})"


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _seen(colour: str, paper: str, towards: str) -> str:
    share, found = 0.0, colour
    while contrast(found, paper) < LEAST_CONTRAST and share < 1:
        share += 0.05
        found = mixed(colour, towards, share)
    return found


def mixed(one: str, other: str, share: float) -> str:
    """A colour between two."""
    channels = zip(_channels(one), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * min(share, 1.0)):02x}" for a, b in channels)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))
    ]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@dataclass(frozen=True)
class Axis:
    """The way from values to places.

    Attributes:
        low: the least value.
        high: the largest one.
        ticks: values with a label.
        label: of a tick.
        log: whether the place goes with the logarithm.
    """

    low: float
    high: float
    ticks: Sequence[float]
    label: Callable[[float], str] = "{:g}".format
    log: bool = False

    def share(self, value: float) -> float:
        """The place of a value, 0 to 1."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return (value - low) / ((high - low) or 1.0)


def percent(value: float) -> str:
    """The label of a share."""
    return f"{100 * value:g} %"


SHARES: Final = Axis(0.0, 1.0, tuple(place / 5 for place in range(6)), percent)
"""The axis of shares, 0 to 100 %."""


def linear_axis(low: float, high: float, label: Callable[[float], str] = "{:g}".format, whole: bool = False) -> Axis:
    """An axis with about five ticks at round values.

    Args:
        low: the least value; the axis begins here.
        high: the largest one.
        label: of a tick.
        whole: ticks at whole numbers alone.
    """
    step = _round_step((high - low) / 5) if high > low else 1.0
    step = max(1.0, float(math.ceil(step))) if whole else step
    first = math.ceil(round(low / step, 9))
    ticks = [round(number * step, 12) for number in range(first, math.floor(round(high / step, 9)) + 1)]
    return Axis(low, high if high > low else low + 1, ticks, label)


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis, with ticks at 1, 2, 5 or, over many decades, at powers of ten; at round values of a few."""
    if high < LEAST_RATIO * low:
        return replace(linear_axis(low, high), log=True)
    many = math.log10(high / low) >= 2.5
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in ((1,) if many else (1, 2, 5))]
    return Axis(
        low, high, [tick for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)], log=True
    )


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999) * power)


@dataclass
class Plot:
    """A plot with two axes; what is drawn lies on top of what was drawn before.

    Attributes:
        x: the horizontal axis.
        y: the vertical one.
        x_title: what the horizontal axis shows.
        y_title: what the vertical one shows.
        width: in units of the drawing.
        height: in the same.
        left: room for the labels of the vertical axis.
    """

    x: Axis
    y: Axis
    x_title: str
    y_title: str
    width: float = 520
    height: float = 300
    left: float = 64
    _drawn: list[Markup] = field(default_factory=list)

    TOP: Final = 34.0
    BOTTOM: Final = 52.0
    RIGHT: Final = 26.0

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across, up = self.width - self.left - self.RIGHT, self.height - self.TOP - self.BOTTOM
        return self.left + across * self.x.share(x), self.TOP + up * (1 - self.y.share(y))

    def line(self, x: Sequence[float], y: Sequence[float], style: str | None = None, **attributes: Any) -> None:
        """A line through points, with a dot where there is only one."""
        places = [self.place(*point) for point in zip(x, y, strict=True)]
        if len(places) == 1:
            self.dot(x[0], y[0], 3.5, style=style)
            return
        path = "M" + "L".join(f"{_number(across)} {_number(down)}" for across, down in places)
        self._drawn.append(element("path", d=path, class_="line", style=style, **attributes))

    def dot(self, x: float, y: float, radius: float, title: str | None = None, **attributes: Any) -> None:
        """A point, with a text that is shown when it is pointed at."""
        across, down = self.place(x, y)
        inner = element("title", title) if title else ""
        self._drawn.append(element("circle", inner, cx=across, cy=down, r=radius, **{"class_": "dot"} | attributes))

    def square(self, x: float, y: float, radius: float, title: str | None = None, **attributes: Any) -> None:
        """A square that stands on a corner."""
        across, down = self.place(x, y)
        corners = [(across, down - radius), (across + radius, down), (across, down + radius), (across - radius, down)]
        points = " ".join(f"{_number(a)},{_number(b)}" for a, b in corners)
        inner = element("title", title) if title else ""
        self._drawn.append(element("polygon", inner, points=points, **{"class_": "dot"} | attributes))

    def drawn(self, description: str) -> Markup:
        """The figure.

        Args:
            description: what it shows, for those who do not see it.
        """
        label = element("title", description)
        axes = Markup("").join([self._y_axis(), self._x_axis()])
        return element(
            "svg",
            label + axes + Markup("").join(self._drawn),
            viewBox=f"0 0 {_number(self.width)} {_number(self.height)}",
            role="img",
            class_="plot",
        )

    def _x_axis(self) -> Markup:
        bottom = self.height - self.BOTTOM
        labels = []
        for tick in self.x.ticks:
            across, _ = self.place(tick, self.y.low)
            labels.append(element("text", self.x.label(tick), x=across, y=bottom + 20, text_anchor="middle"))
        line = element("line", x1=self.left, x2=self.width - self.RIGHT, y1=bottom, y2=bottom, class_="axis")
        title = element(
            "text", self.x_title, x=self.width - self.RIGHT, y=self.height - 8, text_anchor="end", class_="title"
        )
        return line + Markup("").join([*labels, title])

    def _y_axis(self) -> Markup:
        drawn = []
        for tick in self.y.ticks:
            _, down = self.place(self.x.low, tick)
            drawn.append(element("line", x1=self.left, x2=self.width - self.RIGHT, y1=down, y2=down, class_="grid"))
            drawn.append(element("text", self.y.label(tick), x=self.left - 8, y=down + 5, text_anchor="end"))
        title = element("text", self.y_title, x=0, y=16, class_="title")
        return Markup("").join([*drawn, title])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
