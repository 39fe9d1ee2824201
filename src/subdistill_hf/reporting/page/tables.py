"""Tables of a page: each column can be sorted by the values of its cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup

from subdistill_hf.reporting.page.inline import from_markdown

UNKNOWN: Final = "–"  # noqa: RUF001 - as in a table of the card
_NUMBER: Final = re.compile(r"^(?P<more>> )?(?P<number>[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*(?P<unit>[A-Za-z]+)?")
_SECOND_PART: Final = re.compile(r"^\d+ (?:h|min) (?P<number>\d+) (?P<unit>min|s)\b")
_UNITS: Final = {
    **{"kFLOPs": 1e3, "MFLOPs": 1e6, "GFLOPs": 1e9},
    **{"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    **{"kB": 1e3, "MB": 1e6, "MiB": 2.0**20, "GiB": 2.0**30, "kWh": 1e3},
}


def sort_value(cell: str) -> float | None:
    """The number that a cell begins with, in the unit that its column is sorted by; `None` for texts.

    Args:
        cell: written by the functions of `formatting`, bold or not.
    """
    written = cell.strip("*")
    found = _NUMBER.match(written)
    if found is None:
        return None
    value = float(found["number"].replace(",", "")) * _UNITS.get(found["unit"] or "", 1.0)
    if second := _SECOND_PART.match(written):
        value += float(second["number"]) * _UNITS[second["unit"]]
    return value + 0.001 if found["more"] else value


def table(rows: Sequence[Mapping[str, str | Markup | None]], caption: str, hidden: bool = True) -> Markup:
    """A table that can be sorted, without the columns in which every cell is unknown; empty without rows.

    Args:
        rows: column to cell, which is Markdown of the card or HTML; the first column names the row.
        caption: what the table shows, for those who hear the page.
        hidden: whether only they get the caption.
    """
    columns = [column for column in (rows[0] if rows else {}) if any(row[column] is not None for row in rows)]
    if not columns:
        return Markup()
    numeric = {column for column in columns[1:] if _is_numeric([row[column] for row in rows])}
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(_class(column, numeric), column) for column in columns
    )
    body = Markup("\n").join(Markup("<tr>{}</tr>").format(_cells(row, columns, numeric)) for row in rows)
    return Markup(
        '<div class="wide" tabindex="0" role="group" aria-label="{caption}"><table class="sortable">'
        "<caption{hidden}>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    ).format(caption=caption, hidden=Markup(' class="unseen"') if hidden else "", head=head, body=body)


def _cells(row: Mapping[str, str | Markup | None], columns: Sequence[str], numeric: set[str]) -> Markup:
    cells = []
    for place, column in enumerate(columns):
        cell = row[column]
        value = None if cell is None or isinstance(cell, Markup) else sort_value(cell)
        key = Markup(' data-sort="{}"').format(f"{value:.10g}") if value is not None and column in numeric else ""
        tag = Markup('th scope="row"') if place == 0 else Markup("td")
        if not isinstance(cell, Markup):
            cell = UNKNOWN if cell is None else cell
            shown = from_markdown(kept_together(cell) if column in numeric else cell)
        else:
            shown = cell
        opening = Markup("<{}{}{}>").format(tag, _class(column, numeric), key)
        cells.append(opening + shown + Markup("</th>" if place == 0 else "</td>"))
    return Markup("").join(cells)


def kept_together(cell: str) -> str:
    """A number with its unit as one word, which a line does not break, but for what stands in brackets."""
    return cell.replace(" ", "\u00a0").replace("\u00a0(", " (")


def _class(column: str, numeric: set[str]) -> Markup | str:
    return Markup(' class="number"') if column in numeric else ""


def _is_numeric(cells: Sequence[str | Markup | None]) -> bool:
    """Whether all known cells of a column are numbers."""
    known = [cell for cell in cells if cell is not None]
    return all(not isinstance(cell, Markup) and sort_value(cell) is not None for cell in known)
