"""What a teacher cache saves and what it costs: accuracy and time of whole trainings, with and without.

    python benchmarks/cache_views.py            # 60 epochs, every number of views, 4 superclasses x 3 seeds
    python benchmarks/cache_views.py report     # tables from the runs that are there

Every training is 60 epochs of the same student and images, once with new views in every epoch and the teacher in every
step (off), and with a cache of V views. Times are of `train()` alone and include the fit and the writing of the cache,
which each training makes for itself. The trainings of one superclass and seed follow each other in one process, so
their ratio is of one machine at one time. Each finished group is a line of `runs.jsonl` and is never repeated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

SUPERCLASSES = ("chess_pieces", "round_digits", "accented_letters", "zodiac_signs")
SEEDS = (0, 1, 2)
VIEWS = ("off", "1", "4", "6", "8", "16")
EPOCHS = 60
TRAIN_IMAGES = 100
STUDENT = "resnet:widths=16-24-32-48"
LEARNING_RATE = 1.6e-2


def group(job: dict[str, Any]) -> dict[str, Any]:
    """All trainings of one superclass and seed, one after the other."""
    import torch
    from transformers import logging, set_seed

    torch.set_num_threads(job["threads"])
    logging.set_verbosity_error()
    from timed_training import timed_training

    from subdistill_hf.config.options import DataOptions
    from subdistill_hf.data.loading import load_subtask
    from subdistill_hf.data.subtask import match_teacher
    from subdistill_hf.data.views import ViewDataset
    from subdistill_hf.models.loading import load_teacher
    from subdistill_hf.models.students import build_student
    from subdistill_hf.pipeline.evaluation import Classifier, predict, processor_name, score

    options = DataOptions(
        classes=[f"superclass:{job['superclass']}"],
        train_images_per_class=TRAIN_IMAGES + 5,
        validation_fraction=5 / (TRAIN_IMAGES + 5),
    )
    data = load_subtask(options, job["seed"])
    teacher = load_teacher(job["teacher"])
    subtask = match_teacher(data.subtask, teacher.class_labels, data.class_names)
    test = ViewDataset(data.test, data.columns)
    trainings = {}
    for views in VIEWS:
        set_seed(job["seed"])
        student = build_student(STUDENT, subtask.names, teacher.processor)
        trainer, seconds = timed_training(
            data,
            (student.model, teacher.model),
            (student.processor, teacher.processor),
            subtask.teacher_ids,
            views,
            num_train_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            seed=job["seed"],
        )
        logits = predict(Classifier(trainer.model, student.processor), test)
        trainings[views] = {
            "accuracy": score(logits, test, subtask.names, None).accuracy,
            "seconds": seconds,
            "steps": trainer.state.global_step,
        }
    machine = f"{processor_name()}, {job['threads']} thread(s) each, torch {torch.__version__.split('+')[0]}"
    return {**job, "machine": machine, "date": datetime.date.today().isoformat(), "trainings": trainings}


def key(entry: dict[str, Any]) -> str:
    """What defines a group."""
    return json.dumps([entry[name] for name in ("teacher", "superclass", "seed", "epochs", "learning_rate")])


def report(entries: list[dict[str, Any]]) -> str:
    """Markdown: accuracy, paired difference to the training without a cache, and the ratio of times."""
    lines = [
        f"# Teacher cache: {EPOCHS} epochs, {TRAIN_IMAGES} training images a class",
        "",
        f"Student `{STUDENT}`, {len(entries)} groups (superclasses x seeds), mean ± standard error; differences and "
        "ratios paired within a group (ratio: median and quartiles). Times include the fit and the writing of the "
        f"cache. {entries[-1]['machine']}, {entries[-1]['date']}, made by `benchmarks/cache_views.py`.",
        "",
        "| teacher | views | test accuracy, % | difference to off | seconds | faster than off |",
        "|---|---|---|---|---|---|",
    ]
    for teacher in sorted({entry["teacher"] for entry in entries}):
        groups = [entry["trainings"] for entry in entries if entry["teacher"] == teacher]
        if len(groups) < 2:
            continue
        for views in VIEWS:
            values = [100 * one[views]["accuracy"] for one in groups]
            gains = [100 * (one[views]["accuracy"] - one["off"]["accuracy"]) for one in groups]
            ratios = [one["off"]["seconds"] / one[views]["seconds"] for one in groups]
            low, middle, high = statistics.quantiles(ratios, n=4)
            lines.append(
                f"| {teacher} | {views} | {_mean_and_error(values)} | "
                + ("" if views == "off" else f"{_mean_and_error(gains)}")
                + f" | {statistics.median(one[views]['seconds'] for one in groups):.0f} | "
                + ("" if views == "off" else f"{middle:.2f} ({low:.2f} to {high:.2f})")
                + " |"
            )
    return "\n".join(lines) + "\n"


def _mean_and_error(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def main() -> None:
    """Parse, run what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "report"), nargs="?", default="run")
    parser.add_argument("--teacher", default="glyphs-resnet")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "cache_views")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "runs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    entries = [json.loads(line) for line in lines]
    if options.stage == "run":
        done = {key(entry) for entry in entries}
        jobs = [
            {
                "teacher": options.teacher,
                "superclass": superclass,
                "seed": seed,
                "epochs": EPOCHS,
                "learning_rate": LEARNING_RATE,
                "threads": options.threads,
            }
            for seed in SEEDS
            for superclass in SUPERCLASSES
        ]
        missing = [job for job in jobs if key(job) not in done]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
            for future in as_completed([pool.submit(group, job) for job in missing]):
                entry = future.result()
                entries.append(entry)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
                print(key(entry), json.dumps(entry["trainings"]), flush=True)
    text = report(entries)
    (options.results / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
