"""The report of a run: what was trained, on what, and how well it went. Card, plots and tables are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.errors import SubDistillError
from subdistill_hf.formatting import binomial_error
from subdistill_hf.reporting.decoding import DecodingError, decode
from subdistill_hf.reporting.exported import Latency, ReportedExport
from subdistill_hf.reporting.reported_answers import ReportedCalibration, WrongAnswer
from subdistill_hf.reporting.reported_images import ReportedDataset, ReportedRejection, ReportedUnknown

REPORT_FILE: Final = "report.json"
TEACHER: Final = "teacher"
"""The method of the teacher's own result."""

MARK_SCORES: Final = ("clean_accuracy", "mark_followed", "followed_without_mark")
"""The figures of a result that are in the file of a run with a spurious mark alone."""


class ReportError(SubDistillError):
    """A report that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """The model that a teacher is an adapter of.

    Attributes:
        name: a Hub id, or the last part of a folder's name.
        hub_id: its id, when it came from the Hub.
        revision: its commit there.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedAdaptation:
    """How a teacher was fitted to the dataset before it taught.

    Attributes:
        method: `lora`, or `head` for a new head alone.
        rank: of the low-rank changes.
        changed_modules: number of modules that got one.
        trained_parameters: their number, with the head.
        classes: number of classes that it was fitted to.
        train_images: images that it was fitted to.
        validation_images: images that it was validated on.
        validation_accuracy: on these.
        epochs: passes over the training images; of a head that was trained alone, those up to the lowest
            validation loss.
        learning_rate: of the training.
        training_seconds: how long it took, when all of it was timed.
        augmented_views: of each image, which a head was trained on alone, beside the image itself; `None` where each
            epoch had new ones.
        validation_accuracy_before: of a teacher that takes words, by these alone.
    """

    method: str
    rank: int | None
    changed_modules: int
    trained_parameters: int
    classes: int
    train_images: int
    validation_images: int
    validation_accuracy: float
    epochs: float
    learning_rate: float
    training_seconds: float | None = None
    augmented_views: int | None = None
    validation_accuracy_before: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedTeacher:
    """The teacher.

    Attributes:
        name: a Hub id, an embedded teacher, or the last part of a folder's name.
        hub_id: its id, when it came from the Hub.
        revision: its commit there.
        digest: SHA-256 of its weights, in hexadecimal digits.
        model_class: of the network.
        parameters: their number.
        license: when known.
        teacher_classes: number of classes that it was trained for.
        classes: the phrases of each class, for a teacher that takes words.
        prompts: the texts that these were put into.
        other_prompts: those of images of none of the classes.
        base: what it is an adapter of, if it is one.
        adaptation: how it was fitted to the dataset, if it was.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    digest: str | None = None
    model_class: str | None = None
    parameters: int
    license: str | None = None
    teacher_classes: int | None = None
    classes: tuple[tuple[str, ...], ...] = ()
    prompts: tuple[str, ...] = ()
    other_prompts: tuple[str, ...] = ()
    base: AdapterBase | None = None
    adaptation: ReportedAdaptation | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedLora:
    """How a pretrained student was trained through low-rank changes.

    Attributes:
        rank: of the changes.
        trained_parameters: their number, with the head.
        saved: `merged`, or `adapter` where the files hold the changes alone.
    """

    rank: int
    trained_parameters: int
    saved: str


@dataclass(frozen=True, kw_only=True)
class ReportedStudent:
    """The student that is published.

    Attributes:
        recipe: how it was built, or the name of the pretrained one.
        hub_id: the pretrained one's id, when it came from the Hub.
        revision: its commit there.
        license: of the pretrained weights, when known.
        model_class: of the network.
        parameters: their number.
        size_bytes: of the weights' file; `None` until it is written.
        lora: how it was trained through low-rank changes, if it was.
        image_size: height and width of the images that it takes, in pixels.
    """

    recipe: str
    hub_id: str | None = None
    revision: str | None = None
    license: str | None = None
    model_class: str
    parameters: int
    size_bytes: int | None = None
    lora: ReportedLora | None = None
    image_size: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The figures of the teacher, or of the student of one method, on the test images.

    Attributes:
        method: its name, or `teacher`.
        accuracy: share of the images that are classified correctly.
        balanced_accuracy: mean of the classes' accuracies.
        per_class_accuracy: class name to accuracy, for classes with images.
        confusion: images of each true class (rows) in each predicted class, `(C, C)`.
        teacher_agreement: share of the images that student and teacher put in the same class, right or wrong.
        calibration: how far the probabilities of its answers can be trusted.
        clean_accuracy: the accuracy without the spurious mark; unknown where there is none.
        mark_followed: share of the marked images of other classes that are taken for the marked ones.
        followed_without_mark: that share without the mark.
        accuracy_of_classes: the accuracy when the answer "none of these" is passed over; only where there is one.
        unknown: how well it tells images of other classes, where there were some.
        parameters: their number.
        operations: floating-point operations of one image's forward pass.
        latency_ms: the time of one image's forward pass.
        learning_rate: the initial one of the training.
        training_seconds: how long the training took, when all of it was timed.
        training_kilowatt_hours: the energy that it took, where it was measured.
        kept_from: the step of the checkpoint that was kept, when the training diverged after it.
        other_shift: what was added to the logit of "none of these" after the training; only where there is one.
    """

    method: str
    accuracy: float
    balanced_accuracy: float | None = None
    per_class_accuracy: Mapping[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    teacher_agreement: float | None = None
    calibration: ReportedCalibration | None = None
    clean_accuracy: float | None = None
    mark_followed: float | None = None
    followed_without_mark: float | None = None
    accuracy_of_classes: float | None = None
    unknown: tuple[ReportedUnknown, ...] = ()
    parameters: int | None = None
    operations: int | None = None
    latency_ms: Latency | None = None
    learning_rate: float | None = None
    training_seconds: float | None = None
    training_kilowatt_hours: float | None = None
    kept_from: int | None = None
    other_shift: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedSubspace:
    """A pair of layers and the teacher's subspace that they are compared in.

    Attributes:
        teacher_layer: its name.
        student_layer: its name.
        kind: the basis.
        width: number of channels of the teacher's layer.
        dimensions: number of directions K.
        count: positions that the moments are of.
        total_energy: variance of the layer's activations.
        energy_fraction: share of it that lies in the subspace.
        energies: variance in each direction, `(K,)`.
        eigenvalues: of the basis, `(K,)`.
    """

    teacher_layer: str
    student_layer: str
    kind: str
    width: int
    dimensions: int
    count: int | None = None
    total_energy: float
    energy_fraction: float
    energies: tuple[float, ...]
    eigenvalues: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The card's snippet, and what it printed when it was run on the files of the folder.

    Attributes:
        code: Python.
        output: its standard output.
    """

    code: str
    output: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run: the teacher, the students that were trained, and what is published.

    Attributes:
        published: the method whose student is published.
        created: the day, `YYYY-MM-DD`.
        dataset: the images.
        classes: the C class names, in the order of the student's outputs.
        subtask: the classes as they were asked for: names, or `superclass:NAME`.
        teacher: the teacher.
        student: the published student.
        results: of the teacher and of each student.
        energy_source: what the energies were measured with.
        latency_machine: where the latencies were measured.
        subspaces: of the published student's layers.
        hyperparameters: options that shape the result and differ from their defaults, by name.
        histories: method to the trainer's log.
        versions: package to version.
        wrong_answers: of the published student, those that it is most sure of, some of each class, the surest first.
        rejection: the published student's threshold for unknown images, if it was measured.
        usage: the card's snippet; `None` until the folder of the student is whole, with all that belongs to it.
        image_options: the options that the images were loaded with, those of `DataOptions`, and the seed; without
            labels also `unlabelled_images`, and `chosen`, see `data.loading.SubtaskData`.
        exports: the student in formats for devices, each format once.
        command: how to run this again.
    """

    published: str = "subdistill"
    created: str
    dataset: ReportedDataset
    classes: tuple[str, ...]
    subtask: tuple[str, ...] = ()
    teacher: ReportedTeacher
    student: ReportedStudent
    results: tuple[MethodResult, ...]
    energy_source: str | None = None
    latency_machine: str | None = None
    subspaces: tuple[ReportedSubspace, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    histories: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    wrong_answers: tuple[WrongAnswer, ...] | None = None
    rejection: ReportedRejection | None = None
    usage: Usage | None = None
    image_options: Mapping[str, Any] = field(default_factory=dict)
    exports: tuple[ReportedExport, ...] = ()
    command: str | None = None

    @property
    def published_result(self) -> MethodResult:
        """The result of the published student; the last student's where a report does not hold it.

        Raises:
            ValueError: when the report holds the result of no student.
        """
        students = [result for result in self.results if result.method != TEACHER]
        if not students:
            raise ValueError("expected the result of at least one student in the report's results, found none")
        return next((result for result in students if result.method == self.published), students[-1])

    @property
    def threshold(self) -> float | None:
        """The least probability of an image's class, below which it is none of them; `None` without one."""
        answered = self.dataset.others is not None and self.dataset.others.answered
        return None if self.rejection is None or answered else self.rejection.threshold

    @property
    def teacher_result(self) -> MethodResult | None:
        """The teacher's own result, if the report holds it."""
        return next((result for result in self.results if result.method == TEACHER), None)

    @property
    def figure(self) -> str:
        """The meaning of each `accuracy`: without labels it is the agreement with the teacher's answers."""
        return "agreement with the teacher" if self.dataset.labels_by_teacher else "accuracy"

    @property
    def short_figure(self) -> str:
        """The same in one word."""
        return "agreement" if self.dataset.labels_by_teacher else "accuracy"

    def measures(self, result: MethodResult) -> bool:
        """Whether a result's accuracies say something: the teacher always agrees with itself."""
        return not (self.dataset.labels_by_teacher and result.method == TEACHER)

    @property
    def chance(self) -> float:
        """The accuracy of a guess among the classes."""
        return 1 / len(self.classes)

    @property
    def largest_class(self) -> tuple[str, float] | None:
        """The class with most test images, and their share: the accuracy of always answering it.

        `None` where all classes have as many, or their numbers are unknown.
        """
        confusion = self.published_result.confusion
        images = [sum(row) for row in confusion or ()]  # of an answer "none of these" there are none
        if not any(images) or len(set(images)) == 1:
            return None
        return self.classes[images.index(max(images))], max(images) / sum(images)

    @property
    def is_above_chance(self) -> bool:
        """Whether the published student is more accurate than any constant answer, by over two standard errors."""
        baseline = max(self.chance, self.largest_class[1] if self.largest_class else 0.0)
        error = binomial_error(baseline, self.dataset.test_images)
        return self.published_result.accuracy - baseline > 2 * error

    def to_dict(self) -> dict[str, Any]:
        """The report as values that `json` takes."""
        report = asdict(self)
        if self.dataset.mark is None:
            for result in report["results"]:
                for name in MARK_SCORES:
                    del result[name]
        return report

    @classmethod
    def from_dict(cls, report: Mapping[str, Any]) -> RunReport:
        """A report from what `to_dict` gave, now or in an earlier version.

        Entries that this version does not know are left out.

        Raises:
            ReportError: for a value that is missing or of another kind, naming its place.
        """
        try:
            return decode(cls, report)
        except DecodingError as error:
            raise ReportError(f"expected a report that subdistill distill wrote: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write the report to `report.json` of a folder; one that is there stays as it is if the writing fails."""
        text = json.dumps(self.to_dict(), indent=1)
        with written_whole(Path(folder, REPORT_FILE)) as part:
            part.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> RunReport:
        """Read a report.

        Args:
            path: the file, or the folder that holds it as `report.json`.

        Raises:
            ReportError: when there is none, or it cannot be read; naming the file.
        """
        path = Path(path)
        path = path / REPORT_FILE if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ReportError(f"{path}: expected a report that subdistill distill wrote, found no file") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ReportError(f"{path}: expected JSON, found something else ({error})") from error
        except ReportError as error:
            raise ReportError(f"{path}: {error}") from error
