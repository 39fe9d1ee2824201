"""How time and memory of fit, cache and training grow with images, classes, layers and processes, with a line each.

    python benchmarks/growth.py               # 33 measurements: 15 minutes of one CPU core
    python benchmarks/growth.py --rounds 1 --images 50 --results growth.json    # the smallest: 4 minutes
    python benchmarks/growth.py --table       # what was measured, as Markdown

One of the four is changed at a time. Each measurement is a process of its own (for several processes a launch by
torchrun, with the same batch in all), one after the other, in rounds. Times are seconds of the processor, so that
other programs on the machine do not count; several processes wait for each other, and are timed by the clock, too.
Times and peaks are those of the first process. A peak holds all that the process had before, imports with it. Figures
go into `results/growth.json` as they come; the same command continues.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "growth.json"
IMAGES, STEPS, VIEWS, BATCH = 500, 100, 2, 50
OTHERS = {"classes": (2, 5, 10, 20), "layers": (1, 2, 3, 4), "processes": (1, 2)}
USUAL = {"classes": 5, "layers": 4, "processes": 1}
PARTS = {
    "fit, s": "subspaces from all images",
    "cache, s": f"targets of {VIEWS} views of all images, and their file",
    "step, ms": f"a step of {BATCH} images with kept targets, the training's start with it",
    "fit, clock, s": "the same by the clock",
    "cache, clock, s": "the same by the clock",
    "step, clock, ms": "the same by the clock",
    "before, MiB": "the process with teacher, student and images",
    "fit, MiB": "peak of the fit",
    "cache, MiB": "peak of the filling",
    "training, MiB": "peak of the training",
    "kept, MB": "files of the cache",
}
Point = dict[str, int]


def main() -> None:
    """Measure what is missing, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="of most measurements; half to four times of some")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        measure(**json.loads(given.child))
        return
    from subdistill_hf.pipeline.evaluation import processor_name

    found: list[dict[str, Any]] = json.loads(given.results.read_text("utf-8")) if given.results.is_file() else []
    if not given.table:
        for before in range(given.rounds):
            for point in points(given.images):
                known = sum(one["point"] == point for one in found)
                if known <= before:
                    machine, date = processor_name(), datetime.date.today().isoformat()
                    found.append({"point": point, "measured": measured(point), "machine": machine, "date": date})
                    given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                    print(len(found), found[-1], file=sys.stderr, flush=True)
    print(table(found))


def points(images: int) -> list[Point]:
    """What is measured: the usual point, and those that differ from it in one thing."""
    usual = {"images": images, **USUAL}
    found = [usual]
    for name, values in {"images": (images // 2, images, 2 * images, 4 * images), **OTHERS}.items():
        found += [usual | {name: value} for value in values if value != usual[name]]
    return found


# One point


def measured(point: Point) -> dict[str, float]:
    """Measure a point in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [__file__, "--child", json.dumps({**point, "folder": folder})]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(point["processes"])]
        command = [sys.executable, *(launcher if point["processes"] > 1 else []), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        found: dict[str, float] = json.loads(Path(folder, "measured.json").read_text(encoding="utf-8"))
    return found


def measure(images: int, classes: int, layers: int, processes: int, folder: str) -> None:
    """Fit, fill a cache and train in this process, each timed and with its peak; the first process writes it down."""
    import torch

    from subdistill_hf import (
        DataOptions,
        SubDistillConfig,
        SubDistillTrainer,
        ViewCollator,
        build_student,
        load_subtask,
        load_teacher,
    )
    from subdistill_hf.core.distributed import close_process_group
    from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
    from subdistill_hf.data.subtask import match_teacher

    torch.set_num_threads(1)
    teacher = load_teacher("glyphs-resnet")
    chosen = DataOptions(
        classes=list(CLASS_NAMES[:classes]), train_images_per_class=images // classes, validation_fraction=0
    )
    data = load_subtask(chosen, 0)
    subtask = match_teacher(data.subtask, teacher.labels, data.class_names)
    student = build_student("resnet:widths=16-24-32-48", data.subtask.names, teacher.processor)
    args = SubDistillConfig(
        output_dir=folder,
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // processes,
        layer_pairs=layers,
        teacher_cache=str(VIEWS),
        teacher_cache_dir=f"{folder}/targets",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SubDistillTrainer(
        student.model,
        args,
        teacher=teacher.model,
        teacher_class_ids=subtask.teacher_ids,
        train_dataset=data.views("train", "pad_crop", True, seed=0, views=VIEWS),
        fit_dataset=data.views("train"),
        data_collator=ViewCollator(student.processor, teacher.processor),
    )
    before = timed(lambda: None)
    fit, cache = timed(trainer.fit_subspaces), timed(trainer.prepare_distillation)
    training = timed(trainer.train)
    if trainer.args.process_index == 0:
        kept = sum(path.stat().st_size for path in Path(folder, "targets").rglob("*") if path.is_file())
        step = 1000 / STEPS
        found = {
            "fit, s": fit.processor,
            "cache, s": cache.processor,
            "step, ms": training.processor * step,
            "fit, clock, s": fit.clock,
            "cache, clock, s": cache.clock,
            "step, clock, ms": training.clock * step,
            "before, MiB": before.peak,
            "fit, MiB": fit.peak,
            "cache, MiB": cache.peak,
            "training, MiB": training.peak,
            "kept, MB": kept / 1e6,
        }
        Path(folder, "measured.json").write_text(json.dumps(found), encoding="utf-8")
    del trainer
    close_process_group()


@dataclass(frozen=True)
class Taken:
    """Seconds of the processor and of the clock that some work took, and the peak of the process meanwhile in MiB."""

    processor: float
    clock: float
    peak: float


def timed(work: Callable[[], Any]) -> Taken:
    """What some work takes; of the peak Linux alone tells."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    processor, clock = time.process_time(), time.perf_counter()
    work()
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return Taken(processor, clock, int(status.partition("VmHWM:")[2].split()[0]) / 1024)


# What was measured


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Medians and lines as Markdown, a table for each thing that was changed."""
    usual = found[0]["point"]
    parts: list[str] = []
    for name in usual:
        chosen = [one for one in found if all(one["point"][other] == usual[other] for other in usual if other != name)]
        values = sorted({one["point"][name] for one in chosen})
        parts += ["", f"| {name} | " + " | ".join(map(str, values)) + " | line | off by |"]
        parts.append("|---" * (len(values) + 3) + "|")
        for part in PARTS:
            if "clock" in part and name != "processes":
                continue
            medians = [
                statistics.median(one["measured"][part] for one in chosen if one["point"][name] == value)
                for value in values
            ]
            parts.append(f"| {part} | " + " | ".join([*map(number, medians), *line_through(values, medians)]) + " |")
    rest = ", ".join(f"{name} {value}" for name, value in usual.items())
    meaning = "\n".join(f"- {part}: {words}" for part, words in PARTS.items())
    machine = f"{found[0]['machine']}, {found[0]['date']}"
    return f"{machine}. Where nothing else is said: {rest}.\n\n{meaning}\n" + "\n".join(parts)


def line_through(values: Sequence[int], medians: Sequence[float]) -> tuple[str, str]:
    """The line of least squares, and how far a median is from it at most, as texts; of two points there is none."""
    if len(values) < 3:
        return f"{medians[-1] / medians[0]:.2f} times", ""
    slope, start = np.polyfit(values, medians, 1)
    most = max(abs(start + slope * value - median) / median for value, median in zip(values, medians, strict=True))
    return f"{number(start)} {'+' if slope >= 0 else '-'} {number(abs(slope))} n", f"{most:.0%}"


def number(value: float) -> str:
    """A figure with three digits, or all of its whole ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
