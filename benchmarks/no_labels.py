"""Distil without any label, and measure the students with labels that only the test knows.

    python benchmarks/no_labels.py --output no_labels.json
    python benchmarks/no_labels.py --dataset FOLDER_OF_CIFAR-100 --teacher cifar100-resnet18 \
        --superclasses large_carnivores flowers --output no_labels_cifar100.json

The teacher chooses the images of the subtask among 5,000 of all classes. Each method is trained on them, and tested on
the labelled test images of the subtask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.subtask import match_teacher
from subdistill_hf.pipeline.evaluation import Classifier, predict, score
from subdistill_hf.pipeline.run import build_trainer, teacher_of
from subdistill_hf.pipeline.task import load_task

GLYPHS = ("chess_pieces", "round_digits", "accented_letters", "zodiac_signs", "dice", "currency_signs", "music_signs")
RATES = {"kd": 4e-3, "subdistill": 1.6e-2}


def train(given: argparse.Namespace, superclass: str, seed: int, method: str) -> dict[str, Any]:
    """Train one student, and measure it and the teacher on the labelled test images."""
    labelled = load_subtask(TaskOptions(dataset=given.dataset, classes=[f"superclass:{superclass}"]), seed)
    options = TaskOptions(
        dataset=given.dataset,
        teacher=given.teacher,
        classes=list(labelled.subtask.names),
        student=given.student,
        label_column="none",
        unlabelled_images=given.images,
        unlabelled_threshold=given.threshold,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SubDistillConfig(
            output_dir=folder,
            method=method,
            seed=seed,
            max_steps=given.steps,
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
    test = labelled.views("test")
    ids = match_teacher(labelled.subtask, task.teacher.labels, labelled.class_names).teacher_ids
    names = labelled.subtask.names
    answers = predict(Classifier(task.teacher.model, task.teacher.processor, ids), test)
    found = score(predict(Classifier(trainer.model, student.processor), test), test, names, answers)
    return {
        "superclass": superclass,
        "seed": seed,
        "method": method,
        "images": len(task.data.train),
        "accuracy": found.accuracy,
        "agreement": found.teacher_agreement,
        "teacher": score(answers, test, names, None).accuracy,
    }


def main() -> None:
    """Train all students, and write their figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="glyphs-100")
    parser.add_argument("--teacher", default="glyphs-resnet")
    parser.add_argument("--student", default="resnet:widths=16-24-32-48")
    parser.add_argument("--superclasses", nargs="+", default=list(GLYPHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5000, help="images of all classes that the teacher looks at")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--output", type=Path, default=Path("no_labels.json"))
    given = parser.parse_args()
    rows = []
    for superclass in given.superclasses:
        for seed in given.seeds:
            for method in RATES:
                rows.append(train(given, superclass, seed, method))
                print(rows[-1])
                given.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
