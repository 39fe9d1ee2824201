"""The curves of trainings, from the trainers' logs: for every figure that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from subdistill_hf.formatting import short_names
from subdistill_hf.reporting.colours import SOFT

Array = npt.NDArray[np.float64]
Curves = dict[str, tuple[Array, Array]]  # name: x and y, each (points,)
Log = Sequence[Mapping[str, float]]

TOTAL: Final = "loss"
PART_COLOURS: Final = {TOTAL: "#222222", "loss_task": "#009E73", "loss_kd": "#D55E00"}
FURTHER_COLOURS: Final = ("#CC79A7", "#E69F00", "#8A3D00", SOFT)  # of parts that somebody else's loss adds
LAYER_PART: Final = "loss_layer/"
_PART_LABELS: Final = {TOTAL: "total", "loss_task": "labels", "loss_kd": "teacher's logits"}
MOST_POINTS: Final = 120
"""Of a curve; beyond, neighbours are averaged."""


def unit_of(logs: Mapping[str, Log]) -> str:
    """The unit of time that all entries have: `epoch`, or `step`."""
    return "epoch" if all("epoch" in entry for log in logs.values() for entry in log) else "step"


def accuracy_curves(logs: Mapping[str, Log], unit: str) -> Curves:
    """Method to its accuracy on the validation images, for methods that were validated."""
    return {method: curve for method, log in logs.items() for curve in _curves(log, ["eval_accuracy"], unit).values()}


def loss_curves(log: Log, unit: str) -> Curves:
    """The training loss and its parts; the total is left out where it would repeat its only part."""
    entries = [entry for entry in log if TOTAL in entry]
    names = {name: None for entry in entries for name in entry if name.startswith("loss_")}
    order = [*(name for name in PART_COLOURS if name in names), *(n for n in names if n not in PART_COLOURS)]
    return _curves(entries, order if len(order) == 1 else [TOTAL, *order], unit)


def loss_labels(parts: Sequence[str]) -> dict[str, str]:
    """Part of a loss to its name in a figure."""
    layers = [name for name in parts if name.startswith(LAYER_PART)]
    short = short_names([name.removeprefix(LAYER_PART) for name in layers])
    labels = _PART_LABELS | dict(zip(layers, short, strict=True))
    return {name: labels.get(name, name.removeprefix("loss_")) for name in parts}


def _curves(log: Log, names: Sequence[str], unit: str) -> Curves:
    """Collect the logged values of each name, averaging neighbours where there are too many to draw."""
    curves = {}
    for name in names:
        points = np.array([(entry[unit], entry[name]) for entry in log if name in entry], dtype=np.float64)
        if len(points):
            size = -(-len(points) // MOST_POINTS)
            groups = [points[start : start + size] for start in range(0, len(points), size)]
            # As in the Trainer's log, a mean stands at the last of its steps.
            x = np.array([group[-1, 0] for group in groups])
            y = np.array([group[:, 1].mean() for group in groups])
            curves[name] = (x, y)
    return curves
