"""One expert of a family: distilled by the way of any run, with a teacher that this process loads once."""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from subdistill_hf.config.defaults import RUN_DEFAULTS, saved_when_evaluated
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import RUNS_FOLDER
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.validation import refused_training_arguments
from subdistill_hf.errors import SubDistillError, comes_of_an_interruption
from subdistill_hf.family.subtasks import Expert
from subdistill_hf.models.loading import LoadedModel, load_teacher
from subdistill_hf.models.zero_shot_teachers import is_zero_shot
from subdistill_hf.pipeline.run import distill
from subdistill_hf.reporting.report import REPORT_FILE, ReportError, RunReport
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.checkpoints import last_complete_checkpoint

LOGS_FOLDER: Final = "logs"
DEFAULTS: Final = {"disable_tqdm": True}
"""Training arguments of an expert where the user gives none; others are those of a run."""


@dataclass(frozen=True)
class ExpertRun:
    """The run of one expert.

    Attributes:
        expert: its name and classes.
        folder: of the family.
        task: options of what to distil, without classes.
        training: training arguments, without a folder.
    """

    expert: Expert
    folder: str
    task: Mapping[str, Any]
    training: Mapping[str, Any]

    def __str__(self) -> str:
        return self.expert.name

    @property
    def place(self) -> Path:
        """The expert's folder."""
        return Path(self.folder, self.expert.name)

    @property
    def log(self) -> Path:
        """The file that gets what the run prints."""
        return Path(self.folder, LOGS_FOLDER, f"{self.expert.name}.txt")

    @property
    def options(self) -> TaskOptions:
        """The options of the task."""
        return TaskOptions(**{**self.task, "classes": list(self.expert.classes)})

    @property
    def config(self) -> SubDistillConfig:
        """The training arguments, those of `subdistill distill` where none are given.

        Raises:
            SubDistillError: for arguments that transformers does not take.
        """
        given = {**DEFAULTS, **self.training, "output_dir": str(self.place)}
        with refused_training_arguments():
            return SubDistillConfig(**RUN_DEFAULTS | saved_when_evaluated(given) | given)

    @property
    def command(self) -> str:
        """The command that distils this expert alone."""
        given = {**self.task, "classes": self.expert.classes, **self.training, "output_dir": str(self.place)}
        words = ["subdistill", "distill"]
        for name, value in given.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
        return shlex.join(words)


@dataclass(frozen=True)
class Outcome:
    """The end of an expert's run.

    Attributes:
        seconds: that it took.
        error: why there is no expert; `None` where there is one.
    """

    seconds: float
    error: str | None = None


def finished_report(run: ExpertRun) -> RunReport | None:
    """The report of an expert that is there, whole and of these classes; `None` where it is not."""
    try:
        report = RunReport.load(run.place)
    except ReportError:
        return None
    whole = report.usage is not None  # which is written last
    return report if whole and report.subtask == run.expert.classes else None


def train_expert(run: ExpertRun) -> Outcome:
    """Distil an expert, from its last checkpoint if there is one; whatever fails is told, and stops no other expert.

    What the run prints is added to its log, beside the folders of the experts.
    """
    start = time.perf_counter()
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a", encoding="utf-8") as log, redirect_stdout(log):
        try:
            options, config = run.options, run.config
            resume = _resumes(run, config.method)
            config.resume_from_checkpoint = "true" if resume else None
            options = replace(options, overwrite=not resume)
            shared = None if is_zero_shot(options.teacher, options.trust_remote_code) else _teacher_of(options)
            distill(options, config, run.command, shared)
        except SubDistillError as error:
            if comes_of_an_interruption(error):
                raise
            return Outcome(time.perf_counter() - start, str(error))
        except Exception as error:
            if comes_of_an_interruption(error):
                raise
            traceback.print_exc(file=sys.stderr)  # a mistake of ours, or a machine's
            return Outcome(time.perf_counter() - start, f"{type(error).__name__}: {error}")
    return Outcome(time.perf_counter() - start)


def _resumes(run: ExpertRun, method: str) -> bool:
    """Whether a run that was cut short left checkpoints that it can be resumed from."""
    runs = run.place / RUNS_FOLDER
    if (run.place / REPORT_FILE).is_file():  # the training was over
        return last_complete_checkpoint(runs / method) is not None
    return any(last_complete_checkpoint(folder) is not None for folder in runs.glob("*"))


def _teacher_of(options: TaskOptions) -> LoadedModel:
    return _loaded_teacher(options.teacher, options.trust_remote_code)


@lru_cache(maxsize=1)
def _loaded_teacher(name: str, trust_remote_code: bool) -> LoadedModel:
    """The teacher with the digest of its weights, for all experts that this process distils."""
    loaded = load_teacher(name, trust_remote_code)
    return replace(loaded, digest=Teacher(loaded.model).digest)
