"""The report of a run is the same object in memory and on disk, and a file that is none is refused in one message."""

import json
from dataclasses import FrozenInstanceError

import pytest

from reporting.samples import make_report, parsed
from subdistill_hf.reporting.report import ReportError, RunReport


def test_a_report_comes_back_from_its_file(tmp_path):
    report = parsed(make_report())
    report.save(tmp_path)
    assert RunReport.load(tmp_path / "report.json") == RunReport.load(tmp_path) == report


def test_the_file_holds_what_the_report_was_made_of(tmp_path):
    given = make_report()
    parsed(given).save(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["classes"] == given["classes"]
    for part in ("dataset", "teacher", "student"):
        assert given[part].items() <= written[part].items()
    for ours, theirs in zip(written["results"], given["results"], strict=True):
        assert theirs.items() <= ours.items()
        assert "mark_followed" not in ours
    assert written["histories"] == given["histories"]
    assert written["usage"] == given["usage"]


def test_the_figures_of_a_mark_are_in_the_file_of_a_marked_run_alone():
    given = make_report()
    mark = {"name": "plus", "classes": ["club"], "share": 0.5, "train_images": 200, "validation_images": 50}
    given["dataset"]["mark"] = mark
    given["results"][1] |= {"clean_accuracy": 0.5, "mark_followed": 0.25, "followed_without_mark": 0.0}
    written = parsed(given).to_dict()
    assert written["results"][1]["mark_followed"] == 0.25
    assert written["results"][0]["mark_followed"] is None


def test_entries_of_a_later_version_are_left_out():
    given = make_report()
    assert parsed(given | {"of a later version": 1}) == parsed(given)


def test_a_report_does_not_change():
    with pytest.raises(FrozenInstanceError):
        parsed(make_report()).created = "today"


def without(*path):
    given = make_report()
    part = given
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return given


def changed(value, *path):
    given = make_report()
    part = given
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected an object, found []"),
        (without("classes"), "expected an entry 'classes', found none"),
        (without("teacher", "parameters"), "expected an entry 'teacher.parameters', found none"),
        (changed("much", "results", 2, "accuracy"), "expected a number in 'results[2].accuracy', found 'much'"),
        (changed(True, "dataset", "test_images"), "expected a whole number in 'dataset.test_images', found True"),
        (changed("abc", "classes"), "expected a list in 'classes', found 'abc'"),
        (changed({"a": "b"}, "histories"), "expected a list in 'histories.a', found 'b'"),
        (changed([], "versions"), "expected an object in 'versions', found []"),
        (changed(None, "student", "recipe"), "expected a text in 'student.recipe', found None"),
    ],
)
def test_what_is_no_report_is_refused_by_its_place(given, message, tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(ReportError) as refused:
        RunReport.load(tmp_path)
    assert str(refused.value) == f"{file}: expected a report that subdistill distill wrote: {message}"


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"none\.json: expected a report .*, found no file"):
        RunReport.load(tmp_path / "none.json")
    (tmp_path / "report.json").write_bytes(b'{"created": "2026')
    with pytest.raises(ReportError, match=r"report\.json: expected JSON, found something else"):
        RunReport.load(tmp_path)


def test_the_published_result_is_the_one_that_is_named_or_the_last(tmp_path):
    given = make_report()
    assert parsed(given).published_result.method == "subdistill"
    assert parsed(given | {"published": "kd"}).published_result.method == "kd"
    assert parsed(given | {"published": "vid"}).published_result.method == "subdistill"
    assert parsed(given).teacher_result.method == "teacher"
    assert parsed(given | {"results": given["results"][1:]}).teacher_result is None
    with pytest.raises(ValueError, match="at least one student"):
        _ = parsed(given | {"results": given["results"][:1]}).published_result
