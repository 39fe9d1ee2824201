"""`subdistill export`: its options, and what it refuses before any work."""

import pytest

from command_line import run
from subdistill_hf.config.commands import ExportOptions


@pytest.fixture
def given(monkeypatch):
    """What the command hands over."""
    calls = []

    def export_student(folder, options):
        calls.append((folder, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("subdistill_hf.export.run.export_student", export_student)
    return calls


def test_options_become_fields(given):
    status, _, said = run("export", ["student", "--int8", "--preprocessing", "outside", "--max_loss", "0.5"])
    assert given == [("student", ExportOptions(int8=True, preprocessing="outside", max_loss=0.5))]
    assert status == 130
    assert said == "interrupted: the student is as it was; the same command starts again\n"


def test_each_format_has_its_own_place_of_the_preprocessing(given):
    run("export", ["student"])
    run("export", ["student", "--format", "executorch"])
    assert [(options.format, options.preprocessing) for _, options in given] == [
        ("onnx", "inside"),
        ("executorch", "outside"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["student", "--format", "pickle"], "invalid choice: 'pickle'"),
        (["student", "--max_loss", "-1"], "max_loss=-1: expected points of accuracy, from 0 to 100"),
        (
            ["student", "--format", "executorch", "--preprocessing", "inside"],
            "preprocessing='inside': not with format='executorch', for its runtime has no bicubic scaling",
        ),
        (["student", "--calibrate", "x"], "there is no option --calibrate; did you mean --calibration?"),
        ([], "folder"),
    ],
)
def test_what_does_not_fit_is_refused(given, words, message):
    status, _, said = run("export", words)
    assert status == 2
    assert message in said
    assert not given


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    status, _, said = run("export", [str(tmp_path / "none")])
    assert status == 2
    assert "holds no student" in said
