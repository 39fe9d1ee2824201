"""Every option of `distill`, with values that nobody foresaw: taken, or refused in one message before any work."""

import contextlib
import functools
import io
import os
import tempfile
import warnings
from pathlib import Path

import pytest

from subdistill_hf.cli import distill, main
from subdistill_hf.pipeline import run as pipeline

NUMBERS = ("-1", "0", "4294967296", "1e308", "nan", "inf", "x")
TEXTS = ("", "no such", "a/b", "{}", "[1]", '{"a": 1}', "null")
SWITCHES = ("true", "false", "maybe")
NOT_OF_A_RUN = ("help", "output_dir", "push_to_hub")  # that one asks the Hub who is there, see test_publish


class WorkBeginsError(BaseException):
    """The images would be read now."""


make_parser = functools.cache(distill.make_parser)


@functools.cache
def actions():
    return {
        action.dest: action
        for action in make_parser(all_arguments=True)._actions
        if action.option_strings and action.dest not in NOT_OF_A_RUN and action.option_strings != ["--help-all"]
    }


def values_of(action):
    if action.choices:
        return (*map(str, action.choices), "no such", "")
    if action.type in (int, float):
        return NUMBERS
    return SWITCHES if action.nargs == "?" else TEXTS


@pytest.fixture
def status_of(monkeypatch, tmp_path):
    """The exit status of `subdistill distill` with an option, or `None` where it begins to work; and what it says."""

    def begin(*given):
        raise WorkBeginsError

    monkeypatch.setattr(pipeline, "load_task", begin)
    monkeypatch.setattr(distill, "make_parser", make_parser)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def status(*words):
        environment = dict(os.environ)
        printed = io.StringIO()
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(printed),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                code = main(["distill", "--use_cpu", "--output_dir", "out", "--student=resnet:widths=4-4-4-4", *words])
        except WorkBeginsError:
            code = None
        finally:
            os.environ.clear()
            os.environ.update(environment)
        return code, printed.getvalue()

    return status


@pytest.mark.parametrize("name", sorted(actions()))
def test_odd_values_are_taken_or_refused_in_one_message(status_of, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no tries to reach it, which take time
    action = actions()[name]
    for value in values_of(action):
        code, said = status_of(f"{action.option_strings[0]}={value}")
        assert code in (None, 2), (value, said)
        if code == 2:
            lines = said.strip().splitlines()
            assert lines, value
            assert lines[-1].startswith("error: "), (value, said)
            assert "Traceback" not in said
            assert any(word[:5] in said for word in name.split("_")) or "training arguments" in said, (value, said)
    assert not list(Path().iterdir()), "a run that was refused leaves nothing"
