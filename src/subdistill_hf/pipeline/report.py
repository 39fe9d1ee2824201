"""The report of a run: everything the card and the plots say, measured once, when the training is over."""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from subdistill_hf import __version__
from subdistill_hf.config.methods import method_label
from subdistill_hf.config.options import DistillationOptions, Rotation
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.formatting import format_percent, table
from subdistill_hf.models.loading import LoadedModel, count_parameters, input_size_of, weights_digest
from subdistill_hf.pipeline.energy import Energy
from subdistill_hf.pipeline.evaluation import (
    Classifier,
    count_operations,
    measure_latency,
    predict,
    processor_name,
    score,
)
from subdistill_hf.pipeline.mark_scores import mark_scores, unmarked_test
from subdistill_hf.pipeline.task import Task

VERSIONED = ("torch", "transformers", "timm", "datasets", "accelerate")
WITHOUT_EFFECT = (
    "teacher_cache_dir",  # where targets are kept
    "teacher_cache_limit",
    "cuda_graphs",  # how fast it is
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

    @property
    def training_seconds(self) -> float | None:
        """How long the training took, when all of it was timed."""
        history = [] if self.resumed else self.history
        return next((entry["train_runtime"] for entry in history if "train_runtime" in entry), None)


def build_report(task: Task, trained: Mapping[str, TrainedStudent], command: str | None) -> dict[str, Any]:
    """Measure the teacher and the students on the test images, and collect what else is known of the run.

    Args:
        task: what all methods shared.
        trained: method to trained student; `task.config.method` is the one that is published.
        command: how to run this again.

    Returns:
        The report; `usage` and the student's `size_bytes` are `None` until the student is written.
    """
    published = trained[task.config.method]
    config = copy.copy(task.config)
    config.learning_rate, config.rotation = published.learning_rate, published.rotation  # what suited, if not given
    return {
        "published": config.method,
        "created": datetime.date.today().isoformat(),
        "dataset": _described_dataset(task),
        "classes": list(task.data.subtask.names),
        "subtask": [str(entry) for entry in task.options.classes],
        "teacher": _described_teacher(task.teacher) | {"adaptation": task.adaptation},
        "student": _described_student(published),
        "results": _results(task, trained),
        "energy_source": published.energy.source,
        "latency_machine": f"{processor_name()}, 1 thread, 1 image, torch {torch.__version__.split('+')[0]}",
        "subspaces": [
            {
                "teacher_layer": pair.teacher.name,
                "student_layer": pair.student.name,
                **published.subspaces[pair.teacher.name].described(),
            }
            for pair in published.pairs
            if pair.teacher.name in published.subspaces
        ],
        "hyperparameters": changed_options(config),
        "histories": {method: student.history for method, student in trained.items()},
        "versions": {"subdistill_hf": __version__, **{name: importlib.metadata.version(name) for name in VERSIONED}},
        "usage": None,
        "command": command,
    }


def _results(task: Task, trained: Mapping[str, TrainedStudent]) -> list[dict[str, Any]]:
    """The figures of the teacher and of each student."""
    subtask, test, workers = task.data.subtask, task.test, task.config.dataloader_num_workers
    classifiers = {"teacher": Classifier(task.teacher.model, task.teacher.processor, subtask.teacher_ids)}
    classifiers |= {method: Classifier(one.model, one.student.processor) for method, one in trained.items()}
    logits = {name: predict(classifier, test, workers=workers) for name, classifier in classifiers.items()}
    clean = unmarked_test(task.data)
    latencies = measure_latency(classifiers, test)
    return [
        {
            "method": name,
            **score(logits[name], test, subtask.names, logits["teacher"] if name != "teacher" else None),
            **(
                {}
                if clean is None
                else mark_scores(task.data, logits[name], predict(classifier, clean, workers=workers))
            ),
            "parameters": count_parameters(classifier.model),
            "operations": count_operations(classifier, test),
            "latency_ms": latencies[name],
            "learning_rate": trained[name].learning_rate if name in trained else None,
            "training_seconds": trained[name].training_seconds if name in trained else None,
            "training_kilowatt_hours": trained[name].energy.kilowatt_hours if name in trained else None,
        }
        for name, classifier in classifiers.items()
    ]


def _described_dataset(task: Task) -> dict[str, Any]:
    data = task.data
    return {
        "name": data.name,
        "hub_id": data.hub_id,
        "revision": data.revision,
        "train_images": len(data.train),
        "validation_images": len(data.validation),
        "test_images": len(data.test),
        "test_split": data.test_split,
        "official_test": data.official_test,
        "train_images_per_class": data.images_per_class(),
        "mark": None if data.marking is None else data.marking.described(data.subtask),
        "augmentation": _augmentation(task),
    }


def _augmentation(task: Task) -> str:
    """What was done to the training images, in words."""
    done = task.augmentation + (" and mirroring" if task.flip else "")
    mixed = format_percent(task.options.mix)
    return f"{done}; {mixed} of the views mixed with a view of another image" if task.options.mix else done


def _described_student(trained: TrainedStudent) -> dict[str, Any]:
    student = trained.student
    return {
        "recipe": student.name,
        "hub_id": student.hub_id,
        "revision": student.revision,
        "license": student.license,
        "model_class": type(trained.model).__name__,
        "parameters": count_parameters(trained.model),
        "size_bytes": None,
        "lora": None,
        "image_size": list(input_size_of(student.processor)),
    }


def _described_teacher(teacher: LoadedModel) -> dict[str, Any]:
    return {
        "name": teacher.name,
        "hub_id": teacher.hub_id,
        "revision": teacher.revision,
        "digest": weights_digest(teacher.model),
        "model_class": type(teacher.model).__name__,
        "parameters": count_parameters(teacher.model),
        "license": teacher.license,
        "teacher_classes": len(teacher.labels),
        "base": None if teacher.base is None else vars(teacher.base),
    }


def changed_options(config: SubDistillConfig) -> dict[str, Any]:
    """The options that shape the result and differ from their defaults."""
    defaults = SubDistillConfig(output_dir=config.output_dir, use_cpu=config.use_cpu)
    without = {"num_train_epochs"} if config.max_steps > 0 else set()  # the steps decide
    shown = [name for name in SHOWN_ARGUMENTS if name not in without]
    values = {name: (getattr(config, name), getattr(defaults, name)) for name in shown}
    return {name: getattr(value, "value", value) for name, (value, default) in values.items() if value != default}


def results_table(report: Mapping[str, Any]) -> str:
    """The results as a table for the terminal."""
    mark = report["dataset"].get("mark")
    of_mark = () if mark is None else ("without mark", "follows mark")
    header: tuple[str, ...] = ("", "accuracy", *of_mark, "parameters", "ms/image", "trained in")
    rows = [header]
    for result in report["results"]:
        seconds = result["training_seconds"]
        figures = [] if mark is None else [result["clean_accuracy"], result["mark_followed"]]
        rows.append(
            (
                method_label(result["method"]),
                *(f"{100 * figure:.1f} %" for figure in [result["accuracy"], *figures]),
                f"{result['parameters']:,}",
                f"{result['latency_ms']['median']:.2f}",
                "" if seconds is None else f"{seconds:.0f} s",
            )
        )
    lines = table(rows, numbers_from=1)
    count = report["dataset"]["test_images"]
    return f"\n{lines}\n\n{len(report['classes'])} classes, {count} test images; {report['latency_machine']}"
