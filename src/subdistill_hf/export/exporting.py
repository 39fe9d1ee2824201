"""Write the files of a student for devices, and measure each of them in its runtime alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.export.device_files import DeviceFiles
from subdistill_hf.export.formats import load_format
from subdistill_hf.export.images import ExportImages
from subdistill_hf.export.int8 import Int8, best_int8
from subdistill_hf.export.outside import steps_for_device
from subdistill_hf.export.parity import agreement, check_preprocessing, logit_difference
from subdistill_hf.export.preprocessing import Step, in_words, steps_of
from subdistill_hf.export.runtime import Measured, logits_of_images, measure, quartiles
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.formatting import file_size, format_percent
from subdistill_hf.metrics import ROUNDING
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


def export_files(student: TorchStudent, images: ExportImages, options: ExportOptions, folder: Path) -> ReportedExport:
    """Write a student's files for devices to a folder, and measure them.

    Args:
        student: the student.
        images: to calibrate, choose and measure with.
        options: what to write.
        folder: where to; empty.

    Raises:
        ExportError: for what cannot be exported, or a file that its runtime cannot run.
    """
    known = EXPORT_FORMATS[options.format]
    inside = options.preprocessing == "inside"
    steps = steps_of(student.loaded.processor) if inside else None
    outside = () if inside else steps_for_device(student, images.test.images)
    files = load_format(options.format)(student, steps, outside)
    pixel_difference = None if steps is None else _pixel_difference(student, steps, files, images)
    network = files.float_network()
    pixels = student.pixels(images.test.images)
    logits = student.logits(pixels)
    expected = _Expected(logits, images.test.accuracy(logits))

    networks = {known.float_file: network}
    int8 = best_int8(student, network, images, files, known.int8_ways) if options.int8 else Int8()
    if int8.network is not None:
        networks[known.int8_file] = int8.network
    paths = {name: folder / name for name in networks}
    for name, path in paths.items():
        path.write_bytes(files.content(networks[name]))
    measured = measure(options.format, paths, images.test.images if inside else pixels, LATENCY_RUNS)
    schemes = {known.int8_file: int8.best}
    found = {name: _described(paths[name], schemes.get(name), one, images, expected) for name, one in measured.items()}
    network_difference = found[known.float_file].largest_difference
    if inside:
        network_difference = logit_difference(logits_of_images(files.runner(network), pixels), logits)
    left_out = None
    if options.int8:
        left_out = _left_out(int8, found.get(known.int8_file), found[known.float_file], expected, options.max_loss)
    if left_out is not None and known.int8_file in found:
        paths[known.int8_file].unlink()
        del found[known.int8_file], networks[known.int8_file]
    files.write_beside(folder, networks)
    return ReportedExport(
        format=options.format,
        runtime=files.runtime,
        machine=processor_name(),
        preprocessing="inside" if inside else "outside",
        pixel_difference=pixel_difference,
        network_difference=network_difference,
        images=images.described,
        image_count=len(images.test.images),
        torch_accuracy=expected.accuracy,
        calibration_images=len(images.calibration.images) if options.int8 else None,
        tried=int8.tried,
        chosen_on=images.chosen_on,
        left_out=left_out,
        left_to_device=tuple(in_words(step) for step in outside),
        files=tuple(found.values()),
    )


def _pixel_difference(
    student: TorchStudent, steps: tuple[Step, ...], files: DeviceFiles, images: ExportImages
) -> float:
    """The largest difference of a pixel that the files make, in levels of 255."""
    return check_preprocessing(student, steps, files.preprocessing_runner(), images.test.images).largest


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


def _left_out(
    int8: Int8, file: ExportedFile | None, plain: ExportedFile, expected: _Expected, most_points: float
) -> str | None:
    """Why there is no file of 8 bits; `None` where there is one."""
    if file is None:
        return "; ".join(f"{one.name} gave no file that runs ({one.failed})" for one in int8.tried)
    return _too_large(file, plain) or _too_costly(file, expected, most_points)


def _too_large(file: ExportedFile, plain: ExportedFile) -> str | None:
    """Why a file of 8 bits is of no use beside that in float32; `None` for one that is smaller."""
    if file.size_bytes < plain.size_bytes:
        return None
    return (
        f"it would have {file_size(file.size_bytes)}, and the file in float32 has {file_size(plain.size_bytes)}: what "
        "describes the 8 bits takes more than they save in so small a student"
    )


def _too_costly(file: ExportedFile, expected: _Expected, most_points: float) -> str | None:
    """Why a file of 8 bits is not kept; `None` for one that is."""
    if expected.accuracy is None or file.accuracy is None:
        lost, what = 1 - file.agreement, f"it answers as torch does for {format_percent(file.agreement)} of the images"
    else:
        lost = expected.accuracy - file.accuracy
        what = f"its accuracy is {format_percent(file.accuracy)} instead of {format_percent(expected.accuracy)}"
    if 100 * lost <= most_points + ROUNDING:
        return None
    return f"{what}, which is more than the {most_points:g} points that int8 may cost (--max_loss)"
