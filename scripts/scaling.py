"""The arithmetic of docs/scaling.md: passes, time and bytes at several sizes, from what was measured on one GPU.

    python scripts/scaling.py            # the tables, as Markdown
    python scripts/scaling.py --count    # count the operations of the teachers again

Measured, in `benchmarks/results/speed_vit-b_cuda_bf16.json` (one H200, bf16, 64 images a step): the images a
second of a fit with ViT-B/16, the time of the teacher's kernels in a step, and the time of a step of MobileNetV4-small
with targets from the cache. A larger teacher is taken to do as many operations a second.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "speed_vit-b_cuda_bf16.json"
BATCH = 64
OPERATIONS = {"vit_base_patch16_224": 35_127_656_448, "vit_giant_patch14_224": 534_062_983_168}
"""Floating-point operations of a forward pass, as torch counts them."""
VALUES = 32 * 14**2 + 64 * 14**2 + 96 * 14**2 + 128 * 7**2
"""Coordinates that a view has in the subspaces of the four layers that ViT and MobileNetV4-small are paired at."""
HALF = 2  # bytes
EPOCHS = 60  # of a training, by default


@dataclass(frozen=True)
class Case:
    """A family, and the machine that makes it.

    Attributes:
        name: in the table.
        teacher: a model of timm.
        images: training images of all experts, each of one expert.
        experts: their number.
        classes: of an expert.
        views: that the cache keeps of an image; 0 without a cache.
        gpus: their number.
    """

    name: str
    teacher: str
    images: int
    experts: int
    classes: int
    views: int
    gpus: int


IMAGENET = 1_281_167
CASES = (
    Case("ImageNet, ViT-B/16, 1 GPU", "vit_base_patch16_224", IMAGENET, 200, 5, 8, 1),
    Case("ImageNet, ViT-g/14, 1 GPU", "vit_giant_patch14_224", IMAGENET, 200, 5, 8, 1),
    Case("ImageNet, ViT-g/14, 64 GPUs", "vit_giant_patch14_224", IMAGENET, 200, 5, 8, 64),
    Case("100 million images, ViT-g/14, 64 GPUs", "vit_giant_patch14_224", 100_000_000, 200, 5, 1, 64),
)


@dataclass(frozen=True)
class Speeds:
    """Speeds of one GPU.

    Attributes:
        forward: images a second of the teacher.
        fit: images a second of a fit, with its forward and backward pass.
        step: seconds of a training step with targets from the cache.
    """

    forward: float
    fit: float
    step: float


def speeds(teacher: str) -> Speeds:
    """The measured speeds, for a teacher of as many operations a second as ViT-B/16."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    kernels = found["step"]["kernels of a step"]
    larger = OPERATIONS[teacher] / OPERATIONS["vit_base_patch16_224"]
    forward = BATCH / (kernels["kd"]["ms"] - kernels["plain"]["ms"]) * 1e3
    step = found["step"]["ms"]["subdistill, cached, all as graphs"] / 1e3
    return Speeds(forward / larger, found["fit"]["images_per_second"] / larger, step)


def row(case: Case) -> list[str]:
    """The figures of a case, in words."""
    speed = speeds(case.teacher)
    busiest = math.ceil(case.experts / case.gpus) / case.experts  # the share of all work that one GPU has
    fit = case.images * busiest / speed.fit
    views = case.images * case.views * busiest / speed.forward
    steps = case.images * EPOCHS * busiest / BATCH * speed.step
    times = {"fit": fit, "views": views, "students": steps}
    disk = case.images * case.views * (VALUES + case.classes) * HALF
    return [
        case.name,
        f"{case.images * (1 + case.views) / 1e6:,.1f} million",
        in_words(fit),
        in_words(views),
        in_words(steps),
        f"{disk / 1e12:.2f} TB",
        max(times, key=lambda name: times[name]),
    ]


def in_words(seconds: float) -> str:
    """A time in its largest unit."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def table() -> str:
    """All cases as Markdown."""
    head = ["family", "forward passes", "subspaces", "views", "students", "kept targets", "takes most"]
    lines = [head, ["---"] * len(head), *map(row, CASES)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def count() -> None:
    """Print the operations of the teachers."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    for name in OPERATIONS:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            timm.create_model(name).eval()(torch.empty(1, 3, 224, 224))
        print(name, counter.get_total_flops())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count the operations of the teachers")
    count() if parser.parse_args().count else print(table())
