"""Put the section "On a device" into a card that is there, and leave the rest of it as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.config.extras import has_extra
from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.hub.files import CARD_FILE
from subdistill_hf.reporting.exported import ReportedExport
from subdistill_hf.reporting.model_card import render_on_device
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.report import RunReport

NEXT_SECTIONS: Final = ("## Subspaces", "## Training", "## Teacher", "## Limitations", "## Versions")
"""The section stands before the first of these that a card has."""
_FENCE: Final = re.compile(r"(`{3,}|~{3,})")


def describe_on_card(folder: Path, report: RunReport) -> None:
    """Draw the files of a student, and put the section into its card, in place of an earlier one; other text stays.

    Args:
        folder: of the student; one without a card gets none.
        report: with the exports.
    """
    plots = {export.format: name for export in report.exports if (name := _drawn(folder, export)) is not None}
    card = folder / CARD_FILE
    if not card.is_file():
        print(f"note: {folder} has no card, and none was made", file=sys.stderr)
        return
    section = render_on_device(report, plots)
    described = with_section(card.read_text(encoding="utf-8"), section)
    with written_whole(card) as part:
        part.write_text(described, encoding="utf-8")


def _drawn(folder: Path, export: ReportedExport) -> str | None:
    """Draw the files of a format; the name of the image, where there is one."""
    known = EXPORT_FORMATS.get(export.format)  # a later version may know more
    if known is None or not has_extra("plots"):
        return None
    name = known.figure
    with plot_is_optional(name):
        from subdistill_hf.reporting.export_plot import plot_export

        (folder / name).unlink(missing_ok=True)
        return name if plot_export(export, folder / name) is not None else None
    return None


def with_section(card: str, section: str) -> str:
    """A card with a section in place of the one of the same heading, or before the first of `NEXT_SECTIONS`.

    Args:
        card: Markdown.
        section: Markdown that begins with its heading.
    """
    lines = card.splitlines(keepends=True)
    headings = _headings(lines)
    heading = section.splitlines()[0].strip()
    places = [line for line, title in headings if title == heading]
    if places:
        first = places[0]
        last = next((line for line, _ in headings if line > first), len(lines))
    else:
        first = last = next((line for line, title in headings if title in NEXT_SECTIONS), len(lines))
    before = "".join(lines[:first]).rstrip("\n") + "\n\n"
    return before + section.strip("\n") + "\n\n" + "".join(lines[last:])


def _headings(lines: list[str]) -> list[tuple[int, str]]:
    """The headings of the second level outside of code, with their lines."""
    found, fence = [], ""
    for place, line in enumerate(lines):
        opened = _FENCE.match(line)
        if opened and not fence:
            fence = opened[1]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence and line.startswith("## "):
            found.append((place, line.strip()))
    return found
