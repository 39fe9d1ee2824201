"""All commands: help without torch, messages without tracebacks."""

import io
import json
import sys

import pytest
import torch

from helpers import run_python
from subdistill_hf.cli import main
from subdistill_hf.cli.commands import COMMANDS

HELP = [
    ([], ["usage: subdistill COMMAND", "distill", "inspect", "analyse", "demo"]),
    (["--help"], ["usage: subdistill COMMAND"]),
    (["distill", "--help"], ["--teacher", "--classes", "--layers", "--centring", "--help-all"]),
    (["demo", "-h"], ["usage: subdistill demo", "subdistill distill --classes superclass:zodiac_signs"]),
    (["inspect", "--help"], ["--teacher", "--basis", "--output_dir"]),
    (["analyse", "--help"], ["--teacher", "--layers", "--bases", "--dimensions", "--output_dir"]),
    (["benchmark", "--help"], ["config", "--workers", "--report_only"]),
    (["push", "--help"], ["folder", "--repo", "--private"]),
]
MISTAKES = [
    (["distill", "--basis", "lda"], "argument --basis: invalid choice: 'lda'"),
    (["distill", "--train_images_per_class", "few"], "invalid int value: 'few'"),
    (["demo", "--layer_pairs"], "argument --layer_pairs/--layer-pairs: expected one argument"),
    (["inspect", "--laers", "a"], "there is no option --laers; did you mean --layers?"),
    (["push"], "the following arguments are required: folder"),
    (["push", "a", "b"], "there is no option b"),
    (["benchmark", "grid.yaml", "--wrokers", "1"], "there is no option --wrokers; did you mean --workers?"),
]
UNKNOWN = ["distil", "--teacher", "mine"]
ALL = [*(given for given, _ in HELP), *(given for given, _ in MISTAKES), UNKNOWN]
PROGRAM = """
import contextlib, io, json, sys
from subdistill_hf.cli import main

answers = []
for given in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(given)
    loaded = [name for name in ("torch", "datasets", "torchvision", "transformers") if name in sys.modules]
    answers.append([status, out.getvalue(), err.getvalue(), loaded])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers():
    """Commands to their status, what they printed and said, and which large libraries were loaded then.

    They are given one after another to one fresh process.
    """
    done = json.loads(run_python(PROGRAM, json.dumps(ALL)).stdout)
    return {" ".join(given): answer for given, answer in zip(ALL, done, strict=True)}


def as_typed(given):
    return " ".join(given) if isinstance(given, list) else ""


@pytest.mark.parametrize(("given", "expected"), HELP, ids=as_typed)
def test_help_is_given_without_torch(answers, given, expected):
    status, printed, _, loaded = answers[" ".join(given)]
    assert status == 0
    assert not {"torch", "datasets", "torchvision"} & set(loaded)
    for text in expected:
        assert text in printed


def test_help_lists_the_commands_without_transformers(answers):
    _, printed, _, loaded = answers["--help"]
    assert "transformers" not in loaded
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    for name, module in COMMANDS.items():
        assert [name, module.HELP] in lines


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=as_typed)
def test_mistakes_are_named_in_one_line_without_torch(answers, given, message):
    status, printed, said, loaded = answers[" ".join(given)]
    assert (status, printed) == (2, "")
    assert "torch" not in loaded
    command = given[0].replace("demo", "distill")
    assert said.splitlines() == [said.strip()]
    assert said.startswith("error: ")
    assert said.endswith(f"(subdistill {command} --help lists the options)\n")
    assert message in said


def test_an_unknown_command_ends_the_program_with_status_2(answers):
    status, printed, said, _ = answers[" ".join(UNKNOWN)]
    assert (status, printed) == (2, "")
    assert said.startswith("unknown command 'distil'\n\nusage: subdistill COMMAND")


def test_a_process_group_of_the_caller_stays_open(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert main(["push", str(tmp_path / "nothing")]) == 1
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_names_that_the_terminal_cannot_show_are_written_out(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    monkeypatch.setattr("subdistill_hf.cli.commands._run", lambda *given: print("class \u732b"))
    assert main(["demo"]) == 0
    assert written.getvalue().strip() == b"class \\u732b"
