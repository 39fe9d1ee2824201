"""The index of a family: what it says of experts that are there, and of those that are not."""

from dataclasses import replace

import pytest
from PIL import Image

from reporting.samples import make_report, parsed
from subdistill_hf.reporting.family_page import (
    ExpertEntry,
    FamilyIndex,
    accuracies_of,
    render_index,
    told_result,
    write_index,
)
from subdistill_hf.reporting.reported_images import ReportedOthers


@pytest.fixture
def report():
    return parsed(make_report())


def index_of(report, **changed):
    worse = replace(report, results=tuple(replace(one, accuracy=0.5) for one in report.results))
    entries = (
        ExpertEntry("cards", ("superclass:cards",), report),
        ExpertEntry("worse", ("a", "b"), worse),
        ExpertEntry("none", ("c", "d"), None, "the file /home/me/images/1.png is damaged"),
    )
    return FamilyIndex(**{"title": "fam_ily", "entries": entries, "commands": ("subdistill family",)} | changed)


def test_the_index_has_a_row_for_each_expert_that_is_there(report):
    page = render_index(index_of(report), plot="accuracies.png")
    teacher, student = accuracies_of(report)
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert [row.split("](")[0] for row in rows] == ["| [cards", "| [worse"]
    assert f"{100 * (student - teacher):+.1f} points" in rows[0]
    assert "+0.0 points" in rows[1]
    assert f"the teacher has {50 * (teacher + 0.5):.1f} % and the students {50 * (student + 0.5):.1f} %" in page
    assert student < teacher
    assert f", a difference of {50 * (student - teacher):+.1f} points." in page
    assert "- none: the file 1.png is damaged" in page
    assert "\n2 of 3 experts for classes of " in page
    assert "![Teacher and student of each expert](accuracies.png)" in page
    assert "no router" in page
    assert "\n\n\n" not in page


def test_experts_that_are_all_there_are_counted_and_each_command_is_told(report):
    whole = index_of(report).entries[:2]
    page = render_index(index_of(report, entries=whole, commands=("subdistill family a", "subdistill family /b/c")))
    assert "\n2 experts for classes of " in page
    assert "subdistill family a\nsubdistill family c\n" in page
    one = render_index(index_of(report, entries=whole[:1]))
    assert "\n1 expert for classes of " in one
    assert "In the mean" in page
    assert "In the mean" not in one


def test_the_index_of_a_family_without_experts(report):
    page = render_index(FamilyIndex("empty", (ExpertEntry("a", ("b", "c"), None),)))
    assert "- a: not finished" in page
    assert "Experts" not in page


def test_agreement_stands_alone_where_there_are_no_labels(report):
    unlabelled = replace(report, dataset=replace(report.dataset, labels_by_teacher=True))
    assert accuracies_of(unlabelled)[0] is None
    assert told_result(unlabelled).startswith("agreement with the teacher ")
    page = render_index(index_of(unlabelled))
    assert "Difference" not in page
    assert "The students have" in page


def test_experts_with_an_answer_for_other_images_are_told(report):
    others = ReportedOthers(answered=True, train_images=8, seen=4, unseen=2)
    answered = replace(report, dataset=replace(report.dataset, others=others))
    assert 'may get one of them, or the answer "none of these".' in render_index(index_of(answered))
    assert "takes every image for one of them" in render_index(index_of(report))


def test_the_index_is_written_with_a_plot(report, tmp_path):
    write_index(index_of(report), tmp_path)
    assert "](accuracies.png)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "accuracies.png") as drawn:
        assert drawn.width > 400


def test_a_plot_that_fails_leaves_the_table(report, tmp_path, monkeypatch, capsys):
    def broken(*given):
        raise RuntimeError("no canvas")

    monkeypatch.setattr("subdistill_hf.reporting.family_plot.plot_family", broken)
    write_index(index_of(report), tmp_path)
    assert "[cards]" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "accuracies.png not drawn" in capsys.readouterr().err
