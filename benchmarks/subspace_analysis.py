"""How few dimensions of each layer a teacher needs: its accuracy with the layer projected on subspaces.

    python benchmarks/subspace_analysis.py            # both teachers, 4 superclasses of glyphs-100
    python benchmarks/subspace_analysis.py report     # table and plots from the runs that are there
    python benchmarks/subspace_analysis.py --dataset uoft-cs/cifar100 --teachers lite0-128-cifar100 \\
        --superclasses fish insects people reptiles --results benchmarks/results/subspace_analysis_cifar100

For each teacher and superclass `analyse` fits all bases to the training images and measures the accuracy on the test
images with one layer at a time projected on the first K dimensions of a basis. All bases see the same
images. Each finished run is a line of `runs.jsonl` and is never repeated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

SUPERCLASSES = ("chess_pieces", "round_digits", "accented_letters", "zodiac_signs")
TEACHERS = ("glyphs-resnet", "glyphs-vit")
TRAIN_IMAGES = 100
LOST = (0.1, 0.02)

Run = dict[str, Any]


def run(dataset: str, teacher: str, superclass: str, threads: int) -> Run:
    """One analysis, as a line of `runs.jsonl`."""
    import torch

    torch.set_num_threads(threads)
    from subdistill_hf.analysis.analyse import analyse
    from subdistill_hf.config.commands import AnalyseOptions
    from subdistill_hf.pipeline.evaluation import processor_name

    options = AnalyseOptions(
        dataset=dataset,
        teacher=teacher,
        classes=[f"superclass:{superclass}"],
        train_images_per_class=TRAIN_IMAGES + 5,
        validation_fraction=5 / (TRAIN_IMAGES + 5),
        seed=0,
    )
    machine = f"{processor_name()}, {threads} thread(s), torch {torch.__version__.split('+')[0]}"
    return {
        "teacher": Path(teacher).name,
        "superclass": superclass,
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "analysis": asdict(analyse(options)),
    }


def layers_of(runs: Sequence[Run]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each layer of one teacher: its description, and its figures in every run."""
    for place, layer in enumerate(runs[0]["analysis"]["layers"]):
        yield layer, [one["analysis"]["layers"][place] for one in runs]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; NaN for one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def in_points(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard error in percentage points, where there are several values."""
    error = f" ± {100 * standard_error(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):{sign}.1f}{error}"


def report(runs: Sequence[Run], folder: Path) -> str:
    """Markdown of all runs; draws one plot a teacher."""
    superclasses = dict.fromkeys(one["superclass"] for one in runs)
    machines = "; ".join(sorted({f"{one['machine']}, {one['date']}" for one in runs}))
    parts = [
        f"# Accuracy with a layer projected on K dimensions, {TRAIN_IMAGES} training images a class\n",
        f"Mean ± standard error over superclasses ({', '.join(superclasses)}), 5 classes each, on their test images; "
        f"chance is 20 %. Differences are paired by superclass. {machines}, made by "
        "`benchmarks/subspace_analysis.py`.",
    ]
    for teacher in dict.fromkeys(one["teacher"] for one in runs):
        parts.append(section(teacher, [one for one in runs if one["teacher"] == teacher], folder))
    return "\n".join(parts) + "\n"


def section(teacher: str, runs: Sequence[Run], folder: Path) -> str:
    """The tables of one teacher and its plot."""
    from subdistill_hf.analysis.analyse import sufficient_dimensions
    from subdistill_hf.analysis.plot import Panel, plot_analysis
    from subdistill_hf.config.bases import BASES
    from subdistill_hf.formatting import short_names

    unprojected = [one["analysis"]["accuracy"] for one in runs]
    bases = list(runs[0]["analysis"]["layers"][0]["accuracy"])
    names = short_names([layer["layer"] for layer, _ in layers_of(runs)])
    panels, needed, curves = [], [], []
    for name, (layer, found) in zip(names, layers_of(runs), strict=True):
        means: dict[str, list[float]] = {}
        errors: dict[str, list[float]] = {}
        for basis in bases:
            by_k = list(zip(*(one["accuracy"][basis] for one in found), strict=True))
            means[basis], errors[basis] = [statistics.mean(k) for k in by_k], [standard_error(k) for k in by_k]
        heading = f"{name}: {layer['output']}"
        mean = statistics.mean(unprojected)
        panels.append(Panel(heading, layer["dimensions"], means, mean, 1 / 5, errors))
        for lost in LOST:
            cells = []
            for basis in bases:
                fewest = [
                    sufficient_dimensions(one["dimensions"], one["accuracy"][basis], whole, lost)
                    for one, whole in zip(found, unprojected, strict=True)
                ]
                cells.append(", ".join(str(k) for k in fewest))
            needed.append(f"| {heading} | {100 * lost:g} points | " + " | ".join(cells) + " |")
        for place, k in enumerate(layer["dimensions"]):
            gains = [one["accuracy"]["prca"][place] - one["accuracy"]["pca"][place] for one in found]
            cells = [in_points([one["accuracy"][basis][place] for one in found]) for basis in bases]
            curves.append(f"| {heading} | {k} | " + " | ".join(cells) + f" | {in_points(gains, '+')} |")
    plot_analysis(panels, folder / f"{teacher}.png")
    labels = " | ".join(BASES[basis].label for basis in bases)
    rules = "---|" * len(bases)
    return "\n".join(
        [
            f"\n## {teacher}\n",
            f"![{teacher}]({teacher}.png)\n",
            f"The teacher as it is: {in_points(unprojected)} % on {len(runs)} superclasses.\n",
            "Dimensions from which on no more than so much is lost, one number a superclass:\n",
            f"| layer | lost | {labels} |\n|---|---|{rules}",
            *needed,
            "\nAccuracy, %:\n",
            f"| layer | K | {labels} | PRCA - PCA |\n|---|---|{rules}---|",
            *curves,
        ]
    )


def main() -> None:
    """Parse, run what is missing, write tables and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "report"), nargs="?", default="run")
    parser.add_argument("--dataset", default="glyphs-100")
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--superclasses", nargs="+", default=SUPERCLASSES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "subspace_analysis")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "runs.jsonl"
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    if options.stage == "run":
        done = {(one["teacher"], one["superclass"]) for one in runs}
        for superclass in options.superclasses:
            for teacher in options.teachers:
                if (Path(teacher).name, superclass) in done:
                    continue
                runs.append(run(options.dataset, teacher, superclass, options.threads))
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    text = report(runs, options.results)
    (options.results / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
