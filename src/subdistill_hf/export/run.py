"""Export a student: make the files, measure them, and leave what was measured beside the student."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.config.output_folder import check_output_folder, held_for_this_run, holds_files
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.formats import load_format, require_format
from subdistill_hf.export.summary import summary
from subdistill_hf.hub.files import EXPORT_FILE, weights_identity
from subdistill_hf.models.loading import load_student
from subdistill_hf.reporting.exported import ReportedExport
from subdistill_hf.reporting.page.page import renew_page
from subdistill_hf.reporting.report import REPORT_FILE, RunReport

if TYPE_CHECKING:
    from subdistill_hf.export.images import ExportImages
    from subdistill_hf.export.student import TorchStudent


def export(student: str | Path, options: ExportOptions) -> None:
    """Export the student of a folder, and print what was measured.

    Args:
        student: see `export_student`.
        options: what to write.
    """
    print(summary(export_student(student, options), student))


def export_student(student: str | Path, options: ExportOptions | None = None) -> ReportedExport:
    """Export the student of a folder, measure the files in their runtime alone, and describe them on the card.

    The files lie in a folder beside the student that is called as their format, `onnx` or `executorch`, and replaces
    one of an earlier export. They are the same, byte for byte, for the same student, options, images and versions of
    packages.

    Args:
        student: a folder that `distill` or a trainer wrote.
        options: what to write; by default ONNX in float32 that does its own preprocessing.

    Returns:
        What was measured, as it is written to `export.json` in this folder, to the report of the run, and on the card.

    Raises:
        SubDistillError: for a folder that holds no student, an operator or an image processor that cannot be
            exported, images of other classes, or packages that are not installed.
    """
    options = ExportOptions() if options is None else options
    require_format(options.format)
    folder = Path(student)
    loaded = load_student(folder)
    target = folder / options.format
    _check_target(target)
    with held_for_this_run(folder):
        from subdistill_hf.export.exporting import export_files
        from subdistill_hf.export.student import TorchStudent

        load_format(options.format)
        report = RunReport.load(folder) if (folder / REPORT_FILE).is_file() else None
        exported = TorchStudent(loaded)
        images = _images(folder, report, options, exported)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
            made = Path(name, options.format)
            made.mkdir()
            result = replace(export_files(exported, images, options, made), weights=weights_identity(folder))
            _write_result(made, result)
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)
        if report is not None:
            _describe(folder, report, result)
    return result


def _check_target(target: Path) -> None:
    """Refuse a folder of somebody else's files."""
    check_output_folder(target.parent, "student")
    if holds_files(target, hidden=True) and not (target / EXPORT_FILE).is_file():
        raise ExportError(
            f"{target} already holds other files: move them to another place, for this is where the export goes"
        )


def _images(folder: Path, report: RunReport | None, options: ExportOptions, student: TorchStudent) -> ExportImages:
    """The images that the user gave, or those of the run, or made-up ones."""
    from subdistill_hf.export.images import calibration_images, images_of_run, made_up_images

    if options.calibration is not None:
        return calibration_images(options.calibration, student.known_classes)
    if report is not None and report.image_options:
        return images_of_run(report.image_options, student.known_classes)
    if options.int8:
        raise ExportError(
            f"int8 needs images, and {folder} does not say which the student was trained with: give --calibration, a "
            "dataset with its classes or a folder of such images"
        )
    return made_up_images(folder)


def _write_result(folder: Path, result: ReportedExport) -> None:
    from subdistill_hf.export.device_folder import write_json

    values: Mapping[str, Any] = asdict(result)
    write_json(folder / EXPORT_FILE, values)


def _describe(folder: Path, report: RunReport, result: ReportedExport) -> None:
    """Put what was measured into the report of the run, the plots, the card and the page."""
    from subdistill_hf.reporting.card_section import describe_on_card

    others = tuple(one for one in report.exports if one.format != result.format)
    report = replace(report, exports=(*others, result))
    report.save(folder)
    describe_on_card(folder, report)
    renew_page(folder)
