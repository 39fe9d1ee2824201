"""One run from options to a student folder: load, train, evaluate, save, describe."""

from __future__ import annotations

import contextlib
import copy
import datetime
import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, set_seed
from transformers.utils import logging as transformers_logging

from subdistill_hf.checkpoints import last_complete_checkpoint
from subdistill_hf.config import SubDistillConfig
from subdistill_hf.data import EMBEDDED_DATASETS, SubtaskData, load_subtask
from subdistill_hf.errors import SubDistillError
from subdistill_hf.evaluation import Classifier, measure_latency, predict, score
from subdistill_hf.model_card import render_card
from subdistill_hf.models import (
    LoadedModel,
    build_student,
    count_parameters,
    image_size_of,
    load_teacher,
    weights_digest,
)
from subdistill_hf.options import METHODS, DistillationOptions, TaskOptions
from subdistill_hf.plots import plot_all
from subdistill_hf.progress import MethodProgress
from subdistill_hf.subtask import match_teacher
from subdistill_hf.tables import table
from subdistill_hf.trainer import SubDistillTrainer
from subdistill_hf.views import AUGMENTATIONS, ViewCollator, ViewDataset

REPORT_FILE = "report.json"
RUNS_FOLDER = "runs"
EXAMPLE_FILE = "example.png"
SMALL_IMAGE = 64
MIN_EPOCHS = 60
MIN_STEPS = 1200
VERSIONED = ("subdistill-hf", "torch", "transformers", "timm", "datasets", "accelerate")


@dataclass
class _Task:
    """What all methods of a run share."""

    options: TaskOptions
    config: SubDistillConfig
    data: SubtaskData
    test: ViewDataset
    teacher: LoadedModel
    augmentation: str
    flip: bool

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    def views(self, student: LoadedModel) -> ViewDataset:
        sizes = [image_size_of(student.processor), image_size_of(self.teacher.processor)]
        return ViewDataset(
            self.data.train,
            self.data.columns,
            self.augmentation,
            self.flip,
            size=max(sizes),
            seed=self.config.seed,
            views=self.config.teacher_views,
        )

    def plain(self, split: str) -> ViewDataset:
        return ViewDataset(getattr(self.data, split), self.data.columns)


@dataclass
class _Run:
    """The training of one method."""

    trainer: SubDistillTrainer
    student: LoadedModel
    checkpoint: str | None


def distill(options: TaskOptions, config: SubDistillConfig, command: str | None = None) -> dict[str, Any]:
    """Distil a student as the options say, and leave a folder that plain transformers loads.

    The folder holds the student, its processor, a model card, plots, `report.json` with every figure, and under
    `runs/` the checkpoints of each method.

    Args:
        options: teacher, student, dataset and classes.
        config: training arguments; `config.output_dir` is the folder.
        command: how to run this again, for the card.

    Returns:
        The report, as it is written to `report.json`.

    Raises:
        SubDistillError: for options that do not fit together, before anything is trained or written.
    """
    transformers_logging.disable_progress_bar()  # its bars for reading and writing weights would break up ours
    methods = _methods(options, config)
    _check_folder(options, config)
    task = _load(options, config)
    main = config.process_index == 0
    if main:
        _announce(task)
    try:
        runs = {method: _prepare(task, method, announce=main) for method in methods}
    except SubDistillError:
        _remove_empty_folders(task.folder)
        raise
    if main and not _resume_option(config):
        _remove_old_run(task.folder)
    for run in runs.values():
        set_seed(config.seed)
        run.trainer.train(resume_from_checkpoint=run.checkpoint)
    if not main:
        return {}
    report = _report(task, runs, command)
    _write(task, runs[config.method], report)
    print(results_table(report))
    print(f"\nThe student is in {task.folder}; its card is {task.folder / 'README.md'}")
    return report


def _methods(options: TaskOptions, config: SubDistillConfig) -> list[str]:
    """The methods to train, baselines first."""
    if unknown := [method for method in options.compare if method not in METHODS]:
        raise SubDistillError(f"compare={unknown[0]!r}: expected methods among {', '.join(METHODS)}")
    wanted = {config.method, *options.compare}
    return [method for method in ("scratch", "kd", "subdistill") if method in wanted]


def _check_folder(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse to mix two runs in one folder."""
    folder = Path(config.output_dir)
    if folder.is_file():
        raise SubDistillError(f"output_dir={config.output_dir!r} is a file: expected a folder")
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


def _remove_old_run(folder: Path) -> None:
    """Make room for a new run; called when nothing can refuse it any more."""
    shutil.rmtree(folder / RUNS_FOLDER, ignore_errors=True)
    (folder / REPORT_FILE).unlink(missing_ok=True)


def _remove_empty_folders(folder: Path) -> None:
    """Take back the folders that trainers made for a run that was refused."""
    for path in sorted([folder, *folder.rglob("*")], reverse=True):
        with contextlib.suppress(OSError):  # it holds something, or is a file
            path.rmdir()


def _load(options: TaskOptions, config: SubDistillConfig) -> _Task:
    if options.augmentation != "auto" and options.augmentation not in AUGMENTATIONS:
        raise SubDistillError(
            f"augmentation={options.augmentation!r}: expected auto or one of {', '.join(AUGMENTATIONS)}"
        )
    with config.main_process_first(desc="loading images"):
        data = load_subtask(
            options.dataset,
            options.classes,
            options.train_images_per_class,
            options.validation_fraction,
            config.seed,
        )
    teacher = load_teacher(options.teacher, options.trust_remote_code)
    subtask = match_teacher(data.subtask, teacher.labels, data.class_names)
    data = SubtaskData(**{**vars(data), "subtask": subtask})
    test = ViewDataset(data.test, data.columns)  # decoded before training, so that a damaged image is found now
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        images_per_step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
        config.num_train_epochs = enough_epochs(len(data.train), images_per_step)
    augmentation = options.augmentation
    if augmentation == "auto":
        augmentation = "pad_crop" if max(test.image(0).shape) <= SMALL_IMAGE else "resized_crop"
    flip = options.dataset not in EMBEDDED_DATASETS if options.flip is None else options.flip
    return _Task(options, config, data, test, teacher, augmentation, flip)


def enough_epochs(images: int, images_per_step: int) -> float:
    """The epochs of a run that was given neither epochs nor steps: at least `MIN_EPOCHS`, and `MIN_STEPS` steps."""
    return float(max(MIN_EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / images_per_step))))


def _announce(task: _Task) -> None:
    data, config = task.data, task.config
    print(
        f"{config.world_size} process{'es' if config.world_size > 1 else ''} on {config.device.type}, "
        f"{torch.get_num_threads()} threads each"
    )
    print(f"teacher  {task.teacher.name}: {count_parameters(task.teacher.model):,} parameters")
    counts = f"{len(data.train)} to train, {len(data.validation)} to validate, {len(data.test)} to test"
    print(f"images   {data.name}: {counts}")
    print("subtask  output: class (label in the dataset, output of the teacher)")
    assert data.subtask.teacher_ids is not None
    for output, (name, label, teacher_id) in enumerate(
        zip(data.subtask.names, data.subtask.dataset_ids, data.subtask.teacher_ids, strict=True)
    ):
        print(f"         {output}: {name} ({label}, {teacher_id})")


def _prepare(task: _Task, method: str, announce: bool) -> _Run:
    """Everything of a method's training that can be refused, so that no other method is trained in vain."""
    config = copy.copy(task.config)
    config.method = method
    config.output_dir = str(task.folder / RUNS_FOLDER / method)
    set_seed(config.seed)  # every method starts from the same student
    student = build_student(
        task.options.student, task.data.subtask.names, task.teacher.processor, task.options.trust_remote_code
    )
    trainer = SubDistillTrainer(
        student.model,
        config,
        teacher=task.teacher.model,
        teacher_class_ids=task.data.subtask.teacher_ids,
        train_dataset=task.views(student),
        fit_dataset=task.plain("train"),
        eval_dataset=task.plain("validation"),
        data_collator=ViewCollator(student.processor, task.teacher.processor),
        processing_class=student.processor,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not config.disable_tqdm:
        trainer.add_callback(MethodProgress(method))
    if announce and trainer.pairs:
        print(f"\n{trainer.layer_preview()}\n")
    checkpoint = _checkpoint(_resume_option(task.config), Path(config.output_dir))
    trainer.prepare_distillation(checkpoint)
    return _Run(trainer, student, checkpoint)


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


# The report


def _report(task: _Task, runs: dict[str, _Run], command: str | None) -> dict[str, Any]:
    """Everything the card and the plots say, measured now."""
    data, config, test = task.data, task.config, task.test
    classes = data.subtask.names
    classifiers = {"teacher": Classifier(task.teacher.model, task.teacher.processor, data.subtask.teacher_ids)}
    classifiers |= {method: Classifier(run.trainer.model, run.student.processor) for method, run in runs.items()}
    logits = {name: predict(classifier, test) for name, classifier in classifiers.items()}
    latencies = measure_latency(classifiers, test)
    results = []
    for name, classifier in classifiers.items():
        figures = score(logits[name], test, classes, logits["teacher"] if name != "teacher" else None)
        results.append(
            {
                "method": name,
                **figures,
                "parameters": count_parameters(classifier.model),
                "latency_ms": latencies[name],
                "training_seconds": _training_seconds(runs[name]) if name in runs else None,
            }
        )
    trainer, student = runs[config.method].trainer, runs[config.method].student
    return {
        "published": config.method,
        "created": datetime.date.today().isoformat(),
        "dataset": {
            "name": data.name,
            "hub_id": data.hub_id,
            "train_images": len(data.train),
            "validation_images": len(data.validation),
            "test_images": len(data.test),
            "test_split": data.test_split,
            "train_images_per_class": data.images_per_class(),
            "augmentation": task.augmentation + (" and mirroring" if task.flip else ""),
        },
        "classes": list(classes),
        "teacher": {
            "name": task.teacher.name,
            "hub_id": task.teacher.hub_id,
            "revision": task.teacher.revision,
            "digest": weights_digest(task.teacher.model),
            "model_class": type(task.teacher.model).__name__,
            "parameters": count_parameters(task.teacher.model),
            "license": task.teacher.license,
            "teacher_classes": len(task.teacher.labels),
        },
        "student": {
            "recipe": student.name,
            "model_class": type(student.model).__name__,
            "parameters": count_parameters(student.model),
            "size_bytes": None,  # known once it is written
            "image_size": list(image_size_of(student.processor)),
        },
        "results": results,
        "latency_machine": f"{processor_name()}, 1 thread, 1 image, torch {torch.__version__.split('+')[0]}",
        "subspaces": [
            {
                "teacher_layer": pair.teacher.name,
                "student_layer": pair.student.name,
                **trainer.subspaces[pair.teacher.name].described(),
            }
            for pair in trainer.pairs
        ],
        "hyperparameters": _changed_options(config),
        "histories": {method: run.trainer.state.log_history for method, run in runs.items()},
        "versions": {name.replace("-", "_"): importlib.metadata.version(name) for name in VERSIONED},
        "usage": None,
        "command": command,
    }


def _training_seconds(run: _Run) -> float | None:
    """How long the training took; unknown for a resumed one, whose first part was not timed."""
    history = run.trainer.state.log_history if run.checkpoint is None else []
    return next((entry["train_runtime"] for entry in history if "train_runtime" in entry), None)


SHOWN_ARGUMENTS = (
    *(field.name for field in fields(DistillationOptions)),
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


def _changed_options(config: SubDistillConfig) -> dict[str, Any]:
    """The options that shape the result and differ from their defaults."""
    defaults = SubDistillConfig(output_dir=config.output_dir, use_cpu=config.use_cpu)
    values = {name: (getattr(config, name), getattr(defaults, name)) for name in SHOWN_ARGUMENTS}
    return {name: getattr(value, "value", value) for name, (value, default) in values.items() if value != default}


def processor_name() -> str:
    """The name of the CPU, as the system gives it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# The folder

_USAGE = """\
from transformers import pipeline

classify = pipeline("image-classification", model={model!r})
for answer in classify({image!r}):
    print(f"{{answer['label']}}: {{answer['score']:.3f}}")"""


def _write(task: _Task, run: _Run, report: dict[str, Any]) -> None:
    folder = task.folder
    model: Any = run.trainer.model
    model.save_pretrained(folder)
    run.student.processor.save_pretrained(folder)
    report["student"]["size_bytes"] = (folder / "model.safetensors").stat().st_size
    task.data.test[0][task.data.columns.image].convert("RGB").save(folder / EXAMPLE_FILE)
    drawn = plot_all(report, folder)
    _save_report(report, folder)  # whatever happens to the card, the figures are kept
    report["usage"] = _run_usage(folder)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        render_card(report, plots=drawn).save(folder / "README.md")
    for note in noted:
        print(f"note: {note.message}", file=sys.stderr)
    _save_report(report, folder)


def _save_report(report: dict[str, Any], folder: Path) -> None:
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _run_usage(folder: Path) -> dict[str, str]:
    """Run the card's snippet in a fresh process, so that what the card shows is what happened."""
    code = _USAGE.format(model=".", image=EXAMPLE_FILE)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubDistillError(f"the saved student does not load in a fresh process:\n{done.stderr}")
    return {"code": code, "output": done.stdout.strip()}


LABELS = {"teacher": "teacher", "scratch": "from scratch", "kd": "logit distillation", "subdistill": "SubDistill"}


def results_table(report: dict[str, Any]) -> str:
    """The results as a table for the terminal."""
    header: tuple[str, ...] = ("", "accuracy", "parameters", "ms/image", "trained in")
    rows = [header]
    for result in report["results"]:
        seconds = result["training_seconds"]
        rows.append(
            (
                LABELS.get(result["method"], result["method"]),
                f"{100 * result['accuracy']:.1f} %",
                f"{result['parameters']:,}",
                f"{result['latency_ms']['median']:.2f}",
                "" if seconds is None else f"{seconds:.0f} s",
            )
        )
    lines = table(rows, numbers_from=1)
    count = report["dataset"]["test_images"]
    return f"\n{lines}\n\n{len(report['classes'])} classes, {count} test images; {report['latency_machine']}"
