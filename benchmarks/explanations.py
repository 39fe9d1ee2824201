"""What explanations say of students: whether they add up, how alike students and teachers are, who looks at a mark.

    python benchmarks/explanations.py completeness
    python benchmarks/explanations.py similarity --config benchmarks/configs/glyphs.yaml \
        --chosen benchmarks/results/glyphs/chosen.yaml --methods kd fitnet vkd subdistill --output explained_glyphs
    python benchmarks/explanations.py similarity --config benchmarks/configs/glyphs_marks.yaml --output explained_marks

`completeness` takes tiny networks of every supported family, with random weights and after a short training on drawn
symbols, and the embedded teachers. `similarity` takes a file of `subdistill benchmark`. It trains each final run again
and explains its student and the teacher, at the end, and for the methods of `--early` at several steps before. So two
methods can be compared at equal accuracy: the similarity of the better one is interpolated to the accuracy of the
other. Each finished run is a line of a file and is not repeated; `--part 0/2` and `--part 1/2` share the runs.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import TrainerCallback, ViTImageProcessor

from subdistill_hf.benchmark.config import Benchmark, ExplainedRuns, read_benchmark
from subdistill_hf.benchmark.explained_runs import explanation_figures
from subdistill_hf.benchmark.jobs import Job, Row, Setting, final_jobs, tune
from subdistill_hf.benchmark.statistics import Estimate
from subdistill_hf.benchmark.store import Results
from subdistill_hf.benchmark.training import task_of
from subdistill_hf.config.explainers import EXPLAINERS
from subdistill_hf.config.methods import method_label
from subdistill_hf.config.options import EMBEDDED_TEACHERS
from subdistill_hf.core.activations import logits_of
from subdistill_hf.data.embedded.glyphs import Split, render
from subdistill_hf.errors import DivergedError
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.explain.relevance import explain_images
from subdistill_hf.models.loading import freeze, load_teacher
from subdistill_hf.pipeline.evaluation import Classifier, predict, processor_name, score
from subdistill_hf.pipeline.run import build_trainer, teacher_of
from subdistill_hf.pipeline.task import Task

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))
from families import FAMILIES, build, with_batch_statistics  # noqa: E402  the tiny networks of the tests

CLASSES = (10, 20, 45)
"""Three quite different symbols of glyphs-100."""
TRAINING_IMAGES = 40
TRAINING_STEPS = 60
EXPLAINED = 4
EARLY_STEPS = (1 / 40, 1 / 20, 1 / 10, 1 / 5, 1 / 2)
"""Shares of the steps at which a student is explained before the end."""


# Completeness


def symbols(split: Split, count: int) -> tuple[list[Tensor], list[int]]:
    """Byte images of the three symbols, and their classes."""
    rows = [(place, number) for number in range(count) for place in range(len(CLASSES))]
    images = [np.asarray(render(0, split, CLASSES[place], number).convert("RGB")) for place, number in rows]
    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images], [place for place, _ in rows]


def networks(wanted: Sequence[str]) -> Iterator[tuple[str, str, ExplainedNetwork]]:
    """Each network of some families with its family, and what was done to its weights."""
    images, labels = symbols("train", TRAINING_IMAGES)
    for name, family in FAMILIES.items():
        if name not in wanted:
            continue
        height, width = family.size
        processor = ViTImageProcessor(
            size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        model = build(name)
        network = ExplainedNetwork(name, Classifier(model, processor))
        pixels = network.pixels(images)
        with_batch_statistics(model, pixels)
        yield name, "random", replace(network, classifier=Classifier(freeze(copy.deepcopy(model)), processor))
        fit(model, pixels, torch.tensor(labels))
        yield name, "trained", replace(network, classifier=Classifier(freeze(model), processor))
    for name in [name for name in EMBEDDED_TEACHERS if name in wanted]:
        loaded = load_teacher(name)
        yield name, "trained", ExplainedNetwork(name, Classifier(loaded.model, loaded.processor, CLASSES))


def fit(model: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    """A short training."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(TRAINING_STEPS):
        some = torch.randint(len(labels), (16,))
        loss = nn.functional.cross_entropy(logits_of(model(pixel_values=pixels[some])), labels[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def completeness(given: argparse.Namespace) -> None:
    """Measure how far the relevances of each method are from adding up, network by network."""
    images, _ = symbols("test", 2)
    images = images[:EXPLAINED]
    place = RESULTS / "completeness"
    known = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))["rows"] if given.families else []
    rows: list[Row] = [row for row in known if row["family"] not in given.families]
    for family, weights, network in networks(given.families or [*FAMILIES, *EMBEDDED_TEACHERS]):
        targets = network.answers(images)
        row: Row = {"family": family, "weights": weights}
        for method in EXPLAINERS:
            start = time.perf_counter()
            found = explain_images(network, images, targets, method, show=False, refuse=False).completeness
            row[method] = {
                "error": found.error,
                "evaluations": found.evaluations,
                "refused": found.bound is not None and found.error > found.bound,
                "seconds": round(time.perf_counter() - start, 2),
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
        keep_completeness(rows)
    print(place.with_suffix(".md").read_text(encoding="utf-8"))


def keep_completeness(rows: Sequence[Row]) -> None:
    """Write the rows in the order of the families, as JSON and as a page."""
    order = [*FAMILIES, *EMBEDDED_TEACHERS]
    ordered = sorted(rows, key=lambda row: order.index(row["family"]))
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor_name()}, {torch.get_num_threads()} thread, torch {torch.__version__}",
        "images": EXPLAINED,
        "training_steps": TRAINING_STEPS,
    }
    write(RESULTS / "completeness", {"facts": facts, "rows": ordered}, completeness_table(facts, ordered))


def completeness_table(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Do relevances add up?",
        "",
        f"Made by `python benchmarks/explanations.py completeness` on {facts['date']}, {facts['machine']}. Mean over "
        f"{facts['images']} images of how far the sum of relevance is from the evidence minus that of a grey image, "
        "as a share of that difference; in brackets the evaluations of the image that took most. Tiny networks of "
        "every family that is tested, with random weights, and after "
        f"{facts['training_steps']} steps on three symbols. Above 1 % a method that should add up is refused.",
        "",
        "| family | weights | integrated gradients | Shapley sampling | gradient x input |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        exact, sampled, cheap = (row[name] for name in ("integrated_gradients", "shapley", "gradient_x_input"))
        told = f"{100 * exact['error']:.2f} % ({exact['evaluations']:,}){', refused' if exact['refused'] else ''}"
        lines.append(
            f"| {row['family']} | {row['weights']} | {told} | {100 * sampled['error']:.1g} % "
            f"({sampled['evaluations']:,}) | {100 * cheap['error']:.0f} % |"
        )
    measured_ones = {row["family"] for row in rows}
    if missing := [name for name in [*FAMILIES, *EMBEDDED_TEACHERS] if name not in measured_ones]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join([*lines, ""])


# Similarity


class Snapshots(TrainerCallback):
    """Keeps the student's weights at some steps."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.kept: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Keep the weights."""
        if state.global_step in {max(1, round(share * state.max_steps)) for share in EARLY_STEPS}:
            weights = self.trainer.model.state_dict()
            self.kept[state.global_step] = {name: value.detach().clone() for name, value in weights.items()}


def measured(job: Job, task: Task, classifier: Classifier) -> Row:
    """Accuracy and explanations of a student as it is."""
    accuracy = score(predict(classifier, task.test), task.test, task.data.output_names, None).accuracy
    assert job.explanations is not None
    return {"accuracy": accuracy, **explanation_figures(job.explanations, task, classifier)}


def explained_run(job: Job, early: Sequence[str]) -> Row:
    """Train a student, and explain it at the end, and for some methods before."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(job, folder)
        trainer, student, _ = build_trainer(task, task.config, teacher_of(task))
        snapshots = Snapshots(trainer)
        if job.method in early:
            trainer.add_callback(snapshots)
        try:
            trainer.train()
        except DivergedError as error:
            return {**job.described(), "error": str(error)}
        classifier = Classifier(trainer.model, student.processor)
        start = time.perf_counter()
        row = {**job.described(), "steps": trainer.state.global_step, **measured(job, task, classifier)}
        row["explaining_seconds"] = round(time.perf_counter() - start, 1)
        row["early"] = []
        for step, weights in sorted(snapshots.kept.items()):
            trainer.model.load_state_dict(weights)
            row["early"].append({"step": step, **measured(job, task, classifier)})
    return row


def jobs_of(given: argparse.Namespace, grid: Benchmark) -> list[Job]:
    """The final runs of a benchmark's file, with the hyper-parameters that it had chosen."""
    grid = replace(grid, explanations=ExplainedRuns(given.explainer, given.images))
    if given.methods:
        grid = replace(grid, methods={name: grid.methods[name] for name in given.methods})
    if given.subtasks:
        grid = replace(grid, subtasks={name: grid.subtasks[name] for name in given.subtasks})
    if given.seeds:
        grid = replace(grid, seeds=given.seeds)
    if given.max_steps:
        grid = replace(grid, training={**grid.training, "max_steps": given.max_steps})
    if given.chosen is None:
        assert grid.tuning is None, "give --chosen, what the benchmark has tuned"
        return final_jobs(grid, tune(grid, lambda jobs: []))
    entries = yaml.safe_load(given.chosen.read_text(encoding="utf-8"))
    chosen = {Setting(**{name: value for name, value in one.items() if name != "options"}): one for one in entries}
    return final_jobs(grid, {setting: one["options"] for setting, one in chosen.items()})


def similarity(given: argparse.Namespace) -> None:
    """Train and explain what is missing, and write the tables of all that is there."""
    jobs = jobs_of(given, read_benchmark(given.config))
    part, parts = map(int, given.part.split("/"))
    folder = RESULTS / (given.output or f"explained_{given.config.stem}")
    done: dict[str, Any] = {}
    for path in sorted(folder.glob("runs*.jsonl")):
        done |= Results(path).rows
    results = Results(folder / f"runs-{part}.jsonl")
    for number, job in enumerate(jobs):
        if number % parts != part or job.key in done:
            continue
        start = time.perf_counter()
        row = explained_run(job, given.early)
        results.add(row)
        done[job.key] = row
        told = {name: row.get(name) for name in ("accuracy", "explanation_cosine", "ceiling_cosine", "error")}
        print(f"[{number + 1}/{len(jobs)}] {job}: {told} ({time.perf_counter() - start:.0f} s)", flush=True)
    rows = [{**done[job.key], **job.described()} for job in jobs if job.key in done]
    write(folder / "README", None, similarity_tables(given, rows))
    print((folder / "README.md").read_text(encoding="utf-8"))


def at_accuracy(row: Row, accuracy: float) -> float | None:
    """The similarity of a run when it had some accuracy, between the two points around it; `None` outside of them."""
    ordered = sorted([*row["early"], {**row, "step": row["steps"]}], key=lambda one: one["step"])
    for low, high in itertools.pairwise(ordered):
        if min(low["accuracy"], high["accuracy"]) <= accuracy <= max(low["accuracy"], high["accuracy"]):
            span = high["accuracy"] - low["accuracy"]
            share = 0.5 if span == 0 else (accuracy - low["accuracy"]) / span
            return float((1 - share) * low["explanation_cosine"] + share * high["explanation_cosine"])
    return None


def similarity_tables(given: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The rows as Markdown: for each condition the methods at the end, and those of `--early` at equal accuracy."""
    today = datetime.date.today().isoformat()
    explainer = EXPLAINERS[given.explainer]
    label = explainer.label
    again = "with another seed" if explainer.sampled else "on mirrored images"
    lines = [
        "# How alike students and teacher explain their answers",
        "",
        f"Made by `benchmarks/explanations.py similarity --config {given.config.name}` on {today}; {label}, "
        f"{given.images} test images of each run. Cosine of the heat maps of student and teacher on a grid of 8 x 8, "
        "mean with its 95 % confidence interval over subtasks, the seeds of each averaged first (over runs where "
        "there are fewer than three subtasks). The teacher is compared with itself "
        f"{again}, once for each subtask and seed.",
    ]
    if not explainer.sampled:
        lines[-1] += (
            " Where a mirrored image shows something else, as with letters and digits, that is no upper limit for a "
            "student."
        )
    for condition in dict.fromkeys(row["condition"] for row in rows):
        some = [row for row in rows if row["condition"] == condition and "explanation_cosine" in row]
        lines += ["", f"## {condition or 'At the end of the training'}", ""]
        lines += method_table(some)
        for method in given.early:
            lines += equal_accuracy(some, method)
    return "\n".join([*lines, ""])


def method_table(rows: Sequence[Row]) -> list[str]:
    """The methods of one condition at the end of the training, below the teacher beside itself."""
    header, rule = "| method | runs | accuracy | cosine | rank correlation |", "|---|---|---|---|---|"
    marked = any("relevance_on_mark" in row for row in rows)
    lines = [f"{header} relevance on the mark, % |", f"{rule}---|"] if marked else [header, rule]
    teachers = list({(row["subtask"], row["seed"]): row for row in rows}.values())
    ceiling = over_subtasks([row["ceiling_cosine"] for row in teachers], teachers)
    first = f"| Teacher, explained twice | {len(teachers)} | | {interval(ceiling)} | |"
    lines.append(f"{first} {mark(teachers, 'teacher_')} |" if marked else first)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        figures = [
            over_subtasks([row[name] for row in own], own) for name in ("explanation_cosine", "explanation_rank")
        ]
        accuracy = over_subtasks([row["accuracy"] for row in own], own).mean
        told = " | ".join(map(interval, figures))
        line = f"| {method_label(method)} | {len(own)} | {100 * accuracy:.1f} % | {told} |"
        lines.append(f"{line} {mark(own)} |" if marked else line)
    return lines


def equal_accuracy(rows: Sequence[Row], method: str) -> list[str]:
    """A method beside each other one when both were as accurate."""
    places = {(row["subtask"], row["seed"]): row for row in rows if row["method"] == method}
    lines = [
        "",
        f"Difference in cosine of {method_label(method)} to each other method, in pairs by run: at the end, and at "
        f"equal accuracy, where {method_label(method)} was stopped early. Runs in which it never had that accuracy "
        "are left out there.",
        "",
        "| other method | runs | difference at the end | runs | difference at equal accuracy |",
        "|---|---|---|---|---|",
    ]
    for other in dict.fromkeys(row["method"] for row in rows if row["method"] != method):
        theirs = [row for row in rows if row["method"] == other and (row["subtask"], row["seed"]) in places]
        ours = [places[row["subtask"], row["seed"]] for row in theirs]
        both = list(zip(ours, theirs, strict=True))
        at_end = [our["explanation_cosine"] - their["explanation_cosine"] for our, their in both]
        then = [(at_accuracy(our, their["accuracy"]), their["explanation_cosine"]) for our, their in both]
        there = [
            (early - cosine, their) for (early, cosine), their in zip(then, theirs, strict=True) if early is not None
        ]
        cells = []
        for values, of_rows in ((at_end, theirs), ([value for value, _ in there], [row for _, row in there])):
            cells.append(f"{len(values)} | {interval(over_subtasks(values, of_rows), '+') if values else ''}")
        lines.append(f"| {method_label(other)} | {' | '.join(cells)} |")
    return lines


def over_subtasks(values: Sequence[float], rows: Sequence[Row]) -> Estimate:
    """The estimate from a value of each row, the seeds of a subtask averaged first."""
    return Estimate.over_subtasks(values, [(row["subtask"], row["seed"]) for row in rows])


def interval(estimate: Estimate, sign: str = "") -> str:
    """A mean with its interval, which one run alone has not."""
    if math.isnan(estimate.interval):
        return f"{estimate.mean:{sign}.3f}"
    low, high = estimate.mean - estimate.interval, estimate.mean + estimate.interval
    return f"{estimate.mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def mark(rows: Sequence[Row], whose: str = "") -> str:
    """The mean share of relevance on the mark."""
    return interval(over_subtasks([100 * row[f"{whose}relevance_on_mark"] for row in rows], rows))


def write(place: Path, values: Any, text: str) -> None:
    """Write figures as JSON, if there are some, and a page."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if values is not None:
        place.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    place.with_suffix(".md").write_text(text, encoding="utf-8")


def main() -> None:
    """Measure one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    families = commands.add_parser("completeness")
    families.add_argument("--families", nargs="*", default=[], help="some; the results of the others stay")
    alike = commands.add_parser("similarity")
    alike.add_argument("--config", type=Path, required=True)
    alike.add_argument("--chosen", type=Path, help="hyper-parameters that the benchmark has tuned")
    alike.add_argument("--explainer", choices=EXPLAINERS, default="integrated_gradients")
    alike.add_argument("--images", type=int, default=32)
    alike.add_argument("--early", nargs="*", default=["subdistill"], help="methods that are explained before the end")
    alike.add_argument("--methods", nargs="*")
    alike.add_argument("--subtasks", nargs="*")
    alike.add_argument("--seeds", nargs="*", type=int)
    alike.add_argument("--max_steps", type=int)
    alike.add_argument("--part", default="0/1")
    alike.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"completeness": completeness, "similarity": similarity}[given.command](given)


if __name__ == "__main__":
    main()
