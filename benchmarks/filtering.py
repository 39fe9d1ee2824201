"""What five classes of a large parquet dataset cost: time, memory and disk, against loading everything and filtering.

    python benchmarks/filtering.py --folder some/folder/with/2/GB

Makes a dataset of 200 classes and 100,000 training images (noise, 32 x 32, PNG) in ten files: in shuffled order,
ordered by class, and so in small row groups; unless the folder holds it already. Each load runs in a process of its
own with an empty cache, the ways in turn; figures are medians, ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CLASSES = 200
CHOSEN = (3, 50, 99, 140, 197)
SHARDS = 10
WAYS = ("load_dataset and filter", "load_subtask", "load_subtask, streaming")
LAYOUTS = {"shuffled": (True, None), "by class": (False, None), "by class, row groups of 500": (False, 500)}
"""Whether the rows are shuffled, and how many make a row group; as many as `datasets` chooses by default."""
MEASURED = ("seconds", "cpu_seconds", "added_mib", "written_mib")


def make(folder: Path, images: int, shuffled: bool, rows_of_group: int | None) -> Path:
    """Write the dataset as `train-*.parquet` and `test-*.parquet`; a tenth as many test images."""
    import datasets
    import numpy as np
    from PIL import Image

    place = folder / f"{'shuffled' if shuffled else 'by-class'}-{images}{f'-{rows_of_group}' if rows_of_group else ''}"
    if (place / "complete").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[f"class_{index:03d}" for index in range(CLASSES)]),
        }
    )
    random = np.random.default_rng(0)

    def png() -> dict[str, Any]:
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        return {"bytes": buffer.getvalue(), "path": None}

    for split, count, shards in (("train", images, SHARDS), ("test", images // 10, 1)):
        labels = np.arange(count) * CLASSES // count
        if shuffled:
            random.shuffle(labels)
        for index, part in enumerate(np.array_split(labels, shards)):
            rows = {"image": [png() for _ in part], "label": part.tolist()}
            name = f"{split}-{index:05d}-of-{shards:05d}.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(place / name, batch_size=rows_of_group)
    (place / "complete").touch()
    return place


def load(way: str, folder: Path) -> None:
    """Load the chosen classes one way in this process, and print what it took."""
    import datasets
    import torch  # noqa: F401  a stream imports it, and a training has it anyway: in all ways before the clock starts

    from subdistill_hf import DataOptions
    from subdistill_hf.data.loading import load_subtask

    datasets.disable_progress_bars()
    before = peak_memory()
    start, start_of_work = time.perf_counter(), time.process_time()
    if way == WAYS[0]:
        tables = datasets.load_dataset(str(folder))
        parts: Iterable[Any] = tables.filter(lambda label: label in CHOSEN, input_columns="label").values()
    else:
        options = DataOptions(str(folder), [str(label) for label in CHOSEN], streaming=way == WAYS[2])
        data = load_subtask(options)
        parts = (data.train, data.validation, data.test)
    seconds, work = time.perf_counter() - start, time.process_time() - start_of_work
    peak, written = peak_memory(), size_of(Path(os.environ["HF_DATASETS_CACHE"]))
    images = [
        row["image"]["bytes"]
        for part in parts
        for row in part.cast_column("image", datasets.Image(decode=False)).select_columns("image")
    ]
    digest = hashlib.sha256(b"".join(sorted(images))).hexdigest()
    found = {"seconds": seconds, "cpu_seconds": work, "added_mib": peak - before, "written_mib": written}
    found |= {"imports_mib": before}
    print(json.dumps(found | {"rows": len(images), "digest": digest}))


def peak_memory() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def size_of(folder: Path) -> float:
    """Size of all files in a folder, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def measure(way: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Load one way in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        done = subprocess.run(
            [sys.executable, __file__, "--folder", str(folder), "--way", way],
            env=os.environ | {"HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """All ways in turn; medians, and ratios to the first way, round by round."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(measure(way, folder, scratch))
            print(folder.name, way, json.dumps(found[way][-1]), flush=True)
    digests = {(one["digest"], one["rows"]) for runs in found.values() for one in runs}
    if len(digests) > 1:
        raise SystemExit(f"the ways gave different images: {digests}")
    result: dict[str, Any] = {"rows": digests.pop()[1], "dataset_mib": size_of(folder)}
    for way, runs in found.items():
        result[way] = {name: round(statistics.median(run[name] for run in runs), 3) for name in MEASURED}
        result[way]["imports_mib"] = round(statistics.median(run["imports_mib"] for run in runs), 1)
        result[way]["ratio"] = {
            name: round(
                statistics.median(run[name] / first[name] for run, first in zip(runs, found[WAYS[0]], strict=True)), 4
            )
            for name in MEASURED
        }
    return result


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = ["| rows | way | time, s | CPU time, s | memory, MiB | written, MiB |", "|---|---|---|---|---|---|"]
    for layout in LAYOUTS:
        for way in WAYS:
            one = results[layout][way]
            cells = [
                f"{one[name]:.{digits}f}" + ("" if way == WAYS[0] else f" ({one['ratio'][name]:.3f})")
                for name, digits in zip(MEASURED, (2, 2, 0, 1), strict=True)
            ]
            lines.append(f"| {layout} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, make the data, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.way:
        load(options.way, options.folder)
        return
    import datasets
    import pyarrow

    from subdistill_hf.pipeline.evaluation import processor_name

    versions = f"datasets {datasets.__version__}, pyarrow {pyarrow.__version__}"
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, {versions}",
        "classes": CLASSES,
        "chosen": len(CHOSEN),
        "train_images": options.images,
        "test_images": options.images // 10,
        "rounds": options.rounds,
    }
    for layout, (shuffled, rows_of_group) in LAYOUTS.items():
        folder = make(options.folder, options.images, shuffled, rows_of_group)
        results[layout] = compare(folder, options.folder, options.rounds)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "filtering.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
