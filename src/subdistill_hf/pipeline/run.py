"""One run from options to a student folder: load, train, evaluate, save, describe."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import set_seed
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging as transformers_logging

from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO, TaskOptions
from subdistill_hf.config.output_folder import check_output_folder
from subdistill_hf.config.training import SubDistillConfig, check_training_arguments
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import PushError, SubDistillError
from subdistill_hf.hub.publish import Destination, open_repository, repository_name, sign_in, upload
from subdistill_hf.models.adapters import merged
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.models.students import build_student, check_student_lora, described_lora, is_new, with_lora
from subdistill_hf.pipeline.adaptation import (
    ADAPTER_FOLDER,
    Adaptation,
    adapt,
    announce_adaptation,
    announce_fitted,
    plan_adaptation,
)
from subdistill_hf.pipeline.contact_sheet import contact_sheet
from subdistill_hf.pipeline.energy import Energy, measured_energy
from subdistill_hf.pipeline.learning_rates import Start, suited_learning_rate
from subdistill_hf.pipeline.report import TrainedStudent, build_report, results_table
from subdistill_hf.pipeline.student_folder import write_student
from subdistill_hf.pipeline.task import Task, announce, load_task
from subdistill_hf.reporting.report import REPORT_FILE, RunReport
from subdistill_hf.training.callbacks import show_progress
from subdistill_hf.training.checkpoints import last_complete_checkpoint
from subdistill_hf.training.trainer import SubDistillTrainer

RUNS_FOLDER = "runs"


@dataclass
class _Run:
    """The training of one method."""

    trainer: SubDistillTrainer
    student: LoadedModel
    checkpoint: str | None
    energy: Energy = field(default_factory=Energy)

    def trained(self, task: Task) -> TrainedStudent:
        """What the report needs of it, after the training."""
        trainer = self.trainer
        return TrainedStudent(
            merged(copy.deepcopy(trainer.model)) if isinstance(trainer.model, PeftModel) else trainer.model,
            self.student,
            trainer.pairs,
            trainer.subspaces,
            trainer.state.log_history,
            trainer.initial_learning_rate,
            trainer.rotation,
            resumed=self.checkpoint is not None,
            energy=self.energy,
            lora=described_lora(trainer.model, task.options) if isinstance(trainer.model, PeftModel) else None,
        )


def distill(options: TaskOptions, config: SubDistillConfig, command: str | None = None) -> RunReport | None:
    """Distil a student as the options say, and leave a folder that plain transformers loads.

    The folder holds the student, its processor, a model card, plots, `report.json` with every figure, and under
    `runs/` the checkpoints of each method.

    Args:
        options: teacher, student, dataset and classes.
        config: training arguments; `config.output_dir` is the folder.
        command: how to run this again, for the card.

    Returns:
        The report, as it is written to `report.json`; `None` in the other processes of several.

    Raises:
        SubDistillError: for options that do not fit together, before anything is trained or written.
        PushError: when the Hub can not be written, before anything is trained; or when the push fails at the end,
            which leaves the folder whole.
    """
    transformers_logging.disable_progress_bar()  # its bars for reading and writing weights would break up ours
    methods = _methods(options, config)
    shown = next((method for method in reversed(methods) if METHODS[method].layer_weight is not None), None)
    check_student_lora(options)
    check_training_arguments(config)
    _check_folder(options, config)
    main = config.process_index == 0
    destination = _destination(options, config) if main and config.push_to_hub else None
    task = load_task(options, config)
    try:
        adaptation = _planned_adaptation(task)
        task = task if adaptation is None else adaptation.task
        if main:
            announce(task)
            print("" if adaptation is None else announce_adaptation(adaptation), end="")
        runs = {method: _build(task, method, announce=main and method == shown) for method in methods}
        if adaptation is None:
            _fit_subspaces(runs)
        if destination is not None:
            open_repository(destination)
    except SubDistillError:
        _remove_empty_folders(task.folder)
        raise
    if main and not _resume_option(config):
        _remove_old_run(task.folder)
    if adaptation is not None:
        task = adapt(adaptation, task.folder / RUNS_FOLDER)
        if main:
            print(announce_fitted(task))
        runs = {method: _build(task, method, announce=False) for method in methods}
        _fit_subspaces(runs)
    _push_checkpoints(config, destination, runs[config.method].trainer)
    for run in runs.values():
        set_seed(config.seed)
        with measured_energy(main) as run.energy:
            run.trainer.train(resume_from_checkpoint=run.checkpoint)
    if not main:
        return None
    trained = {method: run.trained(task) for method, run in runs.items()}
    report = build_report(task, trained, command)
    published = runs[config.method]
    model: Any = trained[config.method].model
    if isinstance(published.trainer.model, PeftModel):
        model = published.trainer.model if options.student_lora_save == "adapter" else model
    example = task.data.test[0][task.data.columns.image]
    sheet = contact_sheet(task.plain("train"), task.data.subtask.names)
    report = write_student(task.folder, model, published.student.processor, example, sheet, report)
    print(results_table(report))
    print(f"\nThe student is in {task.folder}; its card is {task.folder / 'README.md'}")
    if destination is not None:
        print(upload(task.folder, destination))
    return report


def _fit_subspaces(runs: Mapping[str, _Run]) -> None:
    """What needs the teacher that will teach, and may still be refused: its subspaces, and checkpoints of another."""
    for run in runs.values():
        run.trainer.prepare_distillation(run.checkpoint)


def _methods(options: TaskOptions, config: SubDistillConfig) -> list[str]:
    """The methods to train, baselines first."""
    if unknown := [method for method in options.compare if method not in METHODS]:
        raise SubDistillError(f"compare={unknown[0]!r}: expected methods among {', '.join(METHODS)}")
    wanted = {config.method, *options.compare}
    return [method for method in METHODS if method in wanted]


def _destination(options: TaskOptions, config: SubDistillConfig) -> Destination:
    """The repository that the student will be pushed to; signs in."""
    name = config.hub_model_id or repository_name(
        options.teacher, options.student, options.dataset, [str(entry) for entry in options.classes]
    )
    try:
        return sign_in(name, config.hub_private_repo, config.hub_revision, config.hub_token)
    except PushError as error:
        raise PushError(f"push_to_hub: {error}. Nothing was trained") from error


def _push_checkpoints(config: SubDistillConfig, destination: Destination | None, trainer: SubDistillTrainer) -> None:
    """Let the trainer of the published method push while it trains, if that was asked for."""
    if config.push_to_hub and config.hub_strategy != HubStrategy.END:
        trainer.args.push_to_hub = True
        trainer.args.hub_model_id = None if destination is None else destination.repo
        trainer.init_hf_repo()


def _check_folder(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse to mix two runs in one folder."""
    folder = Path(config.output_dir)
    check_output_folder(folder)
    resume = _resume_option(config)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not ((folder / REPORT_FILE).is_file() or (folder / RUNS_FOLDER).is_dir()):
        raise SubDistillError(f"{config.output_dir} already holds other files: give another --output_dir")
    if not (options.overwrite or resume):
        raise SubDistillError(
            f"{config.output_dir} already holds another run: --resume_from_checkpoint true to go on with it, "
            "--overwrite to replace it, or another --output_dir"
        )
    if resume and (folder / REPORT_FILE).is_file() and not _checkpoint(resume, folder / RUNS_FOLDER / config.method):
        raise SubDistillError(
            f"{config.output_dir} holds a finished student and no checkpoint of method {config.method}: resume with "
            "the method that it was trained by, or use --overwrite, or another --output_dir"
        )


def _remove_old_run(folder: Path) -> None:
    """Make room for a new run; called when nothing can refuse it any more."""
    shutil.rmtree(folder / RUNS_FOLDER, ignore_errors=True)
    (folder / REPORT_FILE).unlink(missing_ok=True)
    (folder / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)  # by which the folder is known as a run's


def _remove_empty_folders(folder: Path) -> None:
    """Take back the folders that trainers made for a run that was refused."""
    for path in sorted([folder, *folder.rglob("*")], reverse=True):
        with contextlib.suppress(OSError):  # it holds something, or is a file
            path.rmdir()


def build_trainer(
    task: Task, config: SubDistillConfig, label: str | None = None
) -> tuple[SubDistillTrainer, LoadedModel]:
    """The trainer of one method, and its student; the same student for a seed, whatever the method.

    Args:
        task: what all methods share.
        config: of the method; without a learning rate it is given the one that suits student and method.
        label: of its progress bar; without one there is no bar.

    Raises:
        SubDistillError: when models, layers and images do not fit together, or the teacher lacks the classes.
    """
    if task.data.subtask.teacher_ids is None:
        raise SubDistillError(
            f"the teacher {task.teacher.name!r} lacks the classes: fit it with subdistill distill --adapt_teacher, "
            f"and give the folder {ADAPTER_FOLDER} that this leaves as the teacher"
        )
    set_seed(config.seed)
    student = build_student(
        task.options.student, task.data.subtask.names, task.teacher.processor, task.options.trust_remote_code
    )
    if config.learning_rate <= 0:
        with_past: Start = "adapter" if task.options.student_lora else "pretrained"
        start = "new" if is_new(task.options.student) else with_past
        config.learning_rate = suited_learning_rate(student.model, start, config.weights()["layer"] > 0)
    trainer = SubDistillTrainer(
        with_lora(student, task.options) if task.options.student_lora else student.model,
        config,
        teacher=task.teacher.model,
        teacher_class_ids=task.data.subtask.teacher_ids,
        train_dataset=task.views(student),
        fit_dataset=task.plain("train"),
        eval_dataset=task.plain("validation"),
        data_collator=ViewCollator(student.processor, task.teacher.processor),
        processing_class=student.processor,
    )
    show_progress(trainer, label)
    return trainer, student


def _planned_adaptation(task: Task) -> Adaptation | None:
    """How the teacher is to be adapted, if it lacks the classes."""
    if not task.lacks_classes:
        return None
    return plan_adaptation(task, task.folder / RUNS_FOLDER, bool(_resume_option(task.config)))


def _build(task: Task, method: str, announce: bool) -> _Run:
    """The training of a method: models, layers and images that do not fit are refused here."""
    config = copy.copy(task.config)
    if method != config.method:  # the weights that were given are those of the main method
        config.method, config.layer_weight, config.task_weight = method, None, None
        config.kd_weight = SubDistillConfig.kd_weight
    config.push_to_hub = False  # the finished student is pushed once, by `distill`
    config.output_dir = str(task.folder / RUNS_FOLDER / method)
    trainer, student = build_trainer(task, config, method)
    if announce and trainer.pairs:
        print(f"\n{trainer.layer_preview()}\n")
        if config.rotation == AUTO and METHODS[method].uses_subspaces:
            print(f"rotation  {trainer.rotation}, which suits these layers\n")
    return _Run(trainer, student, _checkpoint(_resume_option(task.config), Path(config.output_dir)))


def _resume_option(config: SubDistillConfig) -> bool | Path:
    """`--resume_from_checkpoint`: no, yes, or the checkpoint that was named."""
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


def _checkpoint(resume: bool | Path, folder: Path) -> str | None:
    """The checkpoint that a method goes on from: the one that was named, or the last complete one in its folder."""
    if isinstance(resume, Path) and resume.resolve().is_relative_to(folder.resolve()):
        return str(resume)
    return last_complete_checkpoint(folder) if resume else None
