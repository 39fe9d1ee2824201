"""The results of a benchmark as Markdown and as one tidy table."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from subdistill_hf.benchmark.config import Benchmark, Options
from subdistill_hf.benchmark.explanation_tables import (
    EXPLANATION_COLUMN,
    EXPLANATION_COLUMNS,
    ceiling_column,
    explanation_section,
    similarity_column,
)
from subdistill_hf.benchmark.jobs import Row, Setting, size_in_words
from subdistill_hf.benchmark.mark_tables import MARK_COLUMNS, mark_section
from subdistill_hf.benchmark.statistics import CONFIDENCE, Comparison
from subdistill_hf.benchmark.wording import (
    images_in_words,
    label_of,
    options_in_words,
    points,
    resampled,
    with_error,
    with_interval,
)
from subdistill_hf.config.methods import METHODS
from subdistill_hf.reporting.local_paths import command_without_folders, file_name
from subdistill_hf.reporting.markdown import code, text
from subdistill_hf.reporting.markdown import table as markdown_table

COLUMNS = (
    "method",
    "subtask",
    "student",
    "train_images",
    "seed",
    "test",
    "validation",
    "teacher_test",
    "test_agreement",
    "seconds",
    "preparation_seconds",
    "steps",
    "images",
    "parameters",
    "tuned",
    "machine",
    "error",
    "key",
)


FIGURES = ("method", "accuracy", "difference", "mean rank", "seconds", EXPLANATION_COLUMN)
"""The columns of the Markdown table before those of the subtasks."""


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write one line a final run: `COLUMNS` in order, then those of `known` that some run has."""
    known = ("learning_rate", "condition", *MARK_COLUMNS, *EXPLANATION_COLUMNS)
    further = [name for name in known if any(row.get(name) is not None for row in rows)]
    columns = [*COLUMNS, *further]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            told = {"student": file_name(row["student"]), "tuned": options_in_words(row["tuned"])}
            writer.writerow({**row, **told})


def markdown(
    benchmark: Benchmark,
    comparisons: Sequence[Comparison],
    chosen: Mapping[Setting, Options],
    machines: Sequence[str],
    command: str,
    date: str,
    plots: Sequence[str] = (),
) -> str:
    """The whole report.

    Args:
        benchmark: the grid.
        comparisons: what the final runs say.
        chosen: the tuned hyper-parameters.
        machines: where the runs were trained.
        command: how to make it again.
        date: of the report.
        plots: file names of the plots.
    """
    lines = [
        f"# {text(benchmark.name)}",
        "",
        f"Made by {code(command_without_folders(command))} on {date}; "
        f"trained on {'; '.join(machines) or 'nothing yet'}.",
        "",
        _protocol(benchmark),
        "",
    ]
    if len(machines) > 1:
        lines += ["Seconds of different machines do not compare: `results.csv` says where each run was trained.", ""]
    lines += [f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in plots]
    for comparison in comparisons:
        lines += _section(benchmark, comparison)
    if chosen:
        table = markdown_table(_chosen_rows(benchmark, chosen))
        lines += ["## Hyper-parameters chosen on validation images", "", table, ""]
    return "\n".join(lines)


def _protocol(benchmark: Benchmark) -> str:
    """In words: what was tuned where, and what the figures are."""
    subtasks = ", ".join(map(text, benchmark.subtasks))
    said = f"Final subtasks: {subtasks}. Seeds: {', '.join(map(str, benchmark.seeds))}."
    if benchmark.conditions:
        told = "; ".join(f"{text(name)}: {text(options_in_words(one))}" for name, one in benchmark.conditions.items())
        said += f" Conditions: {told}."
    tuning = benchmark.tuning
    if tuning is None:
        return f"{said} Nothing was tuned: each method has the options of the file."
    trials = [len(benchmark.trials(stage, next(iter(benchmark.methods)))) for stage in tuning.stages]
    where = (
        f"of other subtasks ({', '.join(map(text, tuning.subtasks))})"
        if tuning.subtasks
        else "of each final subtask by itself"
    )
    count = " then ".join(map(str, trials))
    return f"{said} Every method had the same number of trials ({count}), judged on validation images {where}."


def _section(benchmark: Benchmark, comparison: Comparison) -> list[str]:
    condition = "" if comparison.condition is None else f", {text(comparison.condition)}"
    heading = (
        f"## {images_in_words(comparison.train_images)}, student {code(file_name(comparison.student))}{condition}"
    )
    if not comparison.blocks:
        return [
            heading,
            "",
            f"No subtask and seed is finished with all methods yet.{_failures(benchmark, comparison)}",
            "",
        ]
    subtasks = list(dict.fromkeys(subtask for subtask, _ in comparison.blocks))
    ranks = comparison.mean_ranks()
    rows: list[dict[str, str | None]] = [_teacher_row(comparison, subtasks)]
    has_reference = benchmark.reference in comparison.accuracies
    for method in benchmark.methods:
        if method in comparison.left_out:
            rows.append({**dict.fromkeys(rows[0]), "method": text(label_of(benchmark, method))})
            continue
        of_subtask = comparison.by_subtask(method)
        is_compared = has_reference and method != benchmark.reference
        rows.append(
            {
                "method": text(label_of(benchmark, method)),
                "accuracy": with_error(comparison.accuracy(method)),
                "difference": with_interval(comparison.difference(method, benchmark.reference))
                if is_compared
                else None,
                "mean rank": f"{ranks[method]:.2f}",
                "seconds": f"{statistics.median(comparison.seconds[method]):.1f}",
                **similarity_column(comparison, method),
                **{_column(subtask): f"{100 * of_subtask[subtask]:.1f}" for subtask in subtasks},
            }
        )
    runs = f"{len(comparison.blocks)} of {comparison.planned} runs a method (subtasks x seeds)"
    note = (
        f"Test accuracy in %, mean ± standard error of {runs}; difference to "
        f"{text(label_of(benchmark, benchmark.reference))}, paired by run, with its {100 * CONFIDENCE:.0f} % "
        f"confidence interval; rank among the methods of a run, 1 the best; median seconds of the training steps. "
        f"{resampled(comparison)}"
    )
    note += _failures(benchmark, comparison)
    best = _best_layer_methods(benchmark, comparison)
    sections = [*mark_section(benchmark, comparison), *explanation_section(benchmark, comparison)]
    return [heading, "", note, "", markdown_table(rows), "", *best, *sections]


def _failures(benchmark: Benchmark, comparison: Comparison) -> str:
    """Sentences about the runs that diverged, each with a space before it."""

    def counted(methods: Sequence[str]) -> str:
        return ", ".join(f"{text(label_of(benchmark, method))} {comparison.failed[method]}" for method in methods)

    some = [method for method in comparison.failed if method not in comparison.left_out]
    said = f" Runs that diverged, and are left out for all methods: {counted(some)}." if some else ""
    if comparison.left_out:
        every = counted(comparison.left_out)
        said += f" Methods that diverged in every run that they ended, and have no figures: {every}."
    return said


def _column(subtask: str) -> str:
    """The column of a subtask, whose name may be that of another column."""
    return f"subtask {subtask}" if subtask in FIGURES else text(subtask)


def _teacher_row(comparison: Comparison, subtasks: Sequence[str]) -> dict[str, str | None]:
    by_subtask: dict[str, list[float]] = {subtask: [] for subtask in subtasks}
    for (subtask, _), value in zip(comparison.blocks, comparison.teacher, strict=True):
        by_subtask[subtask].append(value)
    return {
        "method": "Teacher",
        "accuracy": f"{100 * statistics.mean(comparison.teacher):.1f}",
        "difference": None,
        "mean rank": None,
        "seconds": None,
        **ceiling_column(comparison),
        **{_column(subtask): f"{100 * statistics.mean(values):.1f}" for subtask, values in by_subtask.items()},
    }


def _best_layer_methods(benchmark: Benchmark, comparison: Comparison) -> list[str]:
    """SubDistill against the best of the other layer methods, where both are there."""
    ours = [method for method in comparison.accuracies if benchmark.kind(method) == "subdistill"]
    others = [
        method
        for method in comparison.accuracies
        if METHODS[benchmark.kind(method)].layer_weight is not None and method not in ours
    ]
    if not ours or not others:
        return []
    best = max(others, key=lambda method: comparison.accuracy(method).mean)
    other = text(label_of(benchmark, best))
    lines = [
        f"- {text(label_of(benchmark, method))} and the best of the other layer methods, {other}: "
        f"{with_interval(comparison.difference(method, best))} (standard error "
        f"{points(comparison.difference(method, best).error)})"
        for method in ours
    ]
    return [*lines, ""]


def _chosen_rows(benchmark: Benchmark, chosen: Mapping[Setting, Options]) -> list[dict[str, str | None]]:
    return [
        {
            "method": text(label_of(benchmark, setting.method)),
            "student": code(file_name(setting.student)) if len(benchmark.students) > 1 else None,
            "training images": size_in_words(setting.train_images),
            "subtask": None if setting.subtask is None else text(setting.subtask),
            "options": text(options_in_words(options)) or None,
        }
        for setting, options in chosen.items()
    ]
