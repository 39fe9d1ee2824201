"""What was found when teacher and student were explained, in words."""

from __future__ import annotations

from subdistill_hf.reporting.explained import Completeness, Interval


def completeness_in_words(completeness: Completeness) -> str:
    """Whether relevances add up to the evidence."""
    error = 100 * completeness.error
    off = f"{error:.2g} %" if error < 10 else f"{error:,.0f} %"
    if completeness.bound is None:
        return f"relevances are {off} off the evidence: this method does not promise that they add up"
    return f"relevances add up within {off} of the evidence, after {completeness.evaluations:,} evaluations"


def interval_in_words(interval: Interval) -> str:
    """A mean with its interval in brackets."""
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"
