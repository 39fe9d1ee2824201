"""Lay out rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


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
