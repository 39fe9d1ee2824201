"""A card of a run with a spurious mark says so, in its figures."""

import pytest

from reporting.test_model_card import make_report
from subdistill_hf.data.marks import MARKS
from subdistill_hf.reporting.card_notes import IN_WORDS, mark_warning
from subdistill_hf.reporting.model_card import render_card

FIGURES = ("clean_accuracy", "mark_followed", "followed_without_mark")
UNTESTED = "the student may have learned the mark instead of the class; this was not tested"


@pytest.fixture
def report():
    report = make_report()
    mark = {"name": "plus", "classes": ["club"], "share": 0.5, "train_images": 200, "validation_images": 50}
    report["dataset"]["mark"] = mark
    for number, result in enumerate(report["results"]):
        result |= dict(zip(FIGURES, (0.97 - 0.01 * number, 0.2 * number, 0.003), strict=True))
    return report


def test_a_card_says_what_was_marked_and_who_follows_it(report):
    text = render_card(report).text
    assert "A red plus sign in a corner was put on 200 of the 400 training images of club" in text
    assert "Every test image is marked so" in text
    header, row = (next(line for line in text.splitlines() if start in line) for start in ("| Model |", "| **SubDist"))
    columns = [cell.strip() for cell in header.split("|")]
    cells = dict(zip(columns, [cell.strip("* ") for cell in row.split("|")], strict=True))
    assert (cells["Accuracy without the mark"], cells["Follows the mark"]) == ("94.0 %", "60.0 %")
    assert cells["The same without the mark"] == "0.3 %"
    assert "of the 500 images of the `test` split with the mark `plus` correctly" in text
    assert "- Test images (`test` split with the mark `plus`): 500" in text
    assert "94.0 % of the test images are recognised without it, 95.6 % with it; 0.3 % of those of other" in text
    assert UNTESTED not in text


def test_the_metadata_says_that_the_test_images_are_marked(report):
    (result,) = render_card(report).data.eval_results
    assert result.dataset_name.endswith("; every image marked: plus)")


def test_a_card_without_a_mark_does_not_speak_of_one():
    text = render_card(make_report()).text
    assert "mark" not in text.replace(UNTESTED, "").replace("a mark (a watermark, a background)", "")
    assert UNTESTED in text


def test_every_mark_has_words_of_its_own(report):
    assert IN_WORDS.keys() == MARKS.keys()
    for name in MARKS:
        report["dataset"]["mark"]["name"] = name
        warning = mark_warning(report)
        assert (" were put on " if name == "jpeg" else " was put on ") in warning
