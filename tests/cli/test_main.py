"""All commands: help without torch, messages without tracebacks."""

import io
import sys

import pytest
import torch

from helpers import run_python
from subdistill_hf.cli import main
from subdistill_hf.cli.commands import COMMANDS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["usage: subdistill COMMAND", "distill", "inspect", "analyse", "demo"]),
        (["--help"], ["usage: subdistill COMMAND"]),
        (["distill", "--help"], ["--teacher", "--classes", "--layers", "--centring", "--help-all"]),
        (["demo", "-h"], ["usage: subdistill demo", "subdistill distill --classes superclass:zodiac_signs"]),
        (["inspect", "--help"], ["--teacher", "--basis", "--output_dir"]),
        (["analyse", "--help"], ["--teacher", "--layers", "--bases", "--dimensions", "--output_dir"]),
        (["benchmark", "--help"], ["config", "--workers", "--report_only"]),
        (["push", "--help"], ["folder", "--repo", "--private"]),
    ],
    ids=lambda given: " ".join(given),
)
def test_help_is_given_without_torch(given, expected):
    code = "import sys; from subdistill_hf.cli import main; status = main(sys.argv[1:]); "
    code += "assert not {'torch', 'datasets', 'torchvision'} & sys.modules.keys(); sys.exit(status)"
    printed = run_python(code, *given).stdout
    for text in expected:
        assert text in printed


def test_help_lists_the_commands_without_transformers():
    code = "import sys; from subdistill_hf.cli import main; status = main(['--help']); "
    printed = run_python(code + "assert 'transformers' not in sys.modules; sys.exit(status)").stdout
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    for name, module in COMMANDS.items():
        assert [name, module.HELP] in lines


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["distill", "--basis", "lda"], "argument --basis: invalid choice: 'lda'"),
        (["distill", "--train_images_per_class", "few"], "invalid int value: 'few'"),
        (["demo", "--layer_pairs"], "argument --layer_pairs/--layer-pairs: expected one argument"),
        (["inspect", "--laers", "a"], "there is no option --laers; did you mean --layers?"),
        (["push"], "the following arguments are required: folder"),
        (["push", "a", "b"], "there is no option b"),
        (["benchmark", "grid.yaml", "--wrokers", "1"], "there is no option --wrokers; did you mean --workers?"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_mistakes_are_named_in_one_line_without_torch(given, message):
    code = "import sys; from subdistill_hf.cli import main; status = main(sys.argv[1:]); "
    code += "assert 'torch' not in sys.modules; sys.exit(status)"
    done = run_python(code, *given, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    command = given[0].replace("demo", "distill")
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"(subdistill {command} --help lists the options)\n")
    assert message in done.stderr


def test_an_unknown_command_ends_the_program_with_status_2():
    code = "import sys; from subdistill_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_python(code, "distil", "--teacher", "mine", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unknown command 'distil'\n\nusage: subdistill COMMAND")


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
