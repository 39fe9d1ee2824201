"""The card's section "On a device": the exported files, and how well they do there."""

from __future__ import annotations

from subdistill_hf.config.export_formats import EXPORT_FORMATS, ExportFormat
from subdistill_hf.formatting import count, file_size, format_percent, memory
from subdistill_hf.reporting.card_tables import Row, latency_cell
from subdistill_hf.reporting.exported import ExportedFile, ReportedExport, TriedScheme
from subdistill_hf.reporting.markdown import code, text


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
    what = "times" if all(file.peak_memory_bytes is None for file in export.files) else "times and memory"
    measured = (
        f"Measured with {text(export.runtime)} alone on {text(export.machine)}, on {text(export.images)}; {what} are "
        "of one image on one thread, the median with its quartiles."
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
        if export.left_to_device:
            takes += f" These steps, in this order: {text('; '.join(export.left_to_device))}."
    network = (
        f"Of the same pixels, the network alone gives the logits of torch within {export.network_difference:.1g}."
    )
    return [measured, takes, network, *_int8_facts(export)]


def script_of(export: ReportedExport) -> ExportFormat | None:
    """The format, which names the program beside the files; `None` where there is no program."""
    runs = export.preprocessing == "inside" or export.left_to_device
    return EXPORT_FORMATS.get(export.format) if runs else None


def _int8_facts(export: ReportedExport) -> list[str]:
    """The ways to 8 bits that were tried, and why none was kept."""
    if not export.tried:
        return []
    labelled = any(one.accuracy is not None for one in export.tried)
    kind = "accuracy" if labelled else "same class as torch"
    tried = ", ".join(_tried(one, labelled) for one in export.tried)
    found = [
        f"Ways to 8 bits, by {kind} on {export.chosen_on}: {tried}; ranges from {count(export.calibration_images)} "
        "images."
    ]
    if export.left_out is not None:
        return [*found, f"There is no file of 8 bits: {text(export.left_out)}."]
    scheme = next((file.scheme for file in export.files if file.scheme), None)
    known = EXPORT_FORMATS.get(export.format)
    way = known.int8_ways.get(scheme or "") if known else None
    return [*found, f"The one that was kept is {scheme}: {way or 'of another version'}."]


def _tried(scheme: TriedScheme, labelled: bool) -> str:
    """A way to 8 bits and its share."""
    if scheme.size_bytes is None:
        return f"{scheme.name} failed"
    share = scheme.accuracy if labelled else scheme.agreement
    return f"{scheme.name} {format_percent(share)} in {file_size(scheme.size_bytes)}"
