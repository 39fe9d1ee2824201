"""The report of a run: everything the card and the plots say, measured once, when the training is over."""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.config.distillation import DistillationOptions, Rotation
from subdistill_hf.config.methods import method_label
from subdistill_hf.config.options import DataOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.validation import NO_LABELS
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.other_images import OtherImages
from subdistill_hf.data.sources import is_local
from subdistill_hf.formatting import format_percent, table
from subdistill_hf.models.loading import LoadedModel, count_parameters, input_size_of
from subdistill_hf.pipeline.answers import calibration_of, worst_answers
from subdistill_hf.pipeline.energy import Energy
from subdistill_hf.pipeline.evaluation import (
    Classifier,
    count_operations,
    mark_scores,
    measure_latency,
    predict,
    processor_name,
    score,
    unmarked_test,
)
from subdistill_hf.pipeline.method_choices import resolve_layer_losses
from subdistill_hf.pipeline.selection import Selection
from subdistill_hf.pipeline.task import Task
from subdistill_hf.pipeline.unknown import (
    accuracy_of_classes,
    measured_unknown,
    rejection_of,
    unknown_logits,
    with_shifted_other,
    with_unknown_images,
)
from subdistill_hf.reporting.decoding import decode
from subdistill_hf.reporting.report import (
    TEACHER,
    AdapterBase,
    MethodResult,
    ReportedAdaptation,
    ReportedLora,
    ReportedStudent,
    ReportedSubspace,
    ReportedTeacher,
    RunReport,
)
from subdistill_hf.reporting.reported_images import (
    ReportedDataset,
    ReportedMark,
    ReportedOthers,
    ReportedUnlabelled,
)

VERSIONED = ("subdistill-hf", "torch", "transformers", "timm", "datasets", "accelerate")
WITHOUT_EFFECT = (
    "teacher_cache_dir",  # where targets are kept
    "teacher_cache_limit",
    "cuda_graphs",  # how fast it is
    "shard_teacher",
)
SHOWN_ARGUMENTS = (
    *(field.name for field in fields(DistillationOptions) if field.name not in WITHOUT_EFFECT),
    "learning_rate",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "weight_decay",
    "warmup_steps",
    "gradient_accumulation_steps",
    "seed",
    "bf16",
    "fp16",
)


@dataclass(frozen=True)
class TrainedStudent:
    """The student of one method after its training.

    Attributes:
        model: the trained network; adapters are merged into it.
        student: what it was built as: its name and processor.
        pairs: the paired layers; none without an alignment.
        subspaces: of the teacher layers, by name.
        history: the trainer's log.
        learning_rate: the initial one.
        rotation: of its layers' features.
        resumed: whether a part of the training lies before this run, and was not timed.
        energy: what the training took; of the part in this run, for a resumed one.
        lora: how it was trained through low-rank changes, if it was: see `student_lora.described_lora`.
        kept_from: the step of the checkpoint that the student is of, when the training diverged after it.
        other_shift: what was added to its logit of "none of these" after the training, if it has one.
    """

    model: nn.Module
    student: LoadedModel
    pairs: Sequence[LayerPair]
    subspaces: Mapping[str, Subspace]
    history: list[dict[str, Any]]
    learning_rate: float
    rotation: Rotation
    resumed: bool
    energy: Energy = field(default_factory=Energy)
    lora: Mapping[str, Any] | None = None
    kept_from: int | None = None
    other_shift: float | None = None

    @property
    def training_seconds(self) -> float | None:
        """How long the training took, when all of it was timed."""
        history = [] if self.resumed else self.history
        return next((entry["train_runtime"] for entry in history if "train_runtime" in entry), None)


def build_report(
    task: Task, trained: Mapping[str, TrainedStudent], teacher_digest: str, command: str | None
) -> RunReport:
    """Measure the teacher and the students on the test images, and collect what else is known of the run.

    Args:
        task: what all methods shared.
        trained: method to trained student; `task.config.method` is the one that is published.
        teacher_digest: of the weights of the teacher.
        command: how to run this again.

    Returns:
        The report; `usage` and the student's `size_bytes` are `None` until the student is written.
    """
    task = with_unknown_images(task)
    published = trained[task.config.method]
    config, _ = resolve_layer_losses(copy.copy(task.config))
    config.learning_rate, config.rotation = published.learning_rate, published.rotation  # what suited, if not given
    classifiers = classifiers_of(task, trained)
    logits, unknown = predicted_logits(task, classifiers), unknown_logits(task, classifiers)
    return RunReport(
        published=config.method,
        created=datetime.date.today().isoformat(),
        dataset=reported_dataset(task),
        classes=task.data.output_names,
        subtask=tuple(str(entry) for entry in task.options.classes),
        teacher=reported_teacher(task, teacher_digest),
        student=_reported_student(published),
        results=measured_results(task, trained, classifiers, logits, unknown),
        energy_source=published.energy.source,
        latency_machine=f"{processor_name()}, 1 thread, 1 image, torch {torch.__version__.split('+')[0]}",
        subspaces=_reported_subspaces(published),
        hyperparameters=changed_options(config),
        histories={method: tuple(student.history) for method, student in trained.items()},
        versions=versions(),
        wrong_answers=worst_answers(logits[config.method], teacher_answers(task, logits[TEACHER]), task.test.labels),
        rejection=rejection_of(task, classifiers[config.method], logits[config.method], unknown[config.method])
        if config.method in unknown
        else None,
        image_options=image_options(task),
        command=command,
    )


def versions() -> dict[str, str]:
    """The versions of this package and of those that figures depend on."""
    return {name.replace("-", "_"): _version(name) for name in VERSIONED}


def image_options(task: Task) -> dict[str, Any]:
    """The options that the images of a run were loaded with, and the seed; without labels, which the teacher chose.

    The place of a folder is whole: a later command may run elsewhere, where its name is that of another folder.
    """
    given = {one.name: getattr(task.options, one.name) for one in fields(DataOptions)} | {"seed": task.config.seed}
    if is_local(task.options.dataset):
        given["dataset"] = str(Path(task.options.dataset).absolute())
    if task.options.label_column == NO_LABELS:
        given |= {"unlabelled_images": task.options.unlabelled_images, "chosen": task.data.chosen}
    return given


def _version(package: str) -> str:
    """That of an installed package; our own may be run from its sources alone."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def classifiers_of(task: Task, trained: Mapping[str, TrainedStudent]) -> dict[str, Classifier]:
    """The teacher, then each student; "none of these" keeps as many known images of the teacher as of a student."""
    students = {method: Classifier(one.model, one.student.processor) for method, one in trained.items()}
    return {TEACHER: with_shifted_other(task, task.teacher_classifier), **students}


def predicted_logits(task: Task, classifiers: Mapping[str, Classifier]) -> dict[str, Tensor]:
    """What each classifier gives for the test images, `(N, C)`."""
    workers = task.config.dataloader_num_workers
    return {name: predict(classifier, task.test, workers=workers) for name, classifier in classifiers.items()}


def teacher_answers(task: Task, logits: Tensor) -> Tensor:
    """What the students' answers to the test images are compared with: the teacher's logits `(N, C)`.

    Where no image has a label, the teacher took these for images of the classes: "none of these" is not its answer.
    """
    if not (task.data.labels_by_teacher and task.has_other):
        return logits
    return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], -torch.inf)], dim=1)


def measured_results(
    task: Task,
    trained: Mapping[str, TrainedStudent],
    classifiers: Mapping[str, Classifier],
    logits: Mapping[str, Tensor],
    unknown: Mapping[str, Mapping[str, Tensor]],
) -> tuple[MethodResult, ...]:
    """The figures of the teacher and of each student.

    Args:
        task: what all methods shared.
        trained: method to trained student.
        classifiers: the teacher, then each student, see `classifiers_of`.
        logits: of the test images, see `predicted_logits`.
        unknown: of images of other classes, see `unknown_logits`.
    """
    test, workers = task.test, task.config.dataloader_num_workers
    clean = unmarked_test(task.data)
    latencies = measure_latency(classifiers, test)
    results = []
    for name, classifier in classifiers.items():
        answers = None if name == TEACHER else teacher_answers(task, logits[TEACHER])
        scores = score(logits[name], test, task.data.output_names, answers)
        unmarked = None if clean is None else predict(classifier, clean, workers=workers)
        marks = None if unmarked is None else mark_scores(task.data, logits[name], unmarked)
        student = trained.get(name)
        result = MethodResult(
            method=name,
            **vars(scores),
            calibration=calibration_of(logits[name], test.labels),
            **({} if marks is None else vars(marks)),
            accuracy_of_classes=accuracy_of_classes(logits[name], test.labels) if task.has_other else None,
            unknown=measured_unknown(logits[name], unknown.get(name, {}), task.has_other),
            parameters=count_parameters(classifier.model),
            operations=count_operations(classifier, test),
            latency_ms=latencies[name],
            learning_rate=None if student is None else student.learning_rate,
            training_seconds=None if student is None else student.training_seconds,
            training_kilowatt_hours=None if student is None else student.energy.kilowatt_hours,
            kept_from=None if student is None else student.kept_from,
            other_shift=_other_shift(task, classifier, student),
        )
        results.append(result)
    return tuple(results)


def _other_shift(task: Task, classifier: Classifier, student: TrainedStudent | None) -> float | None:
    """What was added to the logit of "none of these", in the weights of a student, or behind the teacher."""
    if not task.has_other:
        return None
    return classifier.other_shift if student is None else student.other_shift


def reported_dataset(task: Task) -> ReportedDataset:
    """The images of a run, and what was done to them."""
    data = task.data
    return ReportedDataset(
        name=data.name,
        hub_id=data.hub_id,
        revision=data.revision,
        train_images=len(data.train),
        validation_images=len(data.validation),
        test_images=len(data.test),
        test_split=data.test_split,
        official_test=data.official_test,
        train_images_per_class=data.images_per_class(),
        mark=None if data.marking is None else decode(ReportedMark, data.marking.described(data.subtask)),
        augmentation=_augmentation(task),
        others=None if data.others is None else _reported_others(data.others),
        labels_by_teacher=data.labels_by_teacher,
        unlabelled=None if task.selection is None else _reported_unlabelled(task.selection),
    )


def _reported_others(others: OtherImages) -> ReportedOthers:
    """The images of none of the classes, in numbers."""
    return ReportedOthers(
        answered=others.answered,
        train_images=others.train_images,
        seen=len(others.seen),
        unseen=len(others.unseen),
        **{f"{kind}_images": count for kind, count in others.counts().items()},
        elsewhere=others.elsewhere_name,
    )


def _reported_unlabelled(selection: Selection) -> ReportedUnlabelled:
    """The images without labels, without the mass of each."""
    shown = {name: value for name, value in vars(selection).items() if name != "masses"}
    return ReportedUnlabelled(**shown, histogram=tuple(selection.histogram()))


def _augmentation(task: Task) -> str:
    """How the training images were changed, in words."""
    done = task.augmentation + (" and mirroring" if task.flip else "")
    for share, how in (
        (task.options.mix, "mixed with a view of another image"),
        (task.options.cutmix, "with a rectangle of a view of another image"),
    ):
        done += f"; {format_percent(share)} of the views {how}" if share else ""
    return done


def _reported_student(trained: TrainedStudent) -> ReportedStudent:
    student = trained.student
    return ReportedStudent(
        recipe=student.name,
        hub_id=student.hub_id,
        revision=student.revision,
        license=student.license,
        model_class=type(trained.model).__name__,
        parameters=count_parameters(trained.model),
        lora=None if trained.lora is None else decode(ReportedLora, trained.lora),
        image_size=tuple(input_size_of(student.processor)),
    )


def reported_teacher(task: Task, digest: str) -> ReportedTeacher:
    """The teacher of a run, and how it was adapted.

    Args:
        task: of the run.
        digest: of its weights.
    """
    teacher, words = task.teacher, task.teacher.words
    return ReportedTeacher(
        name=teacher.name,
        hub_id=teacher.hub_id,
        revision=teacher.revision,
        digest=digest,
        model_class=type(teacher.model).__name__,
        parameters=count_parameters(teacher.model),
        license=teacher.license,
        teacher_classes=len(teacher.labels) if words is None else None,
        classes=() if words is None else words.classes,
        prompts=() if words is None else words.prompts,
        other_prompts=() if words is None else words.other_prompts,
        base=None if teacher.base is None else AdapterBase(**vars(teacher.base)),
        adaptation=None if task.adaptation is None else decode(ReportedAdaptation, task.adaptation),
    )


def _reported_subspaces(published: TrainedStudent) -> tuple[ReportedSubspace, ...]:
    """Those that the published student was compared in, with the layers of each."""
    return tuple(
        decode(
            ReportedSubspace,
            {
                "teacher_layer": pair.teacher.name,
                "student_layer": pair.student.name,
                **published.subspaces[pair.teacher.name].described(),
            },
        )
        for pair in published.pairs
        if pair.teacher.name in published.subspaces
    )


def changed_options(config: SubDistillConfig) -> dict[str, Any]:
    """The options that shape the result and differ from their defaults."""
    defaults = SubDistillConfig(output_dir=config.output_dir, use_cpu=config.use_cpu)
    without = {"num_train_epochs"} if config.max_steps > 0 else set()  # the steps decide
    shown = [name for name in SHOWN_ARGUMENTS if name not in without]
    values = {name: (getattr(config, name), getattr(defaults, name)) for name in shown}
    return {name: getattr(value, "value", value) for name, (value, default) in values.items() if value != default}


def results_table(report: RunReport) -> str:
    """The results as a table for the terminal, with what knowing nothing would be worth."""
    marked = report.dataset.mark is not None
    answered = report.published_result.accuracy_of_classes is not None
    header = ["", report.short_figure, *(['without "none"'] if answered else []), "balanced"]
    header += ["without mark", "follows mark"] if marked else []
    rows = [[*header, "parameters", "ms/image", "trained in"]]
    for result in report.results:
        shares = [result.accuracy, *([result.accuracy_of_classes] if answered else []), result.balanced_accuracy]
        shares += [result.clean_accuracy, result.mark_followed] if marked else []
        shares = shares if report.measures(result) else [None] * len(shares)
        rows.append(
            [
                method_label(result.method),
                *("" if share is None else f"{100 * share:.1f} %" for share in shares),
                "" if result.parameters is None else f"{result.parameters:,}",
                "" if result.latency_ms is None else f"{result.latency_ms.median:.2f}",
                "" if result.training_seconds is None else f"{result.training_seconds:.0f} s",
            ]
        )
    lines = table(rows, numbers_from=1)
    if answered:
        lines += '\n\nan answer "none of these" counts as wrong; \'without "none"\' takes the best of the classes'
    count = report.dataset.test_images
    if report.dataset.labels_by_teacher:
        lines += "\n\nno image had a label: agreement is with the teacher's answers, whether they are true or not"
    return (
        f"\n{lines}\n\n{len(report.classes)} classes, {count} test images; {report.latency_machine}\n{_chance(report)}"
    )


def _chance(report: RunReport) -> str:
    """The accuracies of those who know nothing, and a warning where the published student is no better."""
    said = f"chance: {format_percent(report.chance)}"
    if report.largest_class is not None:
        name, share = report.largest_class
        said += f"; {format_percent(share)} by always answering {name!r}, the class with most test images"
    if report.is_above_chance:
        return said
    label = method_label(report.published_result.method)
    return f"{said}\nnote: {label} is not above that by two standard errors: this is no sign that it learned anything"
