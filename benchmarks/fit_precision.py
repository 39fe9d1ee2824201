"""How far subspaces move when the teacher runs in bfloat16, as with --bf16 or --teacher_bf16.

    python benchmarks/fit_precision.py

The moments are float64 in both. For each layer, against the subspace of a float32 pass: the distance of the two
projections (Frobenius norm of their difference over that of two orthogonal ones, so from 0 to 1), and what is kept of
the trace that the basis makes largest. Beside them, the distance of a float32 pass over half of the images.
"""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from subdistill_hf.analysis.teacher_layers import TeacherLayers, load_teacher_layers
from subdistill_hf.config.commands import TeacherOptions
from subdistill_hf.core.bases import matrix_of
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.pipeline.evaluation import processor_name

RESULTS = Path(__file__).parent / "results" / "fit_precision.json"
TEACHERS = ("glyphs-resnet", "glyphs-vit")
SUPERCLASSES = ("dice", "chess_pieces")
WIDTHS = (16, 24, 32, 48)  # of the demo's student
IMAGES = 50  # of each class, a fifth of them for validation


def moments(layers: TeacherLayers, precision: torch.dtype | None = None, images: float = 1.0) -> dict[str, Moments]:
    """The moments of a pass under autocast, as a trainer with teacher_bf16 has it, over a share of the images."""
    train = layers.data.train
    some = replace(
        layers, data=replace(layers.data, train=train.shuffle(seed=0).select(range(int(images * len(train)))))
    )
    some.teacher.precision = precision
    return some.moments()


def distance(first: Subspace, second: Subspace) -> float:
    """Of two projections, from 0 to 1."""
    difference = first.basis @ first.basis.T - second.basis @ second.basis.T
    return float(difference.norm()) / math.sqrt(2 * first.dimensions)


def compare(teacher: str, superclass: str, basis: str = "prca") -> list[dict[str, Any]]:
    """A row for each layer."""
    options = TeacherOptions(teacher=teacher, classes=[f"superclass:{superclass}"], train_images_per_class=IMAGES)
    layers = load_teacher_layers(options)
    exact = moments(layers)
    others = {"bfloat16": moments(layers, torch.bfloat16), "half": moments(layers, images=0.5)}
    rows = []
    for layer, width in zip(layers.layers, WIDTHS, strict=True):
        best = Subspace.fit(exact[layer.name], width, basis)
        found = {name: Subspace.fit(other[layer.name], width, basis) for name, other in others.items()}
        matrix = matrix_of(basis, exact[layer.name])
        kept = [float(((matrix @ one.basis) * one.basis).sum()) for one in (found["bfloat16"], best)]
        rows.append(
            {
                "teacher": teacher,
                "superclass": superclass,
                "layer": layer.name,
                "dimensions": f"{width} of {layer.width}",
                "distance_bfloat16": distance(best, found["bfloat16"]),
                "kept_bfloat16": kept[0] / kept[1],
                "distance_half_of_the_images": distance(best, found["half"]),
            }
        )
    return rows


def main() -> None:
    """Measure, print and write."""
    rows = [row for teacher in TEACHERS for superclass in SUPERCLASSES for row in compare(teacher, superclass)]
    for row in rows:
        print(row)
    machine = f"{processor_name()}, torch {torch.__version__.partition('+')[0]}"
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "layers": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
