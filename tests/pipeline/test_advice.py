"""What a run tells its user to try next."""

from dataclasses import replace

import pytest

from helpers import config
from reporting.samples import make_report, parsed
from subdistill_hf.pipeline.advice import label_advice


def report_of(published, alone, images=500):
    """The report of a run with these test accuracies of the published student and of the one of labels alone."""
    report = parsed(make_report())
    shares = {report.published_result.method: published, "scratch": alone}
    results = [
        replace(result, accuracy=shares.get(result.method, result.accuracy))
        for result in report.results
        if result.method != "scratch" or alone is not None
    ]
    return replace(report, results=tuple(results), dataset=replace(report.dataset, test_images=images))


def test_where_labels_alone_are_better_they_should_count(tmp_path):
    said = label_advice(report_of(0.933, 0.989), config(tmp_path))
    assert "98.9 % instead of 93.3 %" in said
    assert "--task_weight 3" in said


@pytest.mark.parametrize(
    ("published", "alone", "images", "options"),
    [
        (0.933, None, 500, {}),  # labels alone were not tried
        (0.933, 0.70, 500, {}),
        (0.933, 0.960, 500, {}),  # 1.9 standard errors
        (0.933, 0.989, 80, {}),  # of so few images it may be chance
        (0.933, 0.989, 500, {"task_weight": 1.0}),
    ],
)
def test_without_a_clear_difference_or_where_they_count_nothing_is_said(tmp_path, published, alone, images, options):
    assert label_advice(report_of(published, alone, images), config(tmp_path, **options)) is None
