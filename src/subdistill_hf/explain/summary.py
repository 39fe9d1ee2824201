"""What explanations came to, for the terminal."""

from __future__ import annotations

from pathlib import Path

from subdistill_hf.formatting import table
from subdistill_hf.reporting.explained import Explanations, Similarity
from subdistill_hf.reporting.explained_words import completeness_in_words, interval_in_words, intervals_in_words


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
        (curve.network, curve.ranking.replace("_", " "), interval_in_words(curve.interval))
        for curve in found.faithfulness
    ]
    lines = [
        "",
        f"{found.method_label}, {found.described}",
        f"same answer  {interval_in_words(agreement.answers)}",
        "",
        table(alike, numbers_from=1),
        "",
        table(areas, numbers_from=2),
        "",
        intervals_in_words(),
        "",
        f"teacher  {completeness_in_words(found.teacher_completeness)}",
        f"student  {completeness_in_words(found.student_completeness)}",
    ]
    for layer in found.subspaces:
        told = ", ".join(f"{one.subtask} {one.overlap:.2f} (by chance {one.by_chance:.2f})" for one in layer.angles)
        lines += [f"overlap of the subspace of {layer.teacher_layer}: {told}"] if told else []
    return "\n".join([*lines, f"\nThe explanations are in {folder}"])


def _both(similarity: Similarity) -> tuple[str, str]:
    return interval_in_words(similarity.cosine), interval_in_words(similarity.rank_correlation)
