"""Compare students that may answer "none of these" with closed ones, and with two scores of the closed ones.

    python benchmarks/none_of_these.py --output none_of_these.json
    python benchmarks/none_of_these.py --dataset FOLDER_OF_CIFAR-100 --teacher cifar100-resnet18 \
        --superclasses large_carnivores flowers --output none_of_these_cifar100.json

Both students of a pair see the same images of their classes. Both are tested on the same unknown images: near ones of
classes that the open student was trained with as "none of these", and far ones of classes that neither saw.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

from trained_student import RATES, make_parser, trained

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.other_classes import with_other_classes
from subdistill_hf.pipeline.evaluation import predict, score
from subdistill_hf.pipeline.unknown import accuracy_of_classes, measured_unknown


def train(given: argparse.Namespace, superclass: str, seed: int, method: str, other: bool) -> dict[str, Any]:
    """Train one student, and measure it on known and unknown test images."""
    options = TaskOptions(
        dataset=given.dataset,
        teacher=given.teacher,
        classes=[f"superclass:{superclass}"],
        student=given.student,
        train_images_per_class=given.images,
        other_class=other,
        validation_fraction=0.2,  # the closed student would hold out none, and see more images
    )
    task, classifier = trained(options, method, seed, given.steps)
    # the unknown images are those of the open student for both
    opened = replace(options, other_class=True)
    others = (task.data if other else with_other_classes(task.data, opened, seed)).others
    assert others is not None
    known = predict(classifier, task.test)
    tested = replace(task.data, others=others)
    kinds = [kind for kind in ("near", "far") if getattr(others, kind) is not None]
    unknown = {kind: predict(classifier, tested.views(kind)) for kind in kinds}
    found = score(known, task.test, task.data.output_names, None)
    return {
        "superclass": superclass,
        "seed": seed,
        "method": method,
        "other_class": other,
        "accuracy": found.accuracy,  # an answer "none of these" counts as an error
        "accuracy_of_classes": accuracy_of_classes(known, task.test.labels) if other else found.accuracy,
        "unknown": [asdict(each) for each in measured_unknown(known, unknown, other)],
    }


def main() -> None:
    """Train all students, and write their figures after each."""
    parser = make_parser(__doc__, 100, "training images a class", "none_of_these.json")
    given = parser.parse_args()
    rows = []
    for superclass in given.superclasses:
        for seed in given.seeds:
            for method in RATES:
                for other in (False, True):
                    rows.append(train(given, superclass, seed, method, other))
                    print({name: value for name, value in rows[-1].items() if name != "unknown"})
                    given.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
