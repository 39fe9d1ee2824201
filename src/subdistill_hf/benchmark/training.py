"""One run of a benchmark: train a student, measure it on validation and test images."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from subdistill_hf.benchmark.config import BenchmarkError, refuse_unknown
from subdistill_hf.benchmark.explained_runs import explanation_figures
from subdistill_hf.benchmark.jobs import Job, Row
from subdistill_hf.benchmark.weights import WEIGHTS, weights_of_folders
from subdistill_hf.config.defaults import RUN_DEFAULTS, VALIDATION_FRACTION
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.validation import names_of_options
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.errors import DivergedError
from subdistill_hf.explain.explainers import make_explainer
from subdistill_hf.models.loading import check_teacher_is_there, count_parameters
from subdistill_hf.models.students import check_student_is_there
from subdistill_hf.pipeline.evaluation import (
    Classifier,
    mark_scores,
    predict,
    processor_name,
    score,
    unmarked_test,
)
from subdistill_hf.pipeline.run import build_trainer, teacher_of
from subdistill_hf.pipeline.task import Task, load_task
from subdistill_hf.pipeline.unknown import with_shifted_other
from subdistill_hf.pipeline.validation import validate_options
from subdistill_hf.training.arguments import check_training_arguments

DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "save_strategy": "no",
    "learning_rate": RUN_DEFAULTS["learning_rate"],
}


def config_of(job: Job, folder: str) -> SubDistillConfig:
    """The training arguments of a run; what the benchmark says of logging and saving counts."""
    training = {**DEFAULTS, **job.training, "seed": job.seed, "output_dir": folder}
    if training.get("teacher_cache") is False:  # what YAML makes of `off`
        training["teacher_cache"] = "off"
    return SubDistillConfig(**training)


def check(jobs: Sequence[Job]) -> None:
    """Refuse what would end a run of the grid, before anything is trained.

    That is options that do not exist or do not fit, teachers and students that are not there, and subtasks without
    enough images.

    Raises:
        BenchmarkError: naming the run.
    """
    for explained in {job.explanations for job in jobs if job.explanations is not None}:
        make_explainer(explained.method)
    for job in {_digest(job.training): job for job in jobs}.values():
        with _naming(job):
            _refuse_unknown(job.training, SubDistillConfig)
            check_training_arguments(config_of(job, "unused"))
    for job in {_digest([job.student, job.condition]): job for job in jobs}.values():
        with _naming(job):
            _refuse_unknown(job.task, TaskOptions)
            if job.task.get("validation_fraction") == 0:
                raise BenchmarkError("validation_fraction=0: a benchmark measures validation images; give a share")
            options = TaskOptions(**job.task)
            validate_options(options, config_of(job, "unused"))
            check_teacher_is_there(options.teacher, options.trust_remote_code)
            check_student_is_there(options.student, options.trust_remote_code)
    ordered = sorted(jobs, key=lambda job: job.train_images)
    largest = {_digest([job.task["classes"], job.condition]): job for job in ordered}
    for job in largest.values():
        with _naming(job):
            data = load_subtask(TaskOptions(**job.task), job.seed)
        wanted = job.task.get("train_images_per_class", 0)
        for output, name in enumerate(data.subtask.names):
            labels = [*data.train[data.columns.label], *data.validation[data.columns.label]]
            if (found := labels.count(output)) < wanted:
                raise BenchmarkError(
                    f"{job}: class {name!r} has {found} images: expected {wanted} to train and validate"
                )


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    """Say which run an error comes from."""
    try:
        yield
    except (TypeError, ValueError) as error:  # of which a SubDistillError is one
        raise BenchmarkError(f"{job}: {error}") from error


def _refuse_unknown(options: Iterable[str], kind: type) -> None:
    """Options of runs that do not exist, or not there."""
    everywhere = names_of_options(SubDistillConfig, TaskOptions)
    otherwise = "see subdistill distill --help-all"
    refuse_unknown(options, names_of_options(kind), f"option of {kind.__name__}", everywhere, otherwise)


def _digest(options: Any) -> str:
    return json.dumps(options, sort_keys=True)


def task_of(job: Job, folder: str) -> Task:
    """The images, the teacher and the training arguments of a run that writes to a folder."""
    options = TaskOptions(**{"validation_fraction": VALIDATION_FRACTION, **job.task})
    return load_task(options, config_of(job, folder))


def train_job(job: Job) -> Row:
    """Train and measure; a training that diverged is a result too, without accuracies.

    Returns:
        `job.described()` with accuracies of student and teacher, agreement, steps and parameters; the digests of
        weights that are in folders; where images carry a mark, what it does to both; where the benchmark asks for it,
        how alike both explain; the seconds of the steps, and those of what came before them: the subspaces, and the
        teacher's passes where they are kept.

    Raises:
        BenchmarkError: when the teacher lacks the classes.
    """
    _be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(job, folder)
        weights = weights_of_folders(job.task)
        described = {**job.described(), **({WEIGHTS: weights} if weights else {})}
        if task.to_adapt:
            raise BenchmarkError(
                f"teacher {task.teacher.name!r} lacks the classes, or is to be fitted to them: adapt it first "
                "(subdistill distill --adapt_teacher), and give the adapted one"
            )
        trainer, student, _ = build_trainer(task, task.config, teacher_of(task))
        start = time.perf_counter()
        try:
            trained = trainer.train().metrics
            seconds = trained["train_runtime"]
            preparation = time.perf_counter() - start - seconds
            figures = _figures(job, task, Classifier(trainer.model, student.processor))
        except DivergedError as error:
            return {**described, "validation": None, "test": None, "error": str(error)}
        return {
            **described,
            "seconds": round(seconds, 2),
            "preparation_seconds": round(preparation, 2),
            "steps": trainer.state.global_step,
            "learning_rate": trainer.args.learning_rate,
            **figures,
            "parameters": count_parameters(trainer.model),
            "images": len(task.data.train),
            **({} if task.selection is None else {"unlabelled": task.selection.kept}),
            "machine": machine(),
        }


def _figures(job: Job, task: Task, student: Classifier) -> Row:
    """What is measured on images, of a trained student and of the teacher."""
    ours = with_shifted_other(task, student)
    answers = _teacher_answers(_digest([job.task, job.seed, task.teacher.identity]))
    images_of = {"validation": task.plain("validation"), "test": task.test}
    unmarked = unmarked_test(task.data)
    if unmarked is not None:
        images_of["unmarked"] = unmarked
    workers = task.config.dataloader_num_workers
    logits = {split: predict(ours, images, workers=workers) for split, images in images_of.items()}
    if missing := images_of.keys() - answers.keys():
        theirs = with_shifted_other(task, task.teacher_classifier)
        answers |= {split: predict(theirs, images_of[split], workers=workers) for split in missing}
    row: Row = {}
    for split in ("validation", "test"):
        images, names = images_of[split], task.data.output_names
        scores = score(logits[split], images, names, answers[split])
        row[split] = scores.accuracy
        row[f"{split}_agreement"] = scores.teacher_agreement
        row[f"teacher_{split}"] = score(answers[split], images, names, None).accuracy
    if unmarked is not None:
        for whose, found in (("", logits), ("teacher_", answers)):
            marks = mark_scores(task.data, found["test"], found["unmarked"])
            row |= {f"{whose}{name}": value for name, value in vars(marks).items()}
    if job.explanations is not None:
        row |= explanation_figures(job.explanations, task, ours)
    return row


@lru_cache(maxsize=16)
def _teacher_answers(images: str) -> dict[str, Tensor]:
    """Where the teacher's logits on each split of some images are kept, for the next runs of this process on them."""
    return {}


def machine() -> str:
    """Where a run of this process is trained: the GPU, or the CPU and its threads, and torch's version."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        name = f"{processor_name()}, {threads} thread{'' if threads == 1 else 's'} a run"
    return f"{name}, torch {torch.__version__.partition('+')[0]}"


@lru_cache(maxsize=1)
def _be_quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
