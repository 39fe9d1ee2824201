"""Superclasses of glyphs-100 as a family against as many separate runs: the teacher's work, time, disk, equal results.

    python benchmarks/family.py --superclasses 20 --steps 20     # 20 minutes of one CPU core; half a minute an expert
    python benchmarks/family.py --table                          # what was measured, as Markdown

Both sides are commands of a user: `subdistill distill` once a superclass, each in a process of its own, and
`subdistill family` in one process. Each side has a cache folder of its own, which is empty at its start.

The teacher's work is counted at its forward function: images in passes without gradient, and in passes that a
backward pass follows. Times are seconds of the processor, so that other programs on the machine do not count; `wall`
alone is that of the clock. Figures go into `results/family.json`.

The same command with the same folder continues: commands that have ended are not run again. One that was cut short
begins anew.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "family.json"
SIDES = ("runs", "family")
TIMED = {
    "load": ("subdistill_hf.pipeline.task.load_teacher", "subdistill_hf.family.experts.load_teacher"),
    "hash": ("subdistill_hf.teacher.teacher.weights_digest",),
    "subspaces": ("subdistill_hf.training.plan.fit_pairs",),
    "cache": ("subdistill_hf.training.plan.open_cache",),
    "images": ("subdistill_hf.pipeline.task.load_subtask",),
    "card": ("subdistill_hf.pipeline.run.write_student",),
    "training": ("subdistill_hf.training.trainer.SubDistillTrainer.train",),
}
"""Part of a run to the functions that do it; `training` holds the parts that a training prepares itself with."""


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--superclasses", type=int, default=20, help="how many, from the first on")
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--folder", type=Path, default=Path("family-benchmark"), help="for students and caches")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given, words = parser.parse_known_args()
    if given.child is not None:
        run_command(given.child, words)
    elif given.table:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    else:
        found = measure(given.superclasses, given.steps, given.folder)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(table(found))


# Both sides


def measure(superclasses: int, steps: int, folder: Path) -> dict[str, Any]:
    """Run both sides, and compare what they leave."""
    from subdistill_hf.data.embedded.glyph_classes import SUPERCLASS_NAMES
    from subdistill_hf.pipeline.evaluation import processor_name

    names = list(SUPERCLASS_NAMES)[:superclasses]
    common = ["--max_steps", str(steps), "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    subtasks = [f"superclass:{name}" for name in names]
    shares = [
        measured(["distill", "--classes", subtask, *common], folder / "runs" / name, folder / "cache-runs")
        for name, subtask in zip(names, subtasks, strict=True)
    ]
    sides = {
        "runs": total(shares),
        "family": measured(["family", "--subtasks", *subtasks, *common], folder / "family", folder / "cache-family"),
    }
    for side, place in (("runs", "runs"), ("family", "family")):
        sides[side]["cache_bytes"] = bytes_of(folder / f"cache-{place}")
        sides[side]["folder_bytes"] = bytes_of(folder / place)
    return {
        "superclasses": superclasses,
        "steps": steps,
        "machine": processor_name(),
        "sides": sides,
        "differences": [differences(folder / "runs" / name, folder / "family" / name) for name in names],
    }


def measured(words: Sequence[str], output: Path, cache: Path) -> dict[str, float]:
    """What one command took, in a process of its own, as it says itself; read where it was run before.

    Args:
        words: of the command, without its folder.
        output: its folder.
        cache: the folder of what it keeps for others.
    """
    from subdistill_hf.config.output_folder import written_whole

    record = output.with_name(f"{output.name}-measured.json")
    if record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["words"] != list(words):
            raise SystemExit(f"{record} is of another command ({' '.join(known['words'])}): give another --folder")
        return dict(known["found"])
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    own = output.with_name(f"{output.name}.part")
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, __file__, "--child", str(own), *words, "--output_dir", str(output)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, float] = json.loads(own.read_text(encoding="utf-8"))
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found |= {"processor": used, "wall": time.perf_counter() - start, "processes": 1}
    own.unlink()
    with written_whole(record) as part:
        part.write_text(json.dumps({"words": list(words), "found": found}), encoding="utf-8")
    return found


def total(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The sum of what several runs measured."""
    found: collections.defaultdict[str, float] = collections.defaultdict(float)
    for part in parts:
        for name, value in part.items():
            found[name] += value
    return dict(found)


def bytes_of(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def differences(one: Path, other: Path) -> dict[str, Any]:
    """What differs between two folders of the same expert."""
    import torch
    from safetensors.torch import load_file

    from subdistill_hf.core.subspaces import load_subspaces
    from subdistill_hf.training.checkpoints import last_complete_checkpoint

    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
    found = [load_subspaces(str(last_complete_checkpoint(folder / "runs" / "subdistill"))) for folder in (one, other)]
    largest = max(float((found[0][name].basis - found[1][name].basis).abs().max()) for name in found[0] | found[1])
    return {"expert": one.name, "student_is_equal": same, "largest_difference_of_a_subspace": largest}


# One command, measured


def run_command(record: Path, words: Sequence[str]) -> None:
    """Run a command of the package in this process, and write what it took."""
    start = time.process_time()
    from subdistill_hf.cli import main as subdistill
    from subdistill_hf.pipeline import run as _loaded  # noqa: F401

    found: collections.defaultdict[str, float] = collections.defaultdict(float, imports=time.process_time() - start)
    for part, places in TIMED.items():
        for place in places:
            replace(place, partial(timed, part=part, found=found))
    replace("subdistill_hf.pipeline.task.load_teacher", lambda real: counted(real, found))
    replace("subdistill_hf.family.experts.load_teacher", lambda real: counted(real, found))
    status = subdistill(list(words))
    record.write_text(json.dumps(found), encoding="utf-8")
    sys.exit(status)


def replace(place: str, change: Callable[[Any], Any]) -> None:
    """Put another function where one is looked up."""
    import importlib

    parts = place.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:-1]:
            owner = getattr(owner, name)
        setattr(owner, parts[-1], change(getattr(owner, parts[-1])))
        return


def timed(real: Callable[..., Any], *, part: str, found: collections.defaultdict[str, float]) -> Callable[..., Any]:
    """A function whose seconds and calls are added up."""

    def call(*given: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return real(*given, **options)
        finally:
            found[part] += time.process_time() - start
            found[f"{part}_calls"] += 1

    return call


def counted(real: Callable[..., Any], found: collections.defaultdict[str, float]) -> Callable[..., Any]:
    """A function that loads a teacher, whose passes are counted."""
    import torch

    def load(*given: Any, **options: Any) -> Any:
        loaded = real(*given, **options)
        began: list[float] = []

        def before(module: Any, arguments: Any, named: Any) -> None:
            began.append(time.process_time())

        def after(module: Any, arguments: Any, named: Any, output: Any) -> None:
            pixels = named["pixel_values"] if "pixel_values" in named else arguments[0]
            kind = "with_gradient" if torch.is_grad_enabled() and output.logits.requires_grad else "without_gradient"
            found[f"passes_{kind}"] += len(pixels)
            found["forward"] += time.process_time() - began.pop()

        loaded.model.register_forward_pre_hook(before, with_kwargs=True)
        loaded.model.register_forward_hook(after, with_kwargs=True)
        return loaded

    return load


# What was measured


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    runs, family = (found["sides"][side] for side in SIDES)
    rows = [
        ("processes", "processes", 1, ".0f"),
        ("images in passes of the teacher without gradient", "passes_without_gradient", 1, ",.0f"),
        ("images in passes with a backward pass", "passes_with_gradient", 1, ",.0f"),
        ("forward passes of the teacher, s", "forward", 1, ".1f"),
        ("imports, s", "imports", 1, ".1f"),
        ("loads of the teacher", "load_calls", 1, ".0f"),
        ("loading the teacher, s", "load", 1, ".2f"),
        ("hashes of its weights", "hash_calls", 1, ".0f"),
        ("hashing its weights, s", "hash", 1, ".2f"),
        ("reading images, s", "images", 1, ".1f"),
        ("subspaces, s", "subspaces", 1, ".1f"),
        ("kept targets, s", "cache", 1, ".1f"),
        ("cards and their snippets, s", "card", 1, ".1f"),
        ("all, seconds of the processor", "processor", 1, ".0f"),
        ("all, seconds of the clock", "wall", 1, ".0f"),
        ("images and targets in the cache, MB", "cache_bytes", 1e-6, ".1f"),
        ("folders of the experts, MB", "folder_bytes", 1e-6, ".1f"),
    ]
    count, steps = found["superclasses"], found["steps"]
    lines = [f"| {count} superclasses, {steps} steps | {count} runs | family |", "|---|---|---|"]
    for label, name, factor, form in rows:
        lines.append(
            f"| {label} | " + " | ".join(format(side.get(name, 0) * factor, form) for side in (runs, family)) + " |"
        )
    equal = sum(one["student_is_equal"] for one in found["differences"])
    largest = max(one["largest_difference_of_a_subspace"] for one in found["differences"])
    lines += ["", f"{equal} of {count} students are equal bit for bit; the subspaces differ by {largest:g} at most."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
