"""The runs of a benchmark: which there are, what defines each, and which hyper-parameters won."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from subdistill_hf.benchmark.config import WEIGHT_FACTOR, Benchmark, BenchmarkError, ExplainedRuns, Options, is_share
from subdistill_hf.config.methods import METHODS
from subdistill_hf.reporting.local_paths import file_name

Row = dict[str, Any]
RunAll = Callable[[Sequence["Job"]], list[Row]]


def size_in_words(size: float) -> str:
    """A number of training images a class, or a share of them in percent."""
    return f"{100 * size:g} %" if is_share(size) else f"{size}"


@dataclass(frozen=True)
class Job:
    """One run: train a student with a method on a subtask, and measure it.

    Attributes:
        method: its name in the table.
        subtask: its name.
        student: the student's recipe.
        train_images: training images a class, or a share of them.
        seed: of everything random.
        tuned: the options that were tuned.
        task: options of what to distil.
        training: options and training arguments, those of the method and the tuned ones included.
        condition: the name of the condition whose options are among those of `task`, if there is one.
        explanations: how the student is explained, if it is.
    """

    method: str
    subtask: str
    student: str
    train_images: float
    seed: int
    tuned: Options
    task: Options
    training: Options
    condition: str | None = None
    explanations: ExplainedRuns | None = None

    @property
    def key(self) -> str:
        """A digest of all that shapes the result; names in the table do not."""
        names = ("method", "subtask", "tuned", "condition")
        shaping = {name: value for name, value in asdict(self).items() if name not in names}
        if self.explanations is None:  # as before there were any
            del shaping["explanations"]
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]

    def described(self) -> Row:
        """The description of the run in the results."""
        names = ("method", "subtask", "student", "train_images", "seed", "tuned", "condition")
        return {"key": self.key, **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.tuned.items())
        what = "of the images" if is_share(self.train_images) else "image" if self.train_images == 1 else "images"
        size = f"{size_in_words(self.train_images)} {what}"
        told = f"{self.method}, {self.subtask}, {size}, {file_name(self.student)}, seed {self.seed}"
        told += "" if self.condition is None else f", {self.condition}"
        return f"{told} ({options})" if options else told


@dataclass(frozen=True)
class Setting:
    """The scope of one choice of hyper-parameters.

    Attributes:
        method: its name in the table.
        student: the student's recipe.
        train_images: training images a class, or a share of them.
        subtask: its name, where each final subtask is tuned by itself.
    """

    method: str
    student: str
    train_images: float
    subtask: str | None


def make_job(
    benchmark: Benchmark,
    setting: Setting,
    subtask: str,
    classes: Sequence[str],
    seed: int,
    tuned: Options,
    condition: str | None = None,
    explanations: ExplainedRuns | None = None,
) -> Job:
    """The run of a method on a subtask with some hyper-parameters; under a condition, and explained, if given."""
    size, validation = setting.train_images, benchmark.validation_images
    share: Options = {"train_fraction": size} if is_share(size) else {"train_images_per_class": size}
    if is_share(size) and size == 1:
        share = {}
    if validation is not None:
        share = {"train_images_per_class": size + validation, "validation_fraction": validation / (size + validation)}
    kind = benchmark.kind(setting.method)
    training = {**benchmark.training, **benchmark.methods[setting.method], **tuned, "method": kind}
    factor = training.pop(WEIGHT_FACTOR, None)
    published = METHODS[kind].published_layer_weight
    if factor is not None and published is not None:
        training["layer_weight"] = factor * published
    return Job(
        method=setting.method,
        subtask=subtask,
        student=setting.student,
        train_images=size,
        seed=seed,
        tuned=tuned,
        task={
            **benchmark.task,
            **({} if condition is None else benchmark.conditions[condition]),
            **share,
            "classes": list(classes),
            "student": setting.student,
        },
        training=training,
        condition=condition,
        explanations=explanations,
    )


def settings(benchmark: Benchmark) -> Iterator[Setting]:
    """The scopes for which hyper-parameters are chosen, once each."""
    tuning = benchmark.tuning
    if tuning is None:
        return
    sizes = benchmark.train_images if tuning.train_images is None else [tuning.train_images]
    students = benchmark.students if tuning.student is None else [tuning.student]
    for size in sizes:
        for student in students:
            for subtask in [None] if tuning.subtasks else benchmark.subtasks:
                for method in benchmark.methods:
                    yield Setting(method, student, size, subtask)


def tune(benchmark: Benchmark, run_all: RunAll) -> dict[Setting, Options]:
    """Choose the hyper-parameters of each method by mean validation accuracy, stage by stage.

    Args:
        benchmark: the grid; without tuning the result is empty.
        run_all: gives the results of runs, in their order.

    Raises:
        BenchmarkError: when no trial of a method could be trained.
    """
    tuning = benchmark.tuning
    chosen: dict[Setting, Options] = {setting: {} for setting in settings(benchmark)}
    if tuning is None:
        return chosen
    for stage in tuning.stages:
        trials = {
            setting: [{**best, **trial} for trial in benchmark.trials(stage, setting.method)]
            for setting, best in chosen.items()
        }
        jobs = {
            (setting, number): _tuning_jobs(benchmark, setting, trial)
            for setting, candidates in trials.items()
            for number, trial in enumerate(candidates)
        }
        rows = iter(run_all([job for group in jobs.values() for job in group]))
        scores = {place: _mean_validation([next(rows) for _ in group]) for place, group in jobs.items()}
        for setting, candidates in trials.items():
            values = [scores[setting, number] for number in range(len(candidates))]
            if max(values) == -math.inf:
                raise BenchmarkError(f"no trial of {setting.method} could be trained: {candidates}")
            chosen[setting] = candidates[values.index(max(values))]
    return chosen


def _tuning_jobs(benchmark: Benchmark, setting: Setting, trial: Options) -> list[Job]:
    assert benchmark.tuning is not None
    subtasks = benchmark.tuning.subtasks or {str(setting.subtask): benchmark.subtasks[str(setting.subtask)]}
    return [
        make_job(benchmark, setting, subtask, classes, seed, trial)
        for seed in benchmark.tuning.seeds
        for subtask, classes in subtasks.items()
    ]


def _mean_validation(rows: Sequence[Row]) -> float:
    """The mean validation accuracy; -inf when a run failed."""
    values = [row["validation"] for row in rows]
    return -math.inf if None in values else statistics.mean(values)


def untuned_jobs(benchmark: Benchmark) -> list[Job]:
    """One job for each option and subtask that may be run, to check them before the first."""
    everything: dict[Setting, Options] = {setting: {} for setting in settings(benchmark)}
    stages = benchmark.tuning.stages if benchmark.tuning is not None else ()
    return final_jobs(benchmark, everything) + [
        job
        for stage in stages
        for setting in everything
        for trial in benchmark.trials(stage, setting.method)
        for job in _tuning_jobs(benchmark, setting, trial)
    ]


def final_jobs(benchmark: Benchmark, chosen: Mapping[Setting, Options]) -> list[Job]:
    """The runs that are reported: all methods, subtasks, sizes, students, conditions and seeds."""
    tuning = benchmark.tuning

    def tuned(setting: Setting) -> Options:
        if tuning is None:
            return {}
        return chosen[
            Setting(
                setting.method,
                tuning.student or setting.student,
                setting.train_images if tuning.train_images is None else tuning.train_images,
                None if tuning.subtasks else setting.subtask,
            )
        ]

    places = itertools.product(
        benchmark.seeds,
        benchmark.train_images,
        benchmark.students,
        benchmark.conditions or (None,),
        benchmark.subtasks.items(),
        benchmark.methods,
    )
    found = []
    for seed, size, student, condition, (subtask, classes), method in places:
        setting = Setting(method, student, size, subtask)
        found.append(
            make_job(benchmark, setting, subtask, classes, seed, tuned(setting), condition, benchmark.explanations)
        )
    return found
