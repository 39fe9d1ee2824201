"""The folder of a run: whether it may be used, and what in it is resumed or replaced."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import RUNS_FOLDER, holds_files, how_to_go_on, refuse_other_files
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.files import EXPORT_FILE, EXPORT_FOLDERS
from subdistill_hf.reporting.explained import EXPLANATIONS_FILE, EXPLANATIONS_FOLDER
from subdistill_hf.reporting.page.page import PAGE_FILE
from subdistill_hf.reporting.report import REPORT_FILE
from subdistill_hf.reporting.reported_answers import THUMBNAILS_FOLDER
from subdistill_hf.training.checkpoints import last_complete_checkpoint

INPUTS: Final = ("teacher", "student", "dataset", "unlabelled", "unknown_images")
"""The options that may name a folder which a run reads."""


def check_run_folder(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse to mix two runs in one folder, or a run with other files, or to write over what the run reads.

    Raises:
        SubDistillError: for a folder that may not be used, or a checkpoint that is not in it.
    """
    folder = Path(config.output_dir)
    resume = resumed_from(config)
    if not holds_files(folder):
        return
    _check_inputs(options, folder)
    refuse_other_files(folder, (REPORT_FILE, RUNS_FOLDER))
    if not (options.overwrite or resume):
        raise SubDistillError(
            f"{config.output_dir} already holds another run: --resume_from_checkpoint true to continue it, "
            "--overwrite to replace it, or another --output_dir"
        )
    finished = (folder / REPORT_FILE).is_file()
    if resume and finished and not checkpoint_of(resume, folder / RUNS_FOLDER / config.method):
        raise SubDistillError(
            f"{config.output_dir} holds a finished student and no checkpoint of method {config.method}: resume with "
            "the method that it was trained by, or use --overwrite, or another --output_dir"
        )


def _check_inputs(options: TaskOptions, folder: Path) -> None:
    """Refuse a folder that is, or holds, something that the run reads, and would replace."""
    for name in INPUTS:
        given = getattr(options, name)
        if given is not None and Path(given).exists() and Path(given).resolve().is_relative_to(folder.resolve()):
            raise SubDistillError(
                f"{name}={given} lies in the output folder {folder}, where the run would write over it: give another "
                "--output_dir"
            )


def resumed_from(config: SubDistillConfig) -> bool | Path:
    """The request of `--resume_from_checkpoint`: no, yes, or a checkpoint of the run that was named.

    Raises:
        SubDistillError: for a folder that is none of the run's.
    """
    text = str(config.resume_from_checkpoint or "false")
    if text.lower() in ("true", "1", "yes", "false", "0", "no"):
        return text.lower() in ("true", "1", "yes")
    runs = Path(config.output_dir, RUNS_FOLDER)
    if not (Path(text).is_dir() and Path(text).resolve().is_relative_to(runs.resolve())):
        raise SubDistillError(
            f"resume_from_checkpoint={text!r}: expected true, for the last checkpoint, or a checkpoint's folder in "
            f"{runs}"
        )
    return Path(text)


def checkpoint_of(resume: bool | Path, folder: Path) -> str | None:
    """The checkpoint that a method resumes from, if any.

    Args:
        resume: see `resumed_from`.
        folder: of the method's checkpoints.

    Returns:
        The checkpoint that was named, if it is of this method, or else the last complete one.
    """
    if isinstance(resume, Path) and resume.resolve().is_relative_to(folder.resolve()):
        return str(resume)
    return last_complete_checkpoint(folder) if resume else None


def kept_in(folder: Path, method: str) -> str:
    """Say what a run that was cut short has left in its folder, and how to resume it.

    Args:
        folder: the run's.
        method: whose student the folder is for.
    """
    checkpoint = last_complete_checkpoint(folder / RUNS_FOLDER / method)
    kept = []
    if (folder / REPORT_FILE).is_file():  # after which a student may have been written
        kept.append(f"all figures in {folder / REPORT_FILE}")
        kept += [f"the student in {folder}"] if any(folder.glob("*model.safetensors")) else []
    if checkpoint is not None:
        kept.append(f"the training up to {checkpoint}")
    return f"Kept: {' and '.join(kept) or 'nothing'}. To go on: {how_to_go_on(folder)}"


def remove_old_run(folder: Path) -> None:
    """Make room for a new run; called when nothing can refuse it any more."""
    shutil.rmtree(folder / RUNS_FOLDER, ignore_errors=True)
    (folder / REPORT_FILE).unlink(missing_ok=True)
    remove_derived_files(folder)
    (folder / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)  # by which the folder is known as a run's


def remove_derived_files(folder: Path) -> None:
    """Remove what was made of an earlier student: page, pictures of errors, explanations and files for devices."""
    (folder / PAGE_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / THUMBNAILS_FOLDER, ignore_errors=True)
    if (folder / EXPLANATIONS_FOLDER / EXPLANATIONS_FILE).is_file():
        shutil.rmtree(folder / EXPLANATIONS_FOLDER, ignore_errors=True)
    for place in (folder / name for name in EXPORT_FOLDERS):
        if (place / EXPORT_FILE).is_file():
            shutil.rmtree(place, ignore_errors=True)


def remove_empty_folders(folder: Path) -> None:
    """Remove the folders that trainers made for a run that was refused."""
    for path in sorted([folder, *folder.rglob("*")], reverse=True):
        with contextlib.suppress(OSError):  # it holds something, or is a file
            path.rmdir()
