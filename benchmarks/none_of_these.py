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
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.other_classes import with_other_classes
from subdistill_hf.pipeline.evaluation import Classifier, predict, score
from subdistill_hf.pipeline.run import build_trainer, teacher_of
from subdistill_hf.pipeline.task import load_task
from subdistill_hf.pipeline.unknown import measured_unknown

GLYPHS = ("chess_pieces", "round_digits", "accented_letters", "zodiac_signs", "dice", "currency_signs", "music_signs")
RATES = {"kd": 4e-3, "subdistill": 1.6e-2}


def train(given: argparse.Namespace, superclass: str, seed: int, method: str, other: bool) -> dict[str, Any]:
    """Train one student, and measure it on known and unknown test images."""
    options = TaskOptions(
        dataset=given.dataset,
        teacher=given.teacher,
        classes=[f"superclass:{superclass}"],
        student=given.student,
        train_images_per_class=given.images,
        other_class=other,
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
    # the unknown images are those of the open student for both
    opened = replace(options, other_class=True)
    others = (task.data if other else with_other_classes(task.data, opened, seed)).others
    assert others is not None
    classifier = Classifier(trainer.model, student.processor)
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
        "accuracy": found.accuracy,
        "unknown": [asdict(each) for each in measured_unknown(known, unknown, other)],
    }


def main() -> None:
    """Train all students, and write their figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="glyphs-100")
    parser.add_argument("--teacher", default="glyphs-resnet")
    parser.add_argument("--student", default="resnet:widths=16-24-32-48")
    parser.add_argument("--superclasses", nargs="+", default=list(GLYPHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=100, help="training images a class")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--output", type=Path, default=Path("none_of_these.json"))
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
