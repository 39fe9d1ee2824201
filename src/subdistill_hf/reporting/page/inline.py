"""HTML of the card's cells and sentences, so that a page says what the card says, in the same words."""

from __future__ import annotations

import re
from typing import Any, Final

from markupsafe import Markup, escape

from subdistill_hf.reporting import markdown

_TOKEN: Final = re.compile(
    r"""\\(?P<escaped>[^\w\s]|_)
    | &\#(?P<character>\d+);
    | `(?P<code>[^`]+)`
    | (?P<html_code></?code>)
    | (?P<bold>\*\*)
    | \[(?P<label>(?:\\.|[^\]\\])*)\]\((?P<address>https://[^\s)]*)\)
    """,
    re.VERBOSE,
)


def from_markdown(written: str) -> Markup:
    """The inline Markdown that cards are made of as HTML.

    Args:
        written: by the functions of `markdown`, `card_tables` and `card_notes`: texts, code, bold words and links of
            https. Anything else is shown as it is.
    """
    parts: list[Markup] = []
    end, bold = 0, False
    for found in _TOKEN.finditer(written):
        parts.append(escape(written[end : found.start()]))
        end = found.end()
        if found["escaped"]:
            parts.append(escape(found["escaped"]))
        elif found["character"]:
            parts.append(escape(chr(int(found["character"]))))
        elif found["code"]:
            parts.append(Markup("<code>{}</code>").format(found["code"]))
        elif found["html_code"]:
            parts.append(Markup(found["html_code"]))
        elif found["bold"]:
            parts.append(Markup("</strong>" if bold else "<strong>"))
            bold = not bold
        else:
            link = Markup('<a href="{}">{}</a>')
            parts.append(link.format(found["address"], from_markdown(found["label"])))
    parts.append(escape(written[end:]))
    return Markup("").join([*parts, Markup("</strong>" if bold else "")])


def text(value: Any) -> Markup:
    """A text that is data, such as the name of a class, in one line and as it is."""
    return from_markdown(markdown.text(value))


def code(value: Any) -> Markup:
    """A value as code."""
    return from_markdown(markdown.code(value))
