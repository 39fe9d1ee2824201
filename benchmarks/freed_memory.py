"""What a training step on a CPU costs when freed memory is kept for the next step, and when glibc gives it back.

    python benchmarks/freed_memory.py

It needs no data and no teacher: the student of the default recipe, its logits and a batch of random images. Each way
has processes of its own, in turn. Compared are seconds of the processor, which a busy machine changes less than those
of a clock.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from subdistill_hf.acceleration.freed_memory import keep_freed_memory
from subdistill_hf.models.heads import labels_of
from subdistill_hf.models.recipes import RECIPES
from subdistill_hf.pipeline.evaluation import processor_name

OUTPUT = Path(__file__).resolve().parent / "results" / "freed_memory.json"
WARM_UP, STEPS = 10, 40


def measure(kept: bool, size: int, batch: int) -> dict[str, float]:
    """CPU seconds and page faults of a step, in this process.

    Args:
        kept: whether freed memory is kept.
        size: of the images, in pixels.
        batch: images of a step.
    """
    torch.set_num_threads(1)
    if kept and not keep_freed_memory():
        raise SystemExit("this needs Linux with glibc, and no MALLOC_ variable in the environment")
    torch.manual_seed(0)
    student = RECIPES["resnet"](size, {"widths": "16-24-32-48"}, labels_of(["a", "b", "c", "d", "e"]))
    student.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters())
    images = torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last)

    def steps(count: int) -> None:
        for _ in range(count):
            student(pixel_values=images).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(WARM_UP)
    before = resource.getrusage(resource.RUSAGE_SELF)
    steps(STEPS)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user_seconds": (after.ru_utime - before.ru_utime) / STEPS,
        "system_seconds": (after.ru_stime - before.ru_stime) / STEPS,
        "page_faults": (after.ru_minflt - before.ru_minflt) / STEPS,
        "peak_mebibytes": after.ru_maxrss / 1024,
    }


def main() -> None:
    """Measure both ways in turn, and write the medians and the ratios of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument(
        "--one", nargs=2, help=argparse.SUPPRESS
    )  # of a process of its own: kept or given, and the size
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0] == "kept", int(given.one[1]), given.batch)))
        return
    rows = {}
    for size in given.sizes:
        runs: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
        for _ in range(given.pairs):
            for way, found in runs.items():
                words = [sys.executable, __file__, "--one", way.split()[0], str(size), "--batch", str(given.batch)]
                found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
        seconds = {way: [one["user_seconds"] + one["system_seconds"] for one in found] for way, found in runs.items()}
        ratios = sorted(kept / back for kept, back in zip(seconds["kept"], seconds["given back"], strict=True))
        rows[f"{size} pixels"] = {
            "cpu_time_kept_over_given_back": {
                "median": statistics.median(ratios),
                "lowest": ratios[0],
                "highest": ratios[-1],
            },
            **{
                way: {name: statistics.median(one[name] for one in found) for name in found[0]}
                for way, found in runs.items()
            },
        }
        print(f"{size} pixels: {json.dumps(rows[f'{size} pixels'])}", flush=True)
    machine = f"{processor_name()}, 1 thread, torch {torch.__version__.partition('+')[0]}"
    content = {
        "machine": machine,
        "date": datetime.date.today().isoformat(),
        "batch": given.batch,
        "pairs": given.pairs,
        "steps": rows,
    }
    given.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
