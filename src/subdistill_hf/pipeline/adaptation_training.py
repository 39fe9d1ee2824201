"""Train a teacher, or its head alone, on the images that it is fitted to."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import how_to_go_on
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.formatting import count
from subdistill_hf.models.adapters import head_modules
from subdistill_hf.models.loading import input_size_of
from subdistill_hf.models.zero_shot import ZeroShotClassifier
from subdistill_hf.pipeline.auto import HEAD_RATES, Choice
from subdistill_hf.pipeline.task import Task
from subdistill_hf.teacher.head_inputs import HeadInputs, Heads, RecordingRequest, record_head_inputs
from subdistill_hf.teacher.head_training import train_heads
from subdistill_hf.training.callbacks import show_progress
from subdistill_hf.training.interruption import train_to_its_end
from subdistill_hf.training.trainer import SubDistillTrainer

ADAPTER_FOLDER = "teacher-adapter"


@dataclass(frozen=True)
class Adaptation:
    """How a teacher is fitted to a dataset; everything that can be refused was refused when it was made.

    Attributes:
        task: of the run; its teacher has a new, untrained head, or that of its words, and the matched classes.
        data: the images that the teacher learns from.
        targets: the modules that get a low-rank change; none when the head alone is trained.
        options: the task's, in which nothing about the adaptation is left open.
        choices: what was chosen for it.
        head_bytes: the memory that what the head reads takes for an image, where the head is trained on that alone;
            `None` where it is trained inside the model.
        identity: what another run must share to use the adapter again.
        record: what is known of the adapter that is there already; `None` when it has to be made.
        checkpoint: where an interrupted training goes on.
        whole: the teacher with all its outputs, where it takes words: those of other texts are not trained.
    """

    task: Task
    data: SubtaskData
    targets: tuple[str, ...]
    options: TaskOptions
    choices: Sequence[Choice]
    head_bytes: int | None
    identity: Mapping[str, Any]
    record: Mapping[str, Any] | None
    checkpoint: str | None
    whole: ZeroShotClassifier | None = None

    @property
    def folder(self) -> Path:
        """Where the adapter lies."""
        return self.task.folder / ADAPTER_FOLDER

    @property
    def recorded_inputs(self) -> int:
        """How many inputs of the head are recorded and kept in memory."""
        return len(self.data.train) * (1 + self.options.adapt_views) + len(self.data.validation)


def heads_of(model: nn.Module) -> Heads:
    """The modules that a new head consists of, by name."""
    return {name: model.get_submodule(name) for name in head_modules(model)}


def fitted_head(adaptation: Adaptation) -> dict[str, Any]:
    """Train the head on what the frozen body gives, in place in the first process; what is known of that."""
    task, data, options = adaptation.task, adaptation.data, adaptation.options
    request = RecordingRequest.for_training(task.config)
    start = time.perf_counter()
    model = task.teacher.model.to(request.device)
    passes = [(data.views("train"), 0)]
    if options.adapt_views:
        augmented = _augmented(adaptation)
        passes += [(augmented, view) for view in range(options.adapt_views)]
    recorded = record_head_inputs(
        model,
        heads_of(model),
        [*passes, (data.views("validation"), 0)],
        ViewCollator(task.teacher.processor),
        request,
    )
    if not recorded:
        model.cpu()
        return {}
    rate = options.adapt_learning_rate
    fit = train_heads(
        heads_of(model),
        HeadInputs.joined(recorded[:-1]),
        recorded[-1],
        math.ceil(options.adapt_epochs),
        HEAD_RATES if rate is None else [rate],
        task.config.seed,
        from_own_weights=adaptation.whole is not None,
    )
    model.cpu()
    best = f"after pass {fit.best_epoch}, the best" if fit.best_epoch else "no pass was better than the words"
    print(
        f"head     {fit.epochs} passes over {count(len(passes) * len(data.train))} inputs at a learning rate of "
        f"{fit.learning_rate:g}; {best}, {100 * fit.validation_accuracy:.1f} % of "
        f"{count(len(data.validation))} validation images"
    )
    return {
        "validation_accuracy": fit.validation_accuracy,
        "epochs": fit.best_epoch,
        "learning_rate": fit.learning_rate,
        "augmented_views": options.adapt_views,
        "training_seconds": time.perf_counter() - start,
    }


def _augmented(adaptation: Adaptation) -> ViewDataset:
    """The augmented training images that a teacher is fitted to."""
    task = adaptation.task
    size = input_size_of(task.teacher.processor)
    return adaptation.data.views("train", task.augmentation, task.flip, size=size, seed=task.config.seed)


def trained(adaptation: Adaptation, adapted: Any, folder: Path) -> tuple[dict[str, Any], Any]:
    """Train a model with an adapter; what is known of that, and the model."""
    trainer = trainer_of(adaptation, adapted, folder)
    set_seed(adaptation.task.config.seed)
    output = adaptation.task.folder
    train_to_its_end(trainer, adaptation.checkpoint, "the teacher", lambda: f"To go on: {how_to_go_on(output)}")
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    measured = {
        "validation_accuracy": trainer.evaluate()["eval_accuracy"],
        "epochs": adaptation.options.adapt_epochs,
        "learning_rate": adaptation.options.adapt_learning_rate,
        "training_seconds": None if adaptation.checkpoint or not seconds else seconds[-1],
    }
    model: Any = trainer.model
    return measured, model.cpu()


def trainer_of(adaptation: Adaptation, model: Any, folder: Path) -> SubDistillTrainer:
    """The trainer of a teacher, which is the student of that training and learns from the labels alone.

    Args:
        adaptation: how it is fitted.
        model: the teacher, with the changes and the head that are trained.
        folder: of its checkpoints.

    Raises:
        SubDistillError: when it cannot be trained with these options.
    """
    task, data = adaptation.task, adaptation.data
    config: SubDistillConfig = copy.copy(task.config)
    config.method, config.task_weight = "scratch", 1.0
    config.num_train_epochs, config.max_steps = adaptation.options.adapt_epochs, -1
    assert adaptation.options.adapt_learning_rate is not None
    config.learning_rate = adaptation.options.adapt_learning_rate
    config.eval_strategy, config.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
    config.eval_steps = config.save_steps = 0.1  # whatever suits the length of the student's training
    config.load_best_model_at_end, config.save_total_limit = True, 2
    config.metric_for_best_model, config.greater_is_better = "accuracy", True
    config.push_to_hub = False
    config.output_dir = str(folder)
    trainer = SubDistillTrainer(
        model,
        config,
        train_dataset=_augmented(adaptation),
        eval_dataset=data.views("validation"),
        data_collator=ViewCollator(task.teacher.processor),
    )
    show_progress(trainer, "teacher")
    return trainer
