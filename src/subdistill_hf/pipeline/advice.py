"""What the figures of a run say about what to try next."""

from __future__ import annotations

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.formatting import difference_error, format_percent
from subdistill_hf.reporting.report import RunReport

LABEL_WEIGHT = 3
"""Of the labels beside the teacher, where they are the better guide (docs/defaults.md, "The labels")."""


def label_advice(report: RunReport, config: SubDistillConfig) -> str | None:
    """The advice to let the labels count, where a student of the labels alone is better than the published one.

    Args:
        report: of the run, with the results of the methods that were compared.
        config: the training arguments of the published student.

    Returns:
        A paragraph; `None` where the labels count already, were not compared, or are better by less than twice the
        standard error of the difference.
    """
    alone = next((result for result in report.results if result.method == "scratch"), None)
    if alone is None or config.weights()["task"]:
        return None
    published, images = report.published_result.accuracy, report.dataset.test_images
    if alone.accuracy - published <= 2 * difference_error(alone.accuracy, published, images):
        return None
    return (
        f"The labels alone are the better guide here: {format_percent(alone.accuracy)} instead of "
        f"{format_percent(published)}. The teacher may be weak on these images. Try --task_weight {LABEL_WEIGHT}: "
        "then they count beside it."
    )
