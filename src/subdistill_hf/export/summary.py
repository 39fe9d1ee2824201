"""What an export came to, for the terminal."""

from __future__ import annotations

from pathlib import Path

from subdistill_hf.formatting import file_size, format_percent, memory, milliseconds, table
from subdistill_hf.reporting.exported import ExportedFile, ReportedExport


def summary(result: ReportedExport, folder: str | Path) -> str:
    """A table of the files, where they lie, and what was left out; without labels it has no accuracy.

    Args:
        result: see `run.export_student`.
        folder: of the student.
    """
    labelled = result.torch_accuracy is not None
    of_torch = [format_percent(result.torch_accuracy) or ""] if labelled else []
    rows: list[tuple[str, ...]] = [
        ("", "size", *(["accuracy"] if labelled else []), "as torch", "logits within", "ms/image", "memory"),
        ("torch", "", *of_torch, "", "", "", ""),
        *(_row(file, labelled) for file in result.files),
    ]
    lines = [
        "",
        table(rows, numbers_from=1),
        "",
        f"{result.runtime} alone, 1 thread, 1 image; {result.machine}; {result.images}",
    ]
    if result.pixel_difference is not None:
        lines.append(f"preprocessing inside: pixels within {result.pixel_difference:.2g} of 255 levels")
    elif not result.left_to_device:
        lines.append(
            "note: no program that uses the files: the pixels of the student's image processor could not be made in "
            "steps, so the app has to make them as transformers does"
        )
    lines += [f"note: no int8 file: {result.left_out}"] if result.left_out else []
    lines.append(f"\nThe files are in {Path(folder) / result.format}")
    return "\n".join(lines)


def _row(file: ExportedFile, labelled: bool) -> tuple[str, ...]:
    latency, peak = file.latency_ms, file.peak_memory_bytes
    return (
        f"{file.name}{f' ({file.scheme})' if file.scheme else ''}",
        file_size(file.size_bytes),
        *([format_percent(file.accuracy) or ""] if labelled else []),
        format_percent(file.agreement) or "",
        f"{file.largest_difference:.2g}",
        f"{milliseconds(latency.median)} ({latency.low:.2g} to {latency.high:.2g})",
        "" if peak is None else memory(peak),
    )
