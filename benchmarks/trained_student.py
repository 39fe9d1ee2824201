"""One student of a superclass, trained at given settings: what `no_labels.py` and `none_of_these.py` share."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.pipeline.run import build_trainer, teacher_of
from subdistill_hf.pipeline.task import Task, load_task

GLYPHS = ("chess_pieces", "round_digits", "accented_letters", "zodiac_signs", "dice", "currency_signs", "music_signs")
RATES = {"kd": 4e-3, "subdistill": 1.6e-2}
"""Methods, and their learning rates."""


def make_parser(description: str | None, images: int, images_help: str, output: str) -> argparse.ArgumentParser:
    """The command line.

    Args:
        description: a text, of which the first line is shown.
        images: default of `--images`.
        images_help: what they are.
        output: default of `--output`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--dataset", default="glyphs-100")
    parser.add_argument("--teacher", default="glyphs-resnet")
    parser.add_argument("--student", default="resnet:widths=16-24-32-48")
    parser.add_argument("--superclasses", nargs="+", default=list(GLYPHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=images, help=images_help)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--output", type=Path, default=Path(output))
    return parser


def trained(options: TaskOptions, method: str, seed: int, steps: int) -> tuple[Task, Classifier]:
    """Train a student.

    Args:
        options: the task.
        method: a key of `RATES`.
        seed: of images, views and weights.
        steps: of the training.

    Returns:
        The task, and the student as a classifier.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = SubDistillConfig(
            output_dir=folder,
            method=method,
            seed=seed,
            max_steps=steps,
            learning_rate=RATES[method],
            per_device_train_batch_size=32,
            teacher_cache="8",
            rotation="auto",
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        )
        task = load_task(options, config)
        trainer, student, _ = build_trainer(task, task.config, teacher_of(task))
        trainer.train()
    return task, Classifier(trainer.model, student.processor)
