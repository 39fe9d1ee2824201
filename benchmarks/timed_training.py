"""A whole training with a teacher cache of its own, timed: what `cache_views.py` and `speed.py` share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.training.trainer import SubDistillTrainer


def timed_training(
    data: SubtaskData,
    models: tuple[nn.Module, nn.Module],
    processors: tuple[Any, Any],
    class_ids: Sequence[int] | None,
    views: str,
    **options: Any,
) -> tuple[SubDistillTrainer, float]:
    """Train on shifted and mirrored images.

    Args:
        data: images of the subtask.
        models: student and teacher.
        processors: their image processors.
        class_ids: for each output of the student, the teacher's output of the same class.
        views: in the teacher cache, or `"off"`.
        options: of the configuration.

    Returns:
        The trainer, and the seconds of `train()`: fit and writing of the cache included.
    """
    student, teacher = models
    with tempfile.TemporaryDirectory() as folder:
        config = SubDistillConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            teacher_cache=views,
            teacher_cache_dir=f"{folder}/targets",
            **options,
        )
        trainer = SubDistillTrainer(
            student,
            config,
            teacher=teacher,
            teacher_class_ids=class_ids,
            train_dataset=ViewDataset(data.train, data.columns, "pad_crop", seed=config.seed, views=config.views),
            fit_dataset=ViewDataset(data.train, data.columns),
            data_collator=ViewCollator(*processors),
        )
        start = time.perf_counter()
        trainer.train()
        return trainer, time.perf_counter() - start
