"""The card's section "On a device": the exported files, and how well they do there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from subdistill_hf.config.extras import has_extra
from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.formatting import count, file_size, format_percent, memory
from subdistill_hf.hub.files import CARD_FILE
from subdistill_hf.reporting.card_tables import Row, latency_cell
from subdistill_hf.reporting.exported import ExportedFile, ReportedExport, TriedScheme
from subdistill_hf.reporting.markdown import code, text
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.report import RunReport

HEADING: Final = "## On a device"
PLOT_FILE: Final = "on_device.png"
NEXT_SECTIONS: Final = ("## Subspaces", "## Training", "## Teacher", "## Limitations", "## Versions")
"""The section stands before the first of these that a card has."""
_FENCE: Final = re.compile(r"(`{3,}|~{3,})")
_WAYS: Final = {
    "static": "fixed ranges of weights and activations, weights of 7 bits so that no CPU overflows",
    "dynamic": "fixed ranges of the weights of matrix products, activations in the range of each image",
}


def file_rows(export: ReportedExport) -> list[Row]:
    """One row a file, after the student in torch."""
    torch_row: Row = dict.fromkeys(_file_row(export, export.files[0]))
    torch_row |= {"File": "torch", "Precision": "float32", "Accuracy": format_percent(export.torch_accuracy)}
    return [torch_row, *(_file_row(export, file) for file in export.files)]


def _file_row(export: ReportedExport, file: ExportedFile) -> Row:
    peak = file.peak_memory_bytes
    return {
        "File": code(f"{export.format}/{file.name}"),
        "Precision": file.precision,
        "Size": file_size(file.size_bytes),
        "Accuracy": format_percent(file.accuracy),
        "Same class as torch": format_percent(file.agreement),
        "Largest difference of a logit": f"{file.largest_difference:.2g}",
        "Time per image": latency_cell(file.latency_ms),
        "Memory of the process": None if peak is None else memory(peak),
    }


def facts(export: ReportedExport) -> list[str]:
    """How it was measured, what the files take, and how they came to 8 bits."""
    measured = (
        f"Measured with {text(export.runtime)} alone on {text(export.machine)}, on {text(export.images)}; times and "
        "memory are of one image on one thread, the median with its quartiles."
    )
    if export.preprocessing == "inside":
        takes = (
            "The files take images of any size, as bytes, and scale, cut and normalise them as the student's image "
            f"processor does: pixels differ by at most {export.pixel_difference or 0:.2g} of 255 levels."
        )
    else:
        takes = (
            "The files take pixels that were scaled, cut and normalised already: preprocessing is left to the device."
        )
    network = (
        f"Of the same pixels, the network alone gives the logits of torch within {export.network_difference:.1g}."
    )
    return [measured, takes, network, *_int8_facts(export)]


def _int8_facts(export: ReportedExport) -> list[str]:
    """The ways to 8 bits that were tried, and why none was kept."""
    if not export.tried:
        return []
    labelled = any(one.accuracy is not None for one in export.tried)
    kind = "accuracy" if labelled else "same class as torch"
    tried = ", ".join(_tried(one, labelled) for one in export.tried)
    found = [
        f"Ways to 8 bits, by {kind} on validation images: {tried}; ranges from {count(export.calibration_images)} "
        "images."
    ]
    if export.left_out is not None:
        return [*found, f"There is no file of 8 bits: {text(export.left_out)}."]
    scheme = next((file.scheme for file in export.files if file.scheme), None)
    return [*found, f"The one that was kept is {scheme}: {_WAYS.get(scheme or '', 'of another version')}."]


def _tried(scheme: TriedScheme, labelled: bool) -> str:
    """A way to 8 bits and its share."""
    if scheme.size_bytes is None:
        return f"{scheme.name} failed"
    share = scheme.accuracy if labelled else scheme.agreement
    return f"{scheme.name} {format_percent(share)} in {file_size(scheme.size_bytes)}"


def describe_on_card(folder: Path, report: RunReport) -> None:
    """Draw the files of a student, and put the section into its card, in place of an earlier one; other text stays.

    Args:
        folder: of the student; one without a card gets none.
        report: with the exports.
    """
    from subdistill_hf.reporting.model_card import render_on_device

    drawn = False
    if has_extra("plots"):
        with plot_is_optional(PLOT_FILE):
            from subdistill_hf.reporting.export_plot import plot_export

            (folder / PLOT_FILE).unlink(missing_ok=True)
            drawn = plot_export(report.exports[-1], folder / PLOT_FILE) is not None
    card = folder / CARD_FILE
    if not card.is_file():
        print(f"note: {folder} has no card, and none was made", file=sys.stderr)
        return
    section = render_on_device(report, PLOT_FILE if drawn else None)
    described = with_section(card.read_text(encoding="utf-8"), section)
    with written_whole(card) as part:
        part.write_text(described, encoding="utf-8")


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
