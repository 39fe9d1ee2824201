"""One student of a superclass, trained at given settings: what `no_labels.py` and `none_of_these.py` share."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subdistill_hf.benchmark.statistics import Estimate
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.config.training import SubDistillConfig, with_arguments
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
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
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
        steps: with images of the classes. Images of other classes add theirs, as they do on the command line.

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
        images, others = (
            len(task.data.rows("taught")),
            0 if task.data.others is None else task.data.others.train_images,
        )
        config = with_arguments(task.config, max_steps=round(steps * images / (images - others)))
        trainer, student, _ = build_trainer(task, config, teacher_of(task))
        trainer.train()
    return task, Classifier(trainer.model, student.processor)


def run_all(
    given: argparse.Namespace,
    train: Callable[..., dict[str, Any]],
    conditions: Mapping[str, Sequence[Any]],
    settings: Sequence[str],
) -> list[dict[str, Any]]:
    """Train a student for each superclass, seed, method and condition that the file of figures lacks.

    The file is written after each, so that a run that was killed goes on where it was.

    Args:
        given: the command line.
        train: takes superclass, seed, method and the conditions, and returns figures.
        conditions: further arguments of `train`: name to values.
        settings: names of what else the figures depend on; they must be those of the file.

    Returns:
        All rows of the file.
    """
    same = {name: getattr(given, name) for name in ("dataset", "teacher", "student", "steps", *settings)}
    places = {name: Path(value) for name, value in same.items() if isinstance(value, str)}
    same |= {name: place.name for name, place in places.items() if place.exists()}  # folders of this machine
    rows = json.loads(given.output.read_text(encoding="utf-8")) if given.output.is_file() else []
    if others := [row for row in rows if not same.items() <= row.items()]:
        found = {name: others[0].get(name) for name in same}
        raise SystemExit(f"{given.output} has figures of {found}, and these would be of {same}: give another --output")
    axes = {"superclass": given.superclasses, "seed": given.seeds, "method": given.methods, **conditions}
    for values in itertools.product(*axes.values()):
        entry = dict(zip(axes, values, strict=True))
        if any(entry.items() <= row.items() for row in rows):
            continue
        rows.append({**same, **entry, **train(given, **entry)})
        shown = {name: value for name, value in rows[-1].items() if not isinstance(value, list | dict)}
        print({name: value for name, value in shown.items() if name not in same}, flush=True)
        with written_whole(given.output) as part:
            part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def mean(values: Sequence[float], rows: Sequence[dict[str, Any]], digits: int = 1, scale: float = 100) -> str:
    """The mean of a value of each row with its 95 % confidence interval, see `Estimate.over_subtasks`."""
    blocks = [(row["superclass"], row["seed"]) for row in rows]
    found = Estimate.over_subtasks([scale * value for value in values], blocks)
    return f"{found.mean:.{digits}f}" + ("" if len(values) < 2 else f" ± {found.interval:.{digits}f}")
