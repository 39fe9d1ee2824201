"""What was found when teacher and student were explained, in words."""

from __future__ import annotations

from subdistill_hf.reporting.explained import MIRRORED, Completeness, Interval


def completeness_in_words(completeness: Completeness) -> str:
    """Whether relevances add up to the evidence."""
    error = 100 * completeness.error
    off = f"{error:.2g} %" if error < 10 else f"{error:,.0f} %"
    if completeness.bound is None:
        return f"relevances are {off} off the evidence: this method does not promise that they add up"
    return f"relevances add up within {off} of the evidence, after {completeness.evaluations:,} evaluations"


def interval_in_words(interval: Interval) -> str:
    """A mean with its interval in brackets; that of one image has none, though earlier versions wrote one."""
    if interval.count < 2 or interval.low is None or interval.high is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"


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
