"""The two networks that are explained: the student of a folder, and a teacher that knows its classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState

from subdistill_hf.config.commands import ExplainOptions
from subdistill_hf.config.options import EMBEDDED_TEACHERS
from subdistill_hf.data.loading import SubtaskData, known_classes
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.images import GIVE_IMAGES, data_of_run
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.formatting import last_part
from subdistill_hf.models.heads import has_other, names_of
from subdistill_hf.models.loading import LoadedModel, load_student, load_teacher, weights_digest
from subdistill_hf.models.words import Words, phrases_of_names
from subdistill_hf.models.zero_shot_teachers import is_zero_shot, load_zero_shot
from subdistill_hf.pipeline.adaptation_training import ADAPTER_FOLDER
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.pipeline.task import matched
from subdistill_hf.reporting.report import REPORT_FILE, ReportedTeacher, RunReport


@dataclass(frozen=True)
class Pair:
    """A student and its teacher.

    Attributes:
        teacher: restricted to the student's classes.
        student: the student.
        teacher_name: a Hub id, or the last part of a folder's name.
        student_name: the last part of its folder's name.
        classes: of the student's outputs.
        report: of the run that trained it, if it is known.
        folder: of the student, if it lies in one.
        hint: what to do where the images of the run cannot be loaded.
    """

    teacher: ExplainedNetwork
    student: ExplainedNetwork
    teacher_name: str
    student_name: str
    classes: tuple[str, ...]
    report: RunReport | None = None
    folder: Path | None = None
    hint: str = GIVE_IMAGES

    @property
    def known_classes(self) -> tuple[str, ...]:
        """The classes without the answer "none of these", which some students have."""
        return known_classes(self.classes, self.teacher.classifier.other)

    @property
    def image_options(self) -> Mapping[str, Any]:
        """The options that the images of the run were loaded with; empty where they are not known."""
        return {} if self.report is None else self.report.image_options

    @cached_property
    def data(self) -> SubtaskData:
        """The images of the run, loaded when they are first asked for; see `images.data_of_run` for errors."""
        return data_of_run(self.image_options, self.known_classes, self.hint)


def load_pair(folder: Path, options: ExplainOptions) -> Pair:
    """Load a student, and the teacher of the run or another one.

    Args:
        folder: of the student.
        options: of them the teacher.

    Raises:
        SubDistillError: for a folder that holds no student, a teacher that cannot be loaded or lacks the classes.
    """
    student = load_student(folder)
    report = RunReport.load(folder) if (folder / REPORT_FILE).is_file() else None
    config: Any = student.model.config
    classes, other = tuple(names_of(config)), has_other(config)
    teacher = _load_teacher(folder, report, options, known_classes(classes, other))
    for loaded in (teacher, student):
        loaded.model.to(PartialState().device)
    taught = None if report is None else report.teacher
    of_base = taught is not None and taught.adaptation is not None and not taught.classes  # it lacks the classes
    known_digest = None if taught is None or of_base else taught.digest
    if known_digest not in (None, weights_digest(teacher.model)):
        print(
            f"note: the teacher {teacher.name} is not the one that taught this student: its weights differ",
            file=sys.stderr,
        )
    pair = pair_of(teacher, student, classes, other)
    return replace(pair, report=report, folder=folder, hint=_hint_without_images(options))


def _hint_without_images(options: ExplainOptions) -> str:
    """What to do where the images of the run cannot be loaded: subspaces are shown on no others."""
    if not options.subspaces:
        return GIVE_IMAGES
    return "leave out --subspaces, which needs them" + ("" if options.images else f", and {GIVE_IMAGES}")


def pair_of(teacher: LoadedModel, student: LoadedModel, classes: tuple[str, ...], other: bool) -> Pair:
    """A pair of loaded networks.

    Args:
        teacher: the teacher.
        student: the student.
        classes: of the student's outputs.
        other: whether the last of them is the answer "none of these".

    Raises:
        SubtaskError: when the teacher lacks classes.
    """
    known = known_classes(classes, other)
    subtask = matched(Subtask(known, tuple(range(len(known)))), teacher, known)
    return Pair(
        ExplainedNetwork("teacher", Classifier(teacher.model, teacher.processor, subtask.teacher_ids, other=other)),
        ExplainedNetwork("student", Classifier(student.model, student.processor)),
        teacher.name,
        student.name,
        classes,
    )


def _load_teacher(
    folder: Path, report: RunReport | None, options: ExplainOptions, classes: tuple[str, ...]
) -> LoadedModel:
    own = None if report is None else report.teacher
    name = options.teacher or _name_of(folder, own)
    if name is None:
        raise ExplainError(f"{folder} does not say which teacher taught the student: give --teacher")
    if not is_zero_shot(name, options.trust_remote_code):
        return load_teacher(name, options.trust_remote_code)
    words = Words(phrases_of_names(classes))
    if own is not None and own.name in (name, last_part(name)):  # of a folder, a report has the last part
        words = Words(own.classes or words.classes, own.prompts, own.other_prompts, classes)
    return load_zero_shot(name, words, options.trust_remote_code)


def _name_of(folder: Path, teacher: ReportedTeacher | None) -> str | None:
    """The name under which the teacher of a run can be loaded again: of another folder, a report has no path."""
    if teacher is None:
        return None
    if teacher.adaptation is not None:
        adapted = folder / ADAPTER_FOLDER
        return str(adapted) if adapted.is_dir() else None
    return teacher.hub_id or (teacher.name if teacher.name in EMBEDDED_TEACHERS else None)
