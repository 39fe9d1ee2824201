"""A new head for a teacher, trained on what its body gives once, against training it inside the model.

Both ways adapt the same teacher to the same images and are tested on the same test images. For
`docs/costs.md`:

    python benchmarks/head_adaptation.py --teacher TEACHER --dataset DATASET \
        --classes superclass:vehicles_1 --train_images_per_class 100 --seeds 3

DATASET is `uoft-cs/cifar100`, or a folder with its files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.pipeline.adaptation import adapt, plan_adaptation
from subdistill_hf.pipeline.adaptation_training import Adaptation
from subdistill_hf.pipeline.auto import images_of_a_step, resolve_adaptation
from subdistill_hf.pipeline.evaluation import Classifier, predict
from subdistill_hf.pipeline.task import load_task


def inside_the_model(adaptation: Adaptation) -> Adaptation:
    """The same adaptation, with a head that is trained inside the model."""
    task = adaptation.task
    options, choices = resolve_adaptation(
        task.options, len(adaptation.data.train), images_of_a_step(task.config), head_alone=False
    )
    return replace(adaptation, options=options, choices=choices, head_bytes=None)


def measured(way: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on the test images, and the seconds of CPU that the adaptation took."""
    views = given.views if way == "recorded" else 0
    options = TaskOptions(
        teacher=given.teacher,
        dataset=given.dataset,
        classes=given.classes,
        train_images_per_class=given.train_images_per_class,
        adapt_teacher="head",
        adapt_views=views,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SubDistillConfig(output_dir=folder, seed=seed, use_cpu=True, report_to="none", disable_tqdm=True)
        task = load_task(options, config)
        adaptation = plan_adaptation(task, Path(folder, "runs"), resume=False)
        if way == "inside the model":
            adaptation = inside_the_model(adaptation)
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            fitted = adapt(adaptation, Path(folder, "runs"))
        seconds = time.process_time() - start
        classifier = Classifier(fitted.teacher.model, fitted.teacher.processor, fitted.data.subtask.teacher_ids)
        correct = predict(classifier, task.test, batch_size=32).argmax(1) == torch.tensor(task.test.labels)
    assert fitted.adaptation is not None
    return {
        "way": way,
        "seed": seed,
        "train_images": len(adaptation.data.train),
        "epochs": fitted.adaptation["epochs"],
        "views": views,
        "validation_accuracy": fitted.adaptation["validation_accuracy"],
        "test_accuracy": float(correct.float().mean()),
        "cpu_seconds": seconds,
    }


def main() -> None:
    """Measure, and print a line for each run and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--dataset", default="uoft-cs/cifar100")
    parser.add_argument("--classes", nargs="+", default=["superclass:vehicles_1"])
    parser.add_argument("--train_images_per_class", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=0)
    parser.add_argument("--ways", nargs="+", default=["recorded", "inside the model"])
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for way in given.ways:
        for seed in range(given.seeds):
            runs.append(measured(way, seed, given))
            print(json.dumps(runs[-1]), flush=True)
        of_way = [run for run in runs if run["way"] == way]
        means = {
            name: round(statistics.mean(run[name] for run in of_way), 4) for name in ("test_accuracy", "cpu_seconds")
        }
        print(way, means, flush=True)
    if given.output:
        given.output.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
