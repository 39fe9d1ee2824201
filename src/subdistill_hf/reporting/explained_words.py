"""What was found when teacher and student were explained, in words."""

from __future__ import annotations

from subdistill_hf.reporting.explained import FEWEST_OF_INTERVAL, MIRRORED, Completeness, Interval


def completeness_in_words(completeness: Completeness) -> str:
    """Whether relevances add up to the evidence."""
    error = 100 * completeness.error
    off = f"{error:.2g} %" if error < 10 else f"{error:,.0f} %"
    if completeness.bound is None:
        return f"relevances are {off} off the evidence: this method does not promise that they add up"
    return f"relevances add up within {off} of the evidence, after {completeness.evaluations:,} evaluations"


def interval_in_words(interval: Interval) -> str:
    """A mean with its interval in brackets; that of few images has none, though earlier versions wrote one."""
    if interval.count < FEWEST_OF_INTERVAL or interval.low is None or interval.high is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def intervals_in_words() -> str:
    """Which figures have intervals, and why the others have none."""
    return (
        f"In brackets, where {FEWEST_OF_INTERVAL} images or more are behind a mean: its bootstrap interval of 95 %. "
        "Of fewer, it would miss the true mean too often."
    )


def ceiling_in_words(ceiling_from: str) -> str:
    """How to read the similarity of the teacher and the teacher explained again.

    Args:
        ceiling_from: see `Agreement`.
    """
    if ceiling_from == MIRRORED:
        return (
            "Read the ceiling with care: a teacher that never saw mirrored images explains them otherwise, and a good "
            "student may be closer to its teacher than the teacher is to itself in the mirror."
        )
    return "No student can be expected to be closer to the teacher than the teacher explained again."
