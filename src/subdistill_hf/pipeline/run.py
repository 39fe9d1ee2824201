"""One run from options to a student folder: load, train, evaluate, save, describe."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import set_seed
from transformers.trainer_utils import HubStrategy

from subdistill_hf.acceleration.threads import restored_threads
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO, TaskOptions
from subdistill_hf.config.output_folder import (
    RUNS_FOLDER,
    held_for_this_run,
    telling_full_disk,
)
from subdistill_hf.config.training import SubDistillConfig, with_arguments
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.preprocessing import check_fixed_size
from subdistill_hf.errors import PushError, SubDistillError
from subdistill_hf.hub.files import CARD_FILE
from subdistill_hf.hub.names import repository_name
from subdistill_hf.hub.publish import Destination, open_repository, sign_in, upload
from subdistill_hf.models.adapters import heads_with_bias, merged, shift_logit
from subdistill_hf.models.heads import OTHER_ENTRY, THRESHOLD_ENTRY, say_of_unknown
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.models.students import build_student, described_lora, is_new, with_lora
from subdistill_hf.pipeline.adaptation import adapt, announce_adaptation, announce_fitted, plan_adaptation
from subdistill_hf.pipeline.adaptation_training import ADAPTER_FOLDER, Adaptation
from subdistill_hf.pipeline.advice import label_advice
from subdistill_hf.pipeline.answers import save_thumbnails
from subdistill_hf.pipeline.auto import Choice, with_steps_of_all
from subdistill_hf.pipeline.energy import Energy, measured_energy
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.pipeline.method_choices import Start, config_of_method, resolve_layer_losses, resolve_learning_rate
from subdistill_hf.pipeline.quiet import hidden_weight_bars
from subdistill_hf.pipeline.report import TrainedStudent, build_report, results_table
from subdistill_hf.pipeline.run_folder import (
    check_run_folder,
    checkpoint_of,
    kept_in,
    remove_derived_files,
    remove_empty_folders,
    remove_old_run,
    resumed_from,
)
from subdistill_hf.pipeline.student_folder import write_student
from subdistill_hf.pipeline.task import Task, announce, load_task, take_threads
from subdistill_hf.pipeline.unknown import shift_of_other
from subdistill_hf.pipeline.validation import validate_options
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.page.page import PAGE_FILE, write_page
from subdistill_hf.reporting.report import RunReport
from subdistill_hf.teacher.remote_cache import check_cache_place
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.callbacks import show_progress
from subdistill_hf.training.interruption import train_to_its_end
from subdistill_hf.training.optimizers import initial_rate
from subdistill_hf.training.trainer import SubDistillTrainer


@dataclass
class MethodRun:
    """The training of one method.

    Attributes:
        trainer: with all that it needs.
        student: what it trains.
        checkpoint: that it resumes from, if any.
        choices: what was chosen for it.
        energy: what its training took.
    """

    trainer: SubDistillTrainer
    student: LoadedModel
    checkpoint: str | None
    choices: Sequence[Choice]
    energy: Energy = field(default_factory=Energy)

    def trained(self, task: Task) -> TrainedStudent:
        """The part of the report that is its own, after the training."""
        trainer = self.trainer
        return TrainedStudent(
            merged(copy.deepcopy(trainer.model)) if isinstance(trainer.model, PeftModel) else trainer.model,
            self.student,
            trainer.pairs,
            trainer.subspaces,
            trainer.state.log_history,
            initial_rate(trainer.optimizer, trainer.args),
            trainer.rotation,
            resumed=self.checkpoint is not None,
            energy=self.energy,
            lora=described_lora(trainer.model, task.options) if isinstance(trainer.model, PeftModel) else None,
            kept_from=trainer.loss_log.kept_from,
        )


@restored_threads()
@hidden_weight_bars()
def distill(
    options: TaskOptions, config: SubDistillConfig, command: str | None = None, teacher: LoadedModel | None = None
) -> RunReport | None:
    """Distil a student as the options say, and leave a folder that plain transformers loads.

    The folder holds the student, its processor, a model card, plots, `report.json` with every figure, `report.html`
    to read them, and under `runs/` the checkpoints of each method.

    Args:
        options: teacher, student, dataset and classes.
        config: training arguments; `config.output_dir` is the folder.
        command: how to run this again, for the card.
        teacher: the classifier that `options.teacher` names, where it is loaded already; its weights stay as they are.

    Returns:
        The report, as it is written to `report.json`; `None` in the other processes of several.

    Raises:
        SubDistillError: for options that do not fit together, before anything is trained or written; when another
            run is writing to the folder; or when the disk is full, saying what is kept.
        PushError: when the Hub can not be written, before anything is trained; or when the push fails at the end,
            which leaves the folder whole.
        InterruptedTrainingError: when SIGTERM stopped a training (`enable_jit_checkpoint`), saying how to go on.
    """
    validate_options(options, config)
    folder, main = Path(config.output_dir), config.process_index == 0
    with held_for_this_run(folder if main else None):
        check_run_folder(options, config)
        if main and config.teacher_cache_dir is not None:
            check_cache_place(config.teacher_cache_dir)
        with telling_full_disk(folder, lambda: kept_in(folder, config.method)):
            return _run(options, config, command, teacher)


def _run(
    options: TaskOptions, config: SubDistillConfig, command: str | None, loaded: LoadedModel | None
) -> RunReport | None:
    """`distill`, in a folder that is this run's and may be used."""
    main = config.process_index == 0
    destination = _destination(options, config) if main and config.push_to_hub else None
    task, teacher, runs = _prepare(load_task(options, config, loaded), methods_of(options, config), destination)
    _push_checkpoints(config, destination, runs[config.method].trainer)
    for method, run in runs.items():
        set_seed(config.seed)
        with measured_energy(main) as run.energy:
            train_to_its_end(run.trainer, run.checkpoint, f"method {method}", partial(kept_in, task.folder, method))
    if not main:
        return None
    report = _leave_student(task, runs, teacher.digest, command)
    print(f"\nThe student is in {task.folder}; its card is {task.folder / CARD_FILE}")
    if destination is not None:
        print(upload(task.folder, destination))
    return report


def methods_of(options: TaskOptions, config: SubDistillConfig) -> list[str]:
    """The methods to train, each once and baselines first."""
    return [method for method in METHODS if method in {config.method, *options.compare}]


def _prepare(
    task: Task, methods: Sequence[str], destination: Destination | None
) -> tuple[Task, Teacher, dict[str, MethodRun]]:
    """Make the trainers of all methods with what they need, once; refuse what cannot be, then fit the teacher.

    Args:
        task: what all methods share.
        methods: what is trained.
        destination: where the student will be pushed.

    Returns:
        The task with the teacher that teaches, this teacher as the trainers share it, and method to training.
    """
    main = task.config.process_index == 0
    try:
        adaptation = _planned_adaptation(task)
        task = task if adaptation is None else adaptation.task
        if main:
            announce(task)
            print("" if adaptation is None else announce_adaptation(adaptation), end="")
        teacher = teacher_of(task)
        runs = {method: build_run(task, method, teacher) for method in methods}
        run = runs[task.config.method]  # the student of each method is the same network
        student = Classifier(run.trainer.model, run.student.processor)
        threads = take_threads(task, Classifier(task.teacher.model, task.teacher.processor), student)
        if main:
            if resumed_from(task.config):
                announce_resumed(runs)
            _announce_runs(runs)
            print("" if threads is None else f"{threads}\n")
        if adaptation is None:
            _prepare_trainings(runs)
        if destination is not None:
            open_repository(destination)
    except SubDistillError:
        remove_empty_folders(task.folder)
        raise
    if main and not resumed_from(task.config):
        remove_old_run(task.folder)
    if adaptation is not None:
        task = adapt(adaptation, task.folder / RUNS_FOLDER)
        teacher.model.to(task.config.device)  # its weights were fitted in place, and saved from the CPU
        teacher.forget_digest()
        if main:
            print(announce_fitted(task))
        _prepare_trainings(runs)
    return task, teacher, runs


def _prepare_trainings(runs: Mapping[str, MethodRun]) -> None:
    """Check what needs the teacher, and may still be refused: its subspaces, and checkpoints of another."""
    for run in runs.values():
        run.trainer.prepare_distillation(run.checkpoint)


def _leave_student(task: Task, runs: Mapping[str, MethodRun], teacher_digest: str, command: str | None) -> RunReport:
    """Measure what was trained, and write the folder of the published student.

    Args:
        task: what all methods shared.
        runs: method to its training, which is over.
        teacher_digest: of the teacher's weights.
        command: how to run this again, for the card.
    """
    trained = {method: _with_settled_other(task, run) for method, run in runs.items()}
    report = build_report(task, trained, teacher_digest, command)
    print(results_table(report))  # before anything is written, which may fail
    if (advice := label_advice(report, task.config)) is not None:
        print(f"\n{advice}")
    published = runs[task.config.method]
    if report.threshold is not None:
        settings: Any = trained[task.config.method].model.config
        settings.update({THRESHOLD_ENTRY: report.threshold})
        published.trainer.model.config = settings
    as_adapter = isinstance(published.trainer.model, PeftModel) and task.options.student_lora_save == "adapter"
    model: Any = published.trainer.model if as_adapter else trained[task.config.method].model
    example = task.data.test[0][task.data.columns.image]
    remove_derived_files(task.folder)
    report = write_student(task.folder, model, published.student.processor, example, task.plain("train"), report)
    save_thumbnails(task.folder, report.wrong_answers or (), task.test)
    if task.options.html_report:
        with plot_is_optional(PAGE_FILE):
            write_page(task.folder)
    report.save(task.folder)  # the last: with it the folder is whole
    return report


def _with_settled_other(task: Task, run: MethodRun) -> TrainedStudent:
    """A trained student, whose answer "none of these", if it has one, keeps most images of the classes.

    The logit is shifted in its weights, so that each program that runs the student gives the same answers.
    """
    trained = run.trained(task)
    if not task.has_other:
        return trained
    shift = shift_of_other(task, Classifier(trained.model, trained.student.processor))
    networks = [trained.model] if run.trainer.model is trained.model else [trained.model, run.trainer.model]
    for network in networks:
        shift_logit(network, -1, shift)
    return replace(trained, other_shift=shift)


def announce_resumed(runs: Mapping[str, MethodRun]) -> None:
    """Print where each training of a run that is resumed goes on: one without a checkpoint begins at its start."""
    for method, run in runs.items():
        place = "its start: there is no complete checkpoint" if run.checkpoint is None else Path(run.checkpoint).name
        print(f"resumed  {method} from {place}")


def _announce_runs(runs: Mapping[str, MethodRun]) -> None:
    """Print the layers of the last method that has some, and what was chosen for each method."""
    shown = next((run.trainer for run in reversed(list(runs.values())) if run.trainer.pairs), None)
    if shown is not None:
        print(f"\n{shown.plan.preview()}\n")
        if shown.args.rotation == AUTO and METHODS[shown.args.method].uses_subspaces:
            print(f"rotation  {shown.rotation}, which suits these layers\n")
    if choices := [choice for run in runs.values() for choice in run.choices]:
        print("chosen for these students, as nothing else was asked for:", *choices, sep="\n  ", end="\n\n")


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


def _planned_adaptation(task: Task) -> Adaptation | None:
    """How the teacher is to be adapted, if it lacks the classes."""
    if not task.to_adapt:
        return None
    return plan_adaptation(task, task.folder / RUNS_FOLDER, bool(resumed_from(task.config)))


def teacher_of(task: Task) -> Teacher:
    """The teacher as the trainings of all methods share it, restricted to the subtask.

    Raises:
        SubDistillError: when it lacks the classes.
    """
    if task.data.subtask.teacher_ids is None:
        raise SubDistillError(
            f"the teacher {task.teacher.name!r} lacks the classes: fit it with subdistill distill --adapt_teacher, "
            f"and give the folder {ADAPTER_FOLDER} that this leaves as the teacher"
        )
    return Teacher.for_training(
        task.teacher.model, task.data.subtask.teacher_ids, task.config, task.has_other, task.teacher.digest
    )


def build_run(task: Task, method: str, teacher: Teacher) -> MethodRun:
    """The training of a method, before anything is fitted to the teacher.

    Raises:
        SubDistillError: when models, layers and images do not fit together.
    """
    folder = task.folder / RUNS_FOLDER / method
    config = config_of_method(task.config, method, folder)
    trainer, student, choices = build_trainer(task, config, teacher, label=method)
    return MethodRun(trainer, student, checkpoint_of(resumed_from(task.config), folder), choices)


def build_trainer(
    task: Task, config: SubDistillConfig, teacher: Teacher, label: str | None = None
) -> tuple[SubDistillTrainer, LoadedModel, list[Choice]]:
    """The trainer of one method, and its student; the same student for a seed, whatever the method.

    Args:
        task: what all methods share.
        config: of the method.
        teacher: see `teacher_of`; trainings may share it.
        label: of its progress bar; without one there is no bar.

    Returns:
        The trainer, the student, and what was chosen for it.

    Raises:
        SubDistillError: when models, layers and images do not fit together.
    """
    options = task.options
    set_seed(config.seed)
    student = build_student(options.student, task.data.output_names, task.teacher.processor, options.trust_remote_code)
    check_fixed_size(student.processor, task.data.sizes, f"the student {student.name!r}")
    say_of_unknown(student.model.config, {OTHER_ENTRY: True} if task.has_other else {})
    if task.has_other:
        heads_with_bias(student.model)  # refused before the training, see `_with_settled_other`
    with_past: Start = "adapter" if options.student_lora else "pretrained"
    start = "new" if is_new(options.student) else with_past
    config, choices = resolve_learning_rate(config, student.model, start)
    config, weights = resolve_layer_losses(config)
    if not config.weights()["task"]:
        config = with_arguments(config, label_smoothing_factor=0.0)  # which is of the methods beside it
    if not METHODS[config.method].needs_teacher:
        config = with_steps_of_all(config, len(task.data.rows("taught")), len(task.data.train))
    trainer = SubDistillTrainer(
        with_lora(student, options) if options.student_lora else student.model,
        config,
        teacher=teacher,
        train_dataset=task.views(student, "taught" if METHODS[config.method].needs_teacher else "train"),
        fit_dataset=task.plain("taught"),
        eval_dataset=task.validation(),
        data_collator=ViewCollator(student.processor, task.teacher.processor),
        processing_class=student.processor,
    )
    show_progress(trainer, label, "agreement" if task.data.labels_by_teacher else "accuracy")
    return trainer, student, [*choices, *weights]
