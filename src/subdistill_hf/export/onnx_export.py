"""Write the ONNX files of a student and measure each of them, in onnxruntime alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnxruntime

from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.export.device_folder import write_browser_folder, write_script
from subdistill_hf.export.graph import as_bytes
from subdistill_hf.export.images import ExportImages
from subdistill_hf.export.onnx_files import FLOAT_FILE, INT8_FILE, Graphs, Int8, best_int8, float_network
from subdistill_hf.export.parity import agreement, check_preprocessing, logit_difference
from subdistill_hf.export.preprocessing import steps_of
from subdistill_hf.export.runtime import Measured, logits_of_images, measure, quartiles, session
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.formatting import format_percent
from subdistill_hf.pipeline.evaluation import processor_name
from subdistill_hf.reporting.exported import ExportedFile, Latency, ReportedExport, TriedScheme

LATENCY_RUNS: Final = 50


@dataclass(frozen=True)
class _Expected:
    """The student's answers in torch.

    Attributes:
        logits: to the test images, `(N, C)`.
        accuracy: on them; unknown without labels.
    """

    logits: npt.NDArray[Any]
    accuracy: float | None


def export_onnx(student: TorchStudent, images: ExportImages, options: ExportOptions, folder: Path) -> ReportedExport:
    """Write a student's ONNX files to a folder, and measure them.

    Args:
        student: the student.
        images: to calibrate, choose and measure with.
        options: what to write.
        folder: where to; empty.

    Raises:
        ExportError: for what cannot be exported, or a file that onnxruntime cannot run.
    """
    inside = options.preprocessing == "inside"
    steps = steps_of(student.loaded.processor) if inside else None
    pixel_difference = None
    if steps is not None:
        pixel_difference = check_preprocessing(student, steps, images.test.images).largest
    network = float_network(student)
    graphs = Graphs(student, steps)
    pixels = student.pixels(images.test.images)
    logits = student.logits(pixels)
    expected = _Expected(logits, images.test.accuracy(logits))
    alone = logits_of_images(session(as_bytes(network)), pixels)

    networks, int8, left_out = {FLOAT_FILE: network}, Int8(None, None, ()), None
    if options.int8:
        int8 = best_int8(student, network, images, graphs)
        if int8.network is not None:
            networks[INT8_FILE] = int8.network
    for name, one in networks.items():
        (folder / name).write_bytes(graphs.file(one))
    given = images.test.images if inside else pixels
    measured = measure({name: folder / name for name in networks}, given, LATENCY_RUNS)
    files = {
        name: _described(folder / name, int8.best if name == INT8_FILE else None, measured[name], images, expected)
        for name in networks
    }
    if options.int8:
        left_out = _left_out(int8, files.get(INT8_FILE), expected, options.max_loss)
        if left_out is not None and INT8_FILE in files:
            (folder / INT8_FILE).unlink()
            del files[INT8_FILE], networks[INT8_FILE]
    write_script(folder, student, inside)
    write_browser_folder(folder, student, steps, {name: graphs.browser_file(one) for name, one in networks.items()})
    return ReportedExport(
        format="onnx",
        runtime=f"onnxruntime {onnxruntime.__version__}",
        machine=processor_name(),
        preprocessing=options.preprocessing,
        pixel_difference=pixel_difference,
        network_difference=logit_difference(alone, logits),
        images=images.described,
        image_count=len(images.test.images),
        torch_accuracy=expected.accuracy,
        calibration_images=len(images.calibration.images) if options.int8 else None,
        tried=int8.tried,
        chosen_on=images.chosen_on,
        left_out=left_out,
        files=tuple(files.values()),
    )


def _described(
    path: Path, chosen: TriedScheme | None, measured: Measured, images: ExportImages, expected: _Expected
) -> ExportedFile:
    """What is known of a file."""
    low, median, high = quartiles(measured.milliseconds)
    return ExportedFile(
        name=path.name,
        precision="float32" if chosen is None else "int8",
        scheme=None if chosen is None else chosen.name,
        size_bytes=path.stat().st_size,
        accuracy=images.test.accuracy(measured.logits),
        agreement=agreement(measured.logits, expected.logits),
        largest_difference=logit_difference(measured.logits, expected.logits),
        latency_ms=Latency(median=median, low=low, high=high, runs=len(measured.milliseconds)),
        peak_memory_bytes=measured.peak_memory,
    )


def _left_out(int8: Int8, file: ExportedFile | None, expected: _Expected, most_points: float) -> str | None:
    """Why there is no file of 8 bits; `None` where there is one."""
    if file is None:
        return "; ".join(f"{one.name} gave no file that runs ({one.failed})" for one in int8.tried)
    return _too_costly(file, expected, most_points)


def _too_costly(file: ExportedFile, expected: _Expected, most_points: float) -> str | None:
    """Why a file of 8 bits is not kept; `None` for one that is."""
    if expected.accuracy is None or file.accuracy is None:
        lost, what = 1 - file.agreement, f"it answers as torch does for {format_percent(file.agreement)} of the images"
    else:
        lost = expected.accuracy - file.accuracy
        what = f"its accuracy is {format_percent(file.accuracy)} instead of {format_percent(expected.accuracy)}"
    if 100 * lost <= most_points:
        return None
    return f"{what}, which is more than the {most_points:g} points that int8 may cost (--max_loss)"
