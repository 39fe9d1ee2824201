"""What explanations came to, for the terminal."""

from __future__ import annotations

from pathlib import Path

from subdistill_hf.formatting import table
from subdistill_hf.reporting.explained import Completeness, Explanations, Interval, Similarity


def summary(found: Explanations, folder: str | Path) -> str:
    """Tables of the agreement and the faithfulness, and where the pictures lie.

    Args:
        found: see `run.explain_student`.
        folder: of the explanations.
    """
    agreement = found.agreement
    alike: list[tuple[str, ...]] = [("heat maps", "cosine", "rank correlation")]
    alike.append(("teacher and student", *_both(agreement.explanations)))
    alike.append((f"ceiling: {agreement.ceiling_from}", *_both(agreement.ceiling)))
    alike += [(f"class {name}", *_both(one)) for name, one in agreement.by_class.items()]
    areas: list[tuple[str, ...]] = [("pixel flipping", "ranking", "area")]
    areas += [
        (curve.network, curve.ranking.replace("_", " "), _interval(curve.interval)) for curve in found.faithfulness
    ]
    lines = [
        "",
        f"{found.method_label}, {found.described}",
        f"same answer  {_interval(agreement.answers)}",
        "",
        table(alike, numbers_from=1),
        "",
        table(areas, numbers_from=2),
        "",
        f"teacher  {completeness_in_words(found.teacher_completeness)}",
        f"student  {completeness_in_words(found.student_completeness)}",
    ]
    for layer in found.subspaces:
        told = ", ".join(f"{one.subtask} {one.overlap:.2f} (by chance {one.by_chance:.2f})" for one in layer.angles)
        lines += [f"overlap of the subspace of {layer.teacher_layer}: {told}"] if told else []
    return "\n".join([*lines, f"\nThe explanations are in {folder}"])


def completeness_in_words(completeness: Completeness) -> str:
    """Whether relevances add up to the evidence."""
    off = f"{100 * completeness.error:.2g} %"
    if completeness.bound is None:
        return f"relevances are {off} off the evidence: this method does not promise that they add up"
    return f"relevances add up within {off} of the evidence, after {completeness.evaluations:,} evaluations"


def _both(similarity: Similarity) -> tuple[str, str]:
    return _interval(similarity.cosine), _interval(similarity.rank_correlation)


def _interval(interval: Interval) -> str:
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"
