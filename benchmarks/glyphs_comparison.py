"""SubDistill against its baselines on glyphs-100: same teacher, student, images, views and budget for all.

Four stages, each resumable run by run (a finished run is a line of `runs.jsonl` and is never repeated):

    python benchmarks/glyphs_comparison.py tune      # choose hyper-parameters on validation images
    python benchmarks/glyphs_comparison.py final     # other superclasses, three seeds, test images
    python benchmarks/glyphs_comparison.py longer-kd # logit KD with twice the steps of all others
    python benchmarks/glyphs_comparison.py report    # tables

Tuning: every method gets the same number of trials, on superclasses that the final runs do not use. Final: the
weights of the last step are tested; no checkpoint is chosen.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import json
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

TUNE_SUPERCLASSES = ("greek_letters", "planet_signs")
FINAL_SUPERCLASSES = ("chess_pieces", "round_digits", "accented_letters", "zodiac_signs")
SEEDS = (0, 1, 2)
TRAIN_IMAGES = (25, 100)
VALIDATION_IMAGES = 100
VIEWS = 32
STUDENT = "resnet:widths=16-24-32-48"

METHODS: dict[str, dict[str, Any]] = {
    "scratch": {"method": "scratch"},
    "kd": {"method": "kd"},
    "subdistill, mean centring": {"method": "subdistill", "centring": "mean"},
    "subdistill, batch-norm centring": {"method": "subdistill", "centring": "batch_norm"},
    "PCA basis, batch-norm centring": {"method": "subdistill", "centring": "batch_norm", "basis": "pca"},
    "random basis, batch-norm centring": {"method": "subdistill", "centring": "batch_norm", "basis": "random"},
}
# First learning rate and steps, then, at the best of these, a third knob: as many trials for every method.
BUDGETS = [{"learning_rate": rate, "max_steps": steps} for rate, steps in itertools.product((1e-3, 4e-3), (200, 600))]
FIRST_KNOB: dict[str, dict[str, Any]] = {"scratch": {}, "kd": {}, "subdistill": {"layer_weight": 30.0}}
LONGER_KD = {"learning_rate": 4e-3, "max_steps": 1200}
KNOBS: dict[str, list[dict[str, Any]]] = {
    "scratch": [{"weight_decay": 0.05}, {"weight_decay": 0.5}],
    "kd": [{"temperature": 1.0}, {"task_weight": 1.0}],
    "subdistill": [{"layer_weight": 3.0}, {"layer_weight": 300.0}],
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one student and measure it; returns the job with its results."""
    import torch
    from transformers import logging, set_seed

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    from subdistill_hf.config import SubDistillConfig
    from subdistill_hf.data import load_subtask
    from subdistill_hf.evaluation import Classifier, predict, score
    from subdistill_hf.models import load_teacher
    from subdistill_hf.options import DataOptions
    from subdistill_hf.students import build_student
    from subdistill_hf.subtask import match_teacher
    from subdistill_hf.trainer import SubDistillTrainer
    from subdistill_hf.views import ViewCollator, ViewDataset

    images = job["train_images"]
    options = DataOptions(
        classes=[f"superclass:{job['superclass']}"],
        train_images_per_class=images + VALIDATION_IMAGES,
        validation_fraction=VALIDATION_IMAGES / (images + VALIDATION_IMAGES),
    )
    data = load_subtask(options, job["seed"])
    teacher = load_teacher(job["teacher"])
    subtask = match_teacher(data.subtask, teacher.model.config.id2label, data.class_names)
    set_seed(job["seed"])
    student = build_student(job["student"], subtask.names, teacher.processor)
    with tempfile.TemporaryDirectory() as folder:
        config = SubDistillConfig(
            output_dir=folder,
            seed=job["seed"],
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            channels_last=True,  # faster here, same numbers
            logging_strategy="no",
            teacher_cache=VIEWS,
            **METHODS[job["method"]],
            **job["options"],
        )
        trainer = SubDistillTrainer(
            student.model,
            config,
            teacher=teacher.model,
            teacher_class_ids=subtask.teacher_ids,
            train_dataset=ViewDataset(data.train, data.columns, "pad_crop", seed=job["seed"], views=VIEWS),
            fit_dataset=ViewDataset(data.train, data.columns),
            data_collator=ViewCollator(student.processor, teacher.processor),
        )
        assert len(data.train) == images * len(subtask.names), (len(data.train), images)
        result = trainer.train()
    figures = {}
    for split, dataset in (("validation", data.validation), ("test", data.test)):
        plain = ViewDataset(dataset, data.columns)
        logits = predict(Classifier(trainer.model, student.processor), plain)
        teacher_logits = predict(Classifier(teacher.model, teacher.processor, subtask.teacher_ids), plain)
        figures[split] = score(logits, plain, subtask.names, teacher_logits)["accuracy"]
        figures[f"teacher_{split}"] = score(teacher_logits, plain, subtask.names, None)["accuracy"]
    return {**job, **figures, "seconds": round(result.metrics["train_runtime"], 1)}


class Results:
    """Finished runs, one JSON line each, keyed by what defines them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.runs = {self.key(entry): entry for entry in map(json.loads, lines)}

    @staticmethod
    def key(job: dict[str, Any]) -> str:
        """What defines a run, as text."""
        names = ("stage", "method", "superclass", "seed", "train_images", "teacher", "student", "options")
        return json.dumps({name: job[name] for name in names}, sort_keys=True)

    def complete(self, jobs: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
        """Run what is missing, and return the results of all jobs in order."""
        missing = [job for job in jobs if self.key(job) not in self.runs]
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are done", flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for number, future in enumerate(as_completed([pool.submit(run, job) for job in missing]), start=1):
                entry = future.result()
                self.runs[self.key(entry)] = entry
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
                print(
                    f"[{number}/{len(missing)}] {entry['method']}, {entry['superclass']}, seed {entry['seed']}, "
                    f"{entry['train_images']} images, {entry['options']}: validation {entry['validation']:.3f}, "
                    f"test {entry['test']:.3f} ({entry['seconds']} s)",
                    flush=True,
                )
        return [self.runs[self.key(job)] for job in jobs]


def tune(results: Results, teacher: str, workers: int) -> dict[str, dict[str, Any]]:
    """The best options of each method by mean validation accuracy over the tuning superclasses."""

    def jobs(candidates: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return [
            {
                "stage": "tune",
                "method": method,
                "superclass": superclass,
                "seed": 0,
                "train_images": 25,
                "teacher": teacher,
                "student": STUDENT,
                "options": options,
            }
            for method in METHODS
            for options in candidates[method]
            for superclass in TUNE_SUPERCLASSES
        ]

    def best(candidates: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        entries = results.complete(jobs(candidates), workers)
        chosen = {}
        for method in METHODS:
            means = [
                statistics.mean(e["validation"] for e in entries if e["method"] == method and e["options"] == options)
                for options in candidates[method]
            ]
            chosen[method] = candidates[method][means.index(max(means))]
        return chosen

    first = best(
        {method: [{**budget, **FIRST_KNOB[METHODS[method]["method"]]} for budget in BUDGETS] for method in METHODS}
    )
    second = {
        method: [first[method], *({**first[method], **knob} for knob in KNOBS[METHODS[method]["method"]])]
        for method in METHODS
    }
    return best(second)


def final(results: Results, chosen: dict[str, dict[str, Any]], teacher: str, workers: int) -> list[dict[str, Any]]:
    """All methods on the final superclasses, seeds and numbers of images."""
    return results.complete(
        [
            {
                "stage": "final",
                "method": method,
                "superclass": superclass,
                "seed": seed,
                "train_images": images,
                "teacher": teacher,
                "student": STUDENT,
                "options": chosen[method],
            }
            for images in TRAIN_IMAGES
            for seed in SEEDS
            for superclass in FINAL_SUPERCLASSES
            for method in METHODS
        ],
        workers,
    )


def longer_kd(results: Results, teacher: str, workers: int) -> list[dict[str, Any]]:
    """Logit KD with twice the steps that any method was given: is its accuracy a matter of budget?"""
    return results.complete(
        [
            {
                "stage": "longer kd",
                "method": "kd",
                "superclass": superclass,
                "seed": seed,
                "train_images": images,
                "teacher": teacher,
                "student": STUDENT,
                "options": LONGER_KD,
            }
            for images in TRAIN_IMAGES
            for seed in SEEDS
            for superclass in FINAL_SUPERCLASSES
        ],
        workers,
    )


def _mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):.1f} ± {100 * error:.1f}"


def report(entries: list[dict[str, Any]], chosen: dict[str, dict[str, Any]]) -> str:
    """Markdown: accuracy of each method, paired difference to KD, and the hyper-parameters chosen."""
    lines = []
    for images in sorted({entry["train_images"] for entry in entries}):
        chosen_entries = [entry for entry in entries if entry["train_images"] == images]
        accuracy = {(e["method"], e["superclass"], e["seed"]): e["test"] for e in chosen_entries}
        started = sorted({(entry["superclass"], entry["seed"]) for entry in chosen_entries})
        pairs = [pair for pair in started if all((method, *pair) in accuracy for method in METHODS)]
        planned = len(FINAL_SUPERCLASSES) * len(SEEDS)
        if len(pairs) < 2:
            continue
        superclasses = sorted({superclass for superclass, _ in pairs})
        lines += [
            f"### {images} training images a class",
            "",
            f"Test accuracy in %, mean ± standard error over {len(pairs)} of {planned} runs a method (superclasses x "
            "seeds); difference to KD paired by run.",
            "",
            "| method | accuracy | difference to KD | " + " | ".join(superclasses) + " |",
            "|---|---|---|" + "---|" * len(superclasses),
        ]
        teacher = {(e["superclass"], e["seed"]): e["teacher_test"] for e in chosen_entries}
        by_class = [statistics.mean(teacher[p] for p in pairs if p[0] == name) for name in superclasses]
        lines.append(
            f"| teacher | {100 * statistics.mean(teacher[p] for p in pairs):.1f} | | "
            + " | ".join(f"{100 * value:.1f}" for value in by_class)
            + " |"
        )
        for method in METHODS:
            values = [accuracy[method, *pair] for pair in pairs]
            differences = [accuracy[method, *pair] - accuracy["kd", *pair] for pair in pairs]
            by_class = [statistics.mean(accuracy[method, *p] for p in pairs if p[0] == name) for name in superclasses]
            lines.append(
                f"| {method} | {_mean_and_error(values)} | {'' if method == 'kd' else _mean_and_error(differences)} | "
                + " | ".join(f"{100 * value:.1f}" for value in by_class)
                + " |"
            )
        lines.append("")
    lines += ["### Hyper-parameters chosen on validation images", "", "| method | options |", "|---|---|"]
    lines += [
        f"| {method} | {', '.join(f'{name} {value:g}' for name, value in options.items())} |"
        for method, options in chosen.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("tune", "longer-kd", "final", "report"))
    parser.add_argument("--teacher", default="glyphs-resnet")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "glyphs_comparison")
    options = parser.parse_args()
    results = Results(options.results / "runs.jsonl")
    chosen_path = options.results / "chosen.json"
    if options.stage == "tune":
        chosen = tune(results, options.teacher, options.workers)
        chosen_path.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(chosen, indent=1))
        return
    chosen = json.loads(chosen_path.read_text(encoding="utf-8"))
    if options.stage == "longer-kd":
        longer_kd(results, options.teacher, options.workers)
    if options.stage == "final":
        final(results, copy.deepcopy(chosen), options.teacher, options.workers)
    entries = [entry for entry in results.runs.values() if entry["stage"] == "final"]
    text = (
        f"# SubDistill and its baselines on glyphs-100\n\nTeacher {options.teacher}, student `{STUDENT}`, "
        f"{VIEWS} views an image. Tuned on {', '.join(TUNE_SUPERCLASSES)}; shown on the others. "
        f"{datetime.date.today().isoformat()}, made by `benchmarks/glyphs_comparison.py`.\n\n"
    )
    tables = report(entries, chosen)
    for images in TRAIN_IMAGES:
        longer = [
            entry["test"]
            for entry in results.runs.values()
            if entry["stage"] == "longer kd" and entry["train_images"] == images
        ]
        if len(longer) > 1:
            tables += (
                f"\nLogit KD with {LONGER_KD['max_steps']} steps, twice what any method above had, at {images} "
                f"images: {_mean_and_error(longer)} ({len(longer)} runs).\n"
            )
    (options.results / "README.md").write_text(text + tables, encoding="utf-8")
    print((options.results / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
