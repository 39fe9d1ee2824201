"""`subdistill explain`: its options, and what it refuses before any work."""

import pytest

from command_line import run
from subdistill_hf.config.commands import ExplainOptions


@pytest.fixture
def given(monkeypatch):
    """What the command hands over."""
    calls = []

    def explain_student(folder, options):
        calls.append((folder, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("subdistill_hf.explain.run.explain_student", explain_student)
    return calls


def test_options_become_fields(given):
    words = ["student", "--teacher", "t", "--images", "a.png", "b", "--method", "shapley", "--most_images", "5"]
    status, _, said = run("explain", words)
    options = ExplainOptions(teacher="t", images=["a.png", "b"], method="shapley", most_images=5)
    assert given == [("student", options)]
    assert status == 130
    assert said == "interrupted: earlier explanations are as they were; the same command starts again\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["student", "--method", "lrp"], "invalid choice: 'lrp'"),
        (["student", "--most_images", "0"], "most_images=0: expected at least 1"),
        (["student", "--pictures", "-1"], "pictures=-1: expected at least 0"),
        (
            ["student", "--other_subtasks", "superclass:dice"],
            "other_subtasks are compared with --subspaces: give both",
        ),
        (["student", "--image", "x"], "there is no option --image; did you mean --images?"),
        ([], "folder"),
    ],
)
def test_what_does_not_fit_is_refused(given, words, message):
    status, _, said = run("explain", words)
    assert status == 2
    assert message in said
    assert not given


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    status, _, said = run("explain", [str(tmp_path / "none")])
    assert status == 2
    assert "holds no student" in said
