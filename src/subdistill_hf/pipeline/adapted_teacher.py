"""`subdistill adapt`: fit a teacher to classes that it lacks, and leave it as a plain model for later runs."""

from __future__ import annotations

import datetime
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

from subdistill_hf.acceleration.threads import restored_threads
from subdistill_hf.config.commands import AdaptOptions
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import RUNS_FOLDER, held_for_this_run, how_to_go_on, telling_full_disk
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import SubDistillError
from subdistill_hf.formatting import accuracy_with_error
from subdistill_hf.hub.files import CARD_FILE
from subdistill_hf.models.loading import count_parameters, input_size_of, weights_digest
from subdistill_hf.models.zero_shot_teachers import is_zero_shot
from subdistill_hf.pipeline.adaptation import BATCH, adapt, announce_adaptation, announce_fitted, plan_adaptation
from subdistill_hf.pipeline.adaptation_training import ADAPTER_FOLDER
from subdistill_hf.pipeline.evaluation import Classifier, predict, score
from subdistill_hf.pipeline.quiet import hidden_weight_bars
from subdistill_hf.pipeline.report import reported_dataset, reported_teacher, versions
from subdistill_hf.pipeline.run_folder import check_run_folder, remove_empty_folders, remove_old_run, resumed_from
from subdistill_hf.pipeline.student_folder import save_card, save_model
from subdistill_hf.pipeline.task import Task, announce, load_task, take_threads
from subdistill_hf.pipeline.validation import validate_options_of_teacher
from subdistill_hf.reporting.report import TEACHER, MethodResult
from subdistill_hf.reporting.teacher_card import AdaptedTeacher, render_teacher_card


@restored_threads()
@hidden_weight_bars()
def adapt_teacher(
    options: AdaptOptions, config: SubDistillConfig, command: str | None = None
) -> AdaptedTeacher | None:
    """Fit a teacher to classes that it lacks, and leave a folder that `--teacher` and plain transformers take.

    The folder holds the adapted model, its processor, its card, `adapted_teacher.json` with every figure, and what was
    trained alone as a PEFT adapter, in `teacher-adapter/`.

    Args:
        options: teacher, dataset and classes, and how it is adapted.
        config: training arguments; `config.output_dir` is the folder.
        command: how to run this again, for the card.

    Returns:
        What was measured; `None` in the other processes of several.

    Raises:
        SubDistillError: for options that do not fit together, or a teacher that knows the classes, before anything is
            trained or written; when another run is writing to the folder; or when the disk is full.
    """
    known = {field.name for field in fields(TaskOptions)}
    given = {name: value for name, value in vars(options).items() if name in known}
    of_task = TaskOptions(**given, mix=0.0, cutmix=0.0)  # a teacher learns from labels, which mixed images lack
    validate_options_of_teacher(of_task, config)
    folder, main = Path(config.output_dir), config.process_index == 0
    with held_for_this_run(folder if main else None):
        check_run_folder(of_task, config)
        _refuse_words(options)
        with telling_full_disk(folder, lambda: f"To go on: {how_to_go_on(folder)}"):
            task = _adapted(load_task(of_task, config))
            return _leave_teacher(task, command) if main else None


def _refuse_words(options: AdaptOptions) -> None:
    """Refuse a teacher that takes words: fitted to some, it is no model that transformers has a class for.

    Raises:
        SubDistillError: with what to do instead.
    """
    if is_zero_shot(options.teacher, options.trust_remote_code):
        raise SubDistillError(
            f"the teacher {options.teacher!r} takes words: fitted to some, it is none of the plain models that this "
            f"command leaves. Give --adapt_teacher to `subdistill distill`, whose folder {ADAPTER_FOLDER} is a "
            "teacher for other runs"
        )


def _adapted(task: Task) -> Task:
    """The task with its adapted teacher; what cannot be is refused first."""
    main, runs, resume = task.config.process_index == 0, task.folder / RUNS_FOLDER, bool(resumed_from(task.config))
    try:
        if not task.to_adapt:
            raise SubDistillError(
                f"the teacher {task.teacher.name!r} knows these classes already: it can teach them as it is"
            )
        adaptation = plan_adaptation(task, runs, resume)
    except SubDistillError:
        remove_empty_folders(task.folder)
        raise
    if main:
        announce(_without_unused_choices(adaptation.task))
        print(announce_adaptation(adaptation), end="", flush=True)
    threads = take_threads(task, Classifier(adaptation.task.teacher.model, task.teacher.processor))
    if main and threads is not None:
        print(threads)
    if main and not resume:
        remove_old_run(task.folder)
    return adapt(adaptation, runs)


def _is_augmented(task: Task) -> bool:
    """Whether the teacher learns from augmented images."""
    return task.options.adapt_teacher != "head" or task.options.adapt_views > 0


def _without_unused_choices(task: Task) -> Task:
    """The task without what was chosen about an augmentation that is not used."""
    resolved = task.resolved
    return task if _is_augmented(task) else replace(task, resolved=replace(resolved, choices=()))


def _leave_teacher(task: Task, command: str | None) -> AdaptedTeacher:
    """Measure an adapted teacher, and write its folder."""
    print(announce_fitted(task), flush=True)
    teacher, subtask = task.teacher, task.data.subtask
    classifier = Classifier(teacher.model.to(task.config.device), teacher.processor, subtask.teacher_ids)
    logits = predict(classifier, task.test, BATCH, task.config.dataloader_num_workers)
    scores = score(logits, task.test, subtask.names, None)
    model = teacher.model.cpu()
    report = AdaptedTeacher(
        created=datetime.date.today().isoformat(),
        dataset=reported_dataset(task) if _is_augmented(task) else replace(reported_dataset(task), augmentation=None),
        classes=tuple(subtask.names),
        teacher=reported_teacher(task, weights_digest(model)),
        image_size=input_size_of(teacher.processor),
        result=MethodResult(method=TEACHER, **vars(scores), parameters=count_parameters(model)),
        versions=versions(),
        command=command,
    )
    report.save(task.folder)
    save_model(model, teacher.processor, task.folder)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        save_card(render_teacher_card(report), task.folder)
    for note in noted:
        print(f"note: {note.message}", file=sys.stderr)
    measured = accuracy_with_error(scores.accuracy, len(task.test))
    print(f"         {measured} of {len(task.test)} test images")
    print(f"\nThe adapted teacher is in {task.folder}, for --teacher; its card is {task.folder / CARD_FILE}")
    return report
