"""Parsers tell what was given from what is a default."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from subdistill_hf.cli import benchmark, export, family, main
from subdistill_hf.cli.parsing import OptionsParser, without_token
from subdistill_hf.errors import SubDistillError


@dataclass
class Described:
    long_name: str = field(default="any", metadata={"help": "A text."})
    colour: Literal["red", "green"] = field(default="red", metadata={"help": "A colour."})
    fast: bool = field(default=True, metadata={"help": "A switch."})
    numbers: list[int] = field(default_factory=list, metadata={"help": "Numbers."})


@pytest.fixture
def parser():
    return OptionsParser(Described, prog="subdistill try")


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", {}),
        ("--long-name x --colour red", {"long_name": "x", "colour": "red"}),
        ("--long_name=x-y", {"long_name": "x-y"}),
        ("--long_name any --fast", {"long_name": "any", "fast": True}),
        ("--no_fast", {"fast": False}),
        ("--fast false", {"fast": False}),
        ("--numbers 1 --numbers 2 3", {"numbers": [2, 3]}),
    ],
)
def test_what_was_given_is_told_though_it_may_be_the_default(parser, text, given):
    assert parser.only_given(text.split()) == given


def test_words_that_are_no_options_are_left(parser):
    assert parser.given(["--colour", "green", "--other", "3", "--fast", "--more", "a", "b"]) == (
        {"colour": "green", "fast": True},
        ["--other", "3", "--more", "a", "b"],
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--color red", r"there is no option --color; did you mean --colour\? \(subdistill try --help lists"),
        ("--size 3", r"there is no option --size \(subdistill try --help"),
        ("--long 3", r"there is no option --long; did you mean --long_name\?"),
        ("--colour blue", r"argument --colour: invalid choice: 'blue' \(choose from 'red', 'green'\)"),
        ("--numbers many", "invalid int value: 'many'"),
        ("--colour", "argument --colour: expected one argument"),
    ],
)
def test_mistakes_are_errors_of_one_line(parser, text, message):
    with pytest.raises(SubDistillError, match=message):
        parser.only_given(text.split())


def test_help_tells_defaults_and_choices(parser):
    text = " ".join(parser.format_help().split())
    assert "Turns --fast off." in text
    assert "--colour {red,green} A colour. (default: red)" in text
    assert "--long_name LONG_NAME, --long-name LONG_NAME A text. (default: any)" in text


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--hub_token", "hf_secret", "--seed", "1"], ["--seed", "1"]),
        (["--seed", "1", "--hub-token=hf_secret"], ["--seed", "1"]),
        (["--hub_token=hf_secret", "--seed", "1"], ["--seed", "1"]),
        (["--teacher_cache_dir", "s3://key:pw@bucket/x"], ["--teacher_cache_dir", "s3://bucket/x"]),
        (["--teacher_cache_dir=s3://key:pw@bucket/x"], ["--teacher_cache_dir=s3://bucket/x"]),
    ],
)
def test_a_command_for_a_card_has_no_token(words, kept):
    assert without_token(words) == kept


@pytest.mark.parametrize("command", ["distill", "adapt"])
def test_the_commands_that_write_a_card_leave_the_token_out(monkeypatch, tmp_path, command):
    told = []
    monkeypatch.setattr("subdistill_hf.pipeline.run.distill", lambda *given, command: told.append(command))
    monkeypatch.setattr(
        "subdistill_hf.pipeline.adapted_teacher.adapt_teacher", lambda *given, command: told.append(command)
    )
    words = [
        "--dataset",
        "digits",
        "--classes",
        "all",
        "--output_dir",
        str(tmp_path / "out"),
        "--hub_token",
        "hf_secret",
    ]
    assert main([command, *words]) == 0
    assert told[0].startswith(f"subdistill {command} --dataset digits")
    assert "hf_secret" not in told[0]


def test_a_tilde_that_the_shell_has_left_is_the_home_folder(monkeypatch, tmp_path):
    """Of options, and of arguments, which a shell may leave as they are, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert family.parse(["--subtasks=~/a.yaml", "--output_dir=~/fam", "--dataset=~/images"]) == {
        "subtasks": [f"{tmp_path}/a.yaml"],
        "output_dir": f"{tmp_path}/fam",
        "dataset": f"{tmp_path}/images",
    }
    assert export.parse(["~/student"]) == {"folder": f"{tmp_path}/student"}
    assert benchmark.parse(["~/grid.yaml"]) == {"config": f"{tmp_path}/grid.yaml"}
