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
from typing import Any

from trained_student import RATES, make_parser, trained

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.subtask import match_teacher
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
    parser = make_parser(__doc__, 5000, "images of all classes that the teacher looks at", "no_labels.json")
    parser.add_argument("--threshold", type=float, default=0.5)
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
