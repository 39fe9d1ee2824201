"""Distil without any label, and measure the students with labels that only the test knows.

    python benchmarks/no_labels.py --output no_labels.json
    python benchmarks/no_labels.py --dataset FOLDER_OF_CIFAR-100 --teacher cifar100-resnet18 \
        --superclasses large_carnivores flowers --output no_labels_cifar100.json

The teacher chooses the images of the subtask among 5,000 of all classes. Each method is trained on them, and tested on
the labelled test images of the subtask. Each finished student is a row of the file: the same command goes on where it
was. At last a table of all rows is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from trained_student import RATES, make_parser, mean, run_all, trained

from subdistill_hf.config.methods import method_label
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.subtask import match_teacher
from subdistill_hf.formatting import table
from subdistill_hf.pipeline.evaluation import Classifier, predict, score


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
    task, classifier = trained(options, method, seed, given.steps)
    test = labelled.views("test")
    ids = match_teacher(labelled.subtask, task.teacher.labels, labelled.class_names).teacher_ids
    names = labelled.subtask.names
    answers = predict(Classifier(task.teacher.model, task.teacher.processor, ids), test)
    found = score(predict(classifier, test), test, names, answers)
    return {
        "train_images": len(task.data.train),
        "accuracy": found.accuracy,
        "agreement": found.teacher_agreement,
        "teacher_accuracy": score(answers, test, names, None).accuracy,
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Means over subtasks, with 95 % confidence intervals."""
    lines: list[Sequence[str]] = [
        ("test images, %", "runs", "accuracy", "agreement", "the teacher's accuracy", "training images")
    ]
    for method in RATES:
        own = [row for row in rows if row["method"] == method]
        if own:
            figures = [mean([row[name] for row in own], own) for name in ("accuracy", "agreement", "teacher_accuracy")]
            images = mean([row["train_images"] for row in own], own, 0, 1)
            lines.append((method_label(method), str(len(own)), *figures, images))
    return table(lines, numbers_from=1)


def main() -> None:
    """Train all students that the file lacks, and print what they came to."""
    parser = make_parser(__doc__, 5000, "images of all classes that the teacher looks at", "no_labels.json")
    parser.add_argument("--threshold", type=float, default=0.5)
    given = parser.parse_args()
    print(summary(run_all(given, train, {}, ["images", "threshold"])))


if __name__ == "__main__":
    main()
