"""The folder that a run leaves: the student, its processor, an example image, plots, the report and the card."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image

from subdistill_hf.config.extras import has_extra_or_note
from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.data.images import as_rgb
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.files import CARD_FILE, SHEET_FILE
from subdistill_hf.hub.snippet import EXAMPLE_FILE, local_code
from subdistill_hf.models.adapters import ADAPTER_FILE, save_adapter
from subdistill_hf.pipeline.contact_sheet import contact_sheet
from subdistill_hf.reporting.model_card import render_card
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.report import RunReport, Usage


def write_student(
    folder: Path,
    model: Any,
    processor: Any,
    example: Image.Image,
    training_images: ViewDataset,
    report: RunReport,
) -> RunReport:
    """Write the folder of a trained student: the figures first, then what may fail, and the plots at last.

    Args:
        folder: where to; files of an earlier student are replaced.
        model: the trained student, with `save_pretrained`; of a `PeftModel` the adapter is written.
        processor: its image processor.
        example: an image of the test split, which the card's snippet classifies.
        training_images: the card shows some of them, see `contact_sheet`.
        report: see `report.build_report`.

    Returns:
        The report with what is known once the student is written: `usage`, and the student's `size_bytes`. It is
        in the folder without `usage`, by which a whole folder is known: save it when all else is written.

    Raises:
        SubDistillError: when the saved student does not load in a fresh process.
    """
    report.save(folder)  # whatever happens to the rest, the figures are kept
    adapter = isinstance(model, PeftModel)
    try:
        save_model(model, processor, folder)
    except BaseException:
        _remove_weights(folder)  # which are of another run, or were cut short
        raise
    size = (folder / (ADAPTER_FILE if adapter else "model.safetensors")).stat().st_size
    report = replace(report, student=replace(report.student, size_bytes=size))
    report.save(folder)
    as_rgb(example).save(folder / EXAMPLE_FILE)
    report = replace(report, usage=_run_usage(folder, adapter, report.threshold is not None))
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        save_card(render_card(report), folder)
    for note in noted:
        print(f"note: {note.message}", file=sys.stderr)
    if drawn := _draw(report, training_images, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said above
            save_card(render_card(report, plots=drawn), folder)
    return report


def save_card(card: ModelCard, folder: Path) -> None:
    """Write the card; one that is there stays as it is if the writing fails."""
    with written_whole(folder / CARD_FILE) as part:
        card.save(part)


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a model, or a `PeftModel`'s adapter, and its processor, and no weights of an earlier one beside them."""
    _remove_weights(folder)
    if isinstance(model, PeftModel):
        save_adapter(model, folder)
        settings: Any = model.config
        settings.save_pretrained(folder)  # which name the classes
    else:
        model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _remove_weights(folder: Path) -> None:
    for stale in [*folder.glob("model*.safetensors*"), *folder.glob("adapter_*")]:
        stale.unlink()


def _draw(report: RunReport, training_images: ViewDataset, folder: Path) -> list[Path]:
    """Draw what can be drawn.

    Returns:
        The files.
    """
    drawn: list[Path] = []
    if has_extra_or_note("plots", "the card has no plots"):
        with plot_is_optional("the plots"):
            from subdistill_hf.reporting.plots import plot_all

            drawn += plot_all(report, folder)
    with plot_is_optional(SHEET_FILE):
        contact_sheet(training_images, report.classes).save(folder / SHEET_FILE)
        drawn.append(folder / SHEET_FILE)
    return drawn


def _run_usage(folder: Path, adapter: bool, threshold: bool) -> Usage:
    """Run the card's snippet, so that what the card shows is what happened."""
    code = local_code(adapter, threshold)
    return Usage(code=code, output=_output_in_a_fresh_process(code, folder))


def _output_in_a_fresh_process(code: str, folder: Path) -> str:
    """What a program prints that has the folder as its own, and nothing of this process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:backslashreplace"},  # names of classes may hold any character
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise SubDistillError(f"the saved student does not load in a fresh process:\n{done.stderr}")
    return done.stdout.strip()
