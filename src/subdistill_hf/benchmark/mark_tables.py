"""Who learned a spurious mark, as a table: accuracy with and without it, and how often it is followed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from subdistill_hf.benchmark.config import Benchmark
from subdistill_hf.benchmark.jobs import Row
from subdistill_hf.benchmark.statistics import CONFIDENCE, Comparison
from subdistill_hf.benchmark.wording import label_of, resampled, with_error, with_interval
from subdistill_hf.reporting.markdown import table as markdown_table
from subdistill_hf.reporting.markdown import text

MARK_COLUMNS: Final = (
    "clean_accuracy",
    "mark_followed",
    "followed_without_mark",
    "teacher_clean_accuracy",
    "teacher_mark_followed",
    "teacher_followed_without_mark",
)
"""The figures of a run's row beside `test` and `teacher_test`, which are then of marked images."""


def has_mark(comparison: Comparison) -> bool:
    """Whether its runs tell who follows a mark: some test images are of classes without it."""
    return all(row.get("mark_followed") is not None for rows in comparison.rows.values() for row in rows)


def mark_section(benchmark: Benchmark, comparison: Comparison) -> list[str]:
    """The lines of the table; none where nothing was marked."""
    if not has_mark(comparison):
        return []
    runs = comparison.rows
    reference = benchmark.reference
    teacher = _figures(next(iter(runs.values())), "teacher_")
    rows: list[dict[str, str | None]] = [
        {
            "method": "Teacher",
            **{name: f"{100 * statistics.mean(values):.1f}" for name, values in teacher.items()},
            "difference in following": None,
        }
    ]
    for method in runs:
        difference = None
        if method != reference and reference in runs:
            difference = comparison.paired(_followed(runs[method]), _followed(runs[reference]))
        rows.append(
            {
                "method": text(label_of(benchmark, method)),
                **{name: with_error(comparison.estimate(values)) for name, values in _figures(runs[method]).items()},
                "difference in following": None if difference is None else with_interval(difference),
            }
        )
    note = (
        "Who learned the mark. Accuracy on the test images, all with the mark or all without it; the share of the "
        "test images of other classes that are taken for the marked ones, with the mark on them and without; all in "
        "%, mean ± standard error. The last column is the difference in that share, with the mark, to "
        f"{text(label_of(benchmark, reference))}, paired by run, with its {100 * CONFIDENCE:.0f} % confidence "
        f"interval. {resampled(comparison)}"
    )
    return [note, "", markdown_table(rows), ""]


def _figures(rows: Sequence[Row], whose: str = "") -> dict[str, list[float]]:
    """Column to the values of the runs."""
    columns = {
        "with the mark": "test",
        "without it": "clean_accuracy",
        "follows the mark": "mark_followed",
        "the same without it": "followed_without_mark",
    }
    return {name: [row[f"{whose}{column}"] for row in rows] for name, column in columns.items()}


def _followed(rows: Sequence[Row]) -> list[float]:
    return [row["mark_followed"] for row in rows]
