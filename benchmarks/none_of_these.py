"""Compare students that may answer "none of these" with closed ones, and with two scores of the closed ones.

    python benchmarks/none_of_these.py --output none_of_these.json
    python benchmarks/none_of_these.py --dataset FOLDER_OF_CIFAR-100 --teacher cifar100-resnet18 \
        --superclasses large_carnivores flowers --output none_of_these_cifar100.json

Both students of a pair see the same images of their classes. Both are tested on the same unknown images: near ones of
classes that the open student was trained with as "none of these", far ones of classes that neither saw, and with
`--unknown_images` those of another dataset. Each finished student is a row of the file: the same command goes on where
it was. At last a table of all rows is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from trained_student import RATES, make_parser, mean, run_all, trained

from subdistill_hf.config.methods import method_label
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.unknown_images import UNKNOWN_KINDS
from subdistill_hf.data.other_classes import with_images_from_elsewhere, with_other_classes
from subdistill_hf.formatting import table
from subdistill_hf.pipeline.evaluation import predict, score
from subdistill_hf.pipeline.unknown import (
    ENERGY,
    LARGEST,
    OTHER_SCORE,
    accuracy_of_classes,
    measured_unknown,
    rejection_of,
    with_shifted_other,
)

Row = dict[str, Any]


def train(given: argparse.Namespace, superclass: str, seed: int, method: str, other_class: bool) -> Row:
    """Train one student, and measure it on known and unknown test images."""
    options = TaskOptions(
        dataset=given.dataset,
        teacher=given.teacher,
        classes=[f"superclass:{superclass}"],
        student=given.student,
        train_images_per_class=given.images,
        other_class=other_class,
        test_unknown=True,
        validation_fraction=0.2,  # the closed student would hold out fewer, and see more images
    )
    task, classifier = trained(options, method, seed, given.steps)
    as_trained = score(predict(classifier, task.test), task.test, task.data.output_names, None).accuracy
    classifier = with_shifted_other(task, classifier)
    # the unknown images are those of the open student for both
    tested = task.data
    if not other_class:  # without those that it was loaded with: they would count as copies, and be left out
        tested = with_other_classes(replace(tested, others=None), replace(options, other_class=True), seed)
    if given.unknown_images is not None:
        tested = with_images_from_elsewhere(tested, replace(options, unknown_images=given.unknown_images), seed)
    assert tested.others is not None
    known = predict(classifier, task.test)
    unknown = {kind: predict(classifier, tested.views(kind)) for kind in tested.others.counts()}
    rejection = rejection_of(task, classifier, known, unknown)
    assert rejection is not None
    accuracy = score(known, task.test, task.data.output_names, None).accuracy
    return {
        "accuracy": accuracy,  # an answer "none of these" counts as an error
        "accuracy_as_trained": as_trained,
        "accuracy_of_classes": accuracy_of_classes(known, task.test.labels) if other_class else accuracy,
        "shift": classifier.other_shift,
        "known_kept": rejection.known_kept,
        "unknown_kept": dict(rejection.unknown_kept),
        "unknown": [asdict(each) for each in measured_unknown(known, unknown, other_class)],
    }


def measured(rows: Sequence[Row], kind: str, name: str, figure: str) -> list[float]:
    """A figure of a score, of each row: its `auroc`, or its `false_positives`."""
    return [one[figure] for row in rows for one in row["unknown"] if (one["kind"], one["score"]) == (kind, name)]


def compared(closed: Sequence[Row], opened: Sequence[Row], figure: str, title: str, digits: int, scale: float) -> str:
    """A figure of the answer "none of these" beside those of the two scores of closed students, for each kind."""
    rows: list[Sequence[str]] = [
        (title, "closed, largest", "closed, energy", "open, none of these", "less largest", "less energy")
    ]
    for kind in UNKNOWN_KINDS:
        own = measured(opened, kind, OTHER_SCORE, figure)
        baselines = [measured(closed, kind, name, figure) for name in (LARGEST, ENERGY)]
        if own:
            gaps = [[one - other for one, other in zip(own, each, strict=True)] for each in baselines]
            rows.append([kind, *(mean(each, closed, digits, scale) for each in (*baselines, own, *gaps))])
    return table(rows, numbers_from=1)


def summary(rows: Sequence[Row]) -> str:
    """Means over the pairs of students, with 95 % confidence intervals, and the paired differences of AUROC."""
    lines = []
    for method in RATES:
        pairs: dict[tuple[str, int], dict[bool, Row]] = {}
        for row in rows:
            if row["method"] == method:
                pairs.setdefault((row["superclass"], row["seed"]), {})[row["other_class"]] = row
        both = [pair for pair in pairs.values() if len(pair) == 2]
        if not both:
            continue
        closed, opened = ([pair[other] for pair in both] for other in (False, True))
        accuracies: list[Sequence[str]] = [("", "closed", "open", "open less closed, points")]
        for figure in ("accuracy", "accuracy_of_classes", "accuracy_as_trained", "known_kept"):
            own, theirs = ([row[figure] for row in each] for each in (opened, closed))
            gaps = [one - other for one, other in zip(own, theirs, strict=True)]
            accuracies.append((figure.replace("_", " "), mean(theirs, closed), mean(own, closed), mean(gaps, closed)))
        title = f"{method_label(method)}: {len(both)} closed and open, test images in %, ± 95 % confidence"
        lines += [title, table(accuracies, numbers_from=1), ""]
        lines += [compared(closed, opened, "auroc", "AUROC", 3, 1), ""]
        lines += [compared(closed, opened, "false_positives", "taken for known, %", 1, 100), ""]
    return "\n".join(lines)


def main() -> None:
    """Train all students that the file lacks, and print what they came to."""
    parser = make_parser(__doc__, 100, "training images a class", "none_of_these.json")
    parser.add_argument("--unknown_images", help="a folder or dataset of images of none of the classes")
    given = parser.parse_args()
    settings = ["images", *(["unknown_images"] if given.unknown_images else [])]
    print(summary(run_all(given, train, {"other_class": [False, True]}, settings)))


if __name__ == "__main__":
    main()
