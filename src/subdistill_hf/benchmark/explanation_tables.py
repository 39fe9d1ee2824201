"""How alike teacher and students explain their answers, as a column and a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

from subdistill_hf.benchmark.config import Benchmark
from subdistill_hf.benchmark.jobs import Row
from subdistill_hf.benchmark.statistics import CONFIDENCE, Comparison, Estimate
from subdistill_hf.benchmark.wording import label_of, resampled
from subdistill_hf.config.explainers import EXPLAINERS
from subdistill_hf.reporting.markdown import table as markdown_table
from subdistill_hf.reporting.markdown import text

EXPLANATION_COLUMN: Final = "explanation similarity"
EXPLANATION_COLUMNS: Final = (
    "explanation_cosine",
    "explanation_rank",
    "ceiling_cosine",
    "ceiling_rank",
    "relevance_on_mark",
    "teacher_relevance_on_mark",
    "explained_images",
    "explanation_error",
)
"""The figures of a run's row about explanations."""


def has_explanations(comparison: Comparison) -> bool:
    """Whether all its runs tell how alike teacher and student explain."""
    rows = [row for each in comparison.rows.values() for row in each]
    return bool(rows) and all("explanation_cosine" in row for row in rows)


def similarity_column(comparison: Comparison, method: str) -> dict[str, str | None]:
    """The column of the main table: the mean cosine over the runs of a method; none where runs were not explained."""
    if not has_explanations(comparison):
        return {}
    cosines = _values(comparison.rows[method], "explanation_cosine")
    return {EXPLANATION_COLUMN: _with_error(comparison.estimate(cosines))}


def ceiling_column(comparison: Comparison) -> dict[str, str | None]:
    """The same for the teacher, which is compared with itself."""
    if not has_explanations(comparison):
        return {}
    rows = next(iter(comparison.rows.values()))
    return {EXPLANATION_COLUMN: f"{statistics.mean(_values(rows, 'ceiling_cosine')):.2f}"}


def explanation_section(benchmark: Benchmark, comparison: Comparison) -> list[str]:
    """The lines of the table with intervals; none where runs were not explained."""
    explained = benchmark.explanations
    if explained is None:
        return []
    failed = [row for rows in comparison.rows.values() for row in rows if "explanation_error" in row]
    if failed:
        return [
            f"Explanations: {len(failed)} runs could not be explained. {text(failed[0]['explanation_error'])}.",
            "",
        ]
    if not has_explanations(comparison):
        return []
    entry, reference = EXPLAINERS[explained.method], benchmark.reference
    teacher = next(iter(comparison.rows.values()))
    rows: list[dict[str, str | None]] = [
        {
            "method": "Teacher, explained twice",
            "cosine": f"{statistics.mean(_values(teacher, 'ceiling_cosine')):.3f}",
            "difference": None,
            "rank correlation": f"{statistics.mean(_values(teacher, 'ceiling_rank')):.3f}",
            "relevance on the mark": _percent(teacher, "teacher_relevance_on_mark"),
        }
    ]
    for method, own in comparison.rows.items():
        cosines, difference = _values(own, "explanation_cosine"), None
        if method != reference and reference in comparison.rows:
            difference = comparison.paired(cosines, _values(comparison.rows[reference], "explanation_cosine"))
        rows.append(
            {
                "method": text(label_of(benchmark, method)),
                "cosine": _with_interval(comparison.estimate(cosines)),
                "difference": None if difference is None else _with_interval(difference, "+"),
                "rank correlation": _with_interval(comparison.estimate(_values(own, "explanation_rank"))),
                "relevance on the mark": _percent(own, "relevance_on_mark"),
            }
        )
    again = "with another seed" if entry.sampled else "on mirrored images"
    note = (
        f"How alike the heat maps of student and teacher are ({entry.label}, the teacher's answer to "
        f"{_images_in_words(comparison, explained.images)} of each run): mean with its {100 * CONFIDENCE:.0f} % "
        f"confidence interval, and the difference to {text(label_of(benchmark, reference))}, paired by run. "
        f"The teacher is compared with itself, explained again {again}. {resampled(comparison)}"
    )
    return [note, "", markdown_table(rows), ""]


def _images_in_words(comparison: Comparison, most: int) -> str:
    """How many test images of a run were explained; rows of earlier versions do not say it, and may have had fewer."""
    counts = [row.get("explained_images") for rows in comparison.rows.values() for row in rows]
    known = sorted({count for count in counts if count is not None})
    if None in counts or not known:
        return f"at most {most} test images"
    return f"{known[0]} test images" if len(known) == 1 else f"{known[0]} to {known[-1]} test images"


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows]


def _with_error(estimate: Estimate) -> str:
    error = "unknown" if math.isnan(estimate.error) else f"{estimate.error:.2f}"
    return f"{estimate.mean:.2f} ± {error}"


def _with_interval(estimate: Estimate, sign: str = "") -> str:
    if math.isnan(estimate.interval):
        return f"{estimate.mean:{sign}.3f}"
    low, high = estimate.mean - estimate.interval, estimate.mean + estimate.interval
    return f"{estimate.mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _percent(rows: Sequence[Row], name: str) -> str | None:
    """A mean share in percent, where all runs have it."""
    if not all(name in row for row in rows):
        return None
    return f"{100 * statistics.mean(_values(rows, name)):.1f} %"
