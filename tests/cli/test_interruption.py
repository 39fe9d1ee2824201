"""Ctrl-C, and disks that are full: one line that says how to go on, and no traceback."""

import errno
import sys

import pytest

from command_line import arguments, files, run
from helpers import NAMES, run_python
from subdistill_hf.cli import main
from subdistill_hf.config.output_folder import LOCK_FILE, held_for_this_run
from subdistill_hf.errors import INTERRUPTED
from subdistill_hf.pipeline import run as pipeline
from subdistill_hf.training.trainer import SubDistillTrainer

pytestmark = pytest.mark.usefixtures("quick_reports")
FULL = OSError(errno.ENOSPC, "No space left on device")
COMMANDS = {
    "distill": "subdistill_hf.pipeline.run.distill",
    "inspect": "subdistill_hf.analysis.inspect.inspect",
    "analyse": "subdistill_hf.analysis.analyse.analyse",
}


def raiser(error):
    def fail(*given, **options):
        raise error

    return fail


def one_line(printed):
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_gives_one_line_and_its_own_status(inputs, tmp_path, monkeypatch, command):
    monkeypatch.setattr(COMMANDS[command], raiser(KeyboardInterrupt()))
    status, _, err = run(command, ["--output_dir", str(tmp_path / "out")])
    assert status == INTERRUPTED == 130
    assert one_line(err).startswith("interrupted: ")
    assert "the same command" in err


@pytest.mark.parametrize("command", ["push", "benchmark"])
def test_ctrl_c_gives_one_line_in_commands_with_a_file(tmp_path, monkeypatch, command):
    monkeypatch.setattr("subdistill_hf.cli.commands._run", raiser(KeyboardInterrupt()))
    status, _, err = run(command, [str(tmp_path)])
    assert (status, one_line(err)[:13]) == (INTERRUPTED, "interrupted: ")


def test_ctrl_c_while_words_are_read_gives_one_line(monkeypatch):
    monkeypatch.setattr("subdistill_hf.cli.distill.parse", raiser(KeyboardInterrupt()))
    status, _, err = run("distill", ["--output_dir=elsewhere"])
    assert (status, one_line(err)) == (INTERRUPTED, "interrupted: to go on, the same command, which starts again")
    assert main(["--help"]) == 0


def test_ctrl_c_while_the_commands_are_imported_gives_one_line(monkeypatch, capsys):
    class Interrupted:
        @staticmethod
        def find_spec(name, *given):
            if name == "subdistill_hf.cli.commands":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "subdistill_hf.cli.commands")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    assert main(["demo"]) == INTERRUPTED
    assert one_line(capsys.readouterr().err) == "interrupted"


def test_the_entry_point_imports_next_to_nothing():
    code = "import sys; import subdistill_hf.cli; print(*sys.modules)"
    loaded = run_python(code).stdout.split()
    assert [name for name in loaded if name.startswith("subdistill_hf.")] == [
        "subdistill_hf.errors",
        "subdistill_hf.cli",
    ]
    assert not {"argparse", "filelock", "torch"} & set(loaded)


def test_what_other_libraries_make_of_ctrl_c_is_one_line_too(monkeypatch):
    wrapped = RuntimeError("DataLoader worker exited")
    wrapped.__context__ = KeyboardInterrupt()
    monkeypatch.setattr("subdistill_hf.cli.commands._run", raiser(wrapped))
    status, _, err = run("demo", [])
    assert (status, one_line(err)[:13]) == (INTERRUPTED, "interrupted: ")


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("subdistill_hf.cli.commands._run", raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_after_checkpoints_ctrl_c_says_how_to_resume(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "build_report", raiser(KeyboardInterrupt()))
    status, _, err = run("distill", arguments(inputs, tmp_path / "out", method="kd"))
    assert status == INTERRUPTED
    assert err.splitlines()[-1].startswith(
        "interrupted: to go on, the same command with --resume_from_checkpoint true, or with --overwrite"
    )
    assert not (tmp_path / "out" / LOCK_FILE).exists()


# Disks


@pytest.mark.parametrize("command", ["distill", "inspect", "analyse"])
@pytest.mark.parametrize("below", ["file", "file/below", "n" * 300])
def test_folders_that_cannot_be_made_are_refused_before_any_work(inputs, tmp_path, monkeypatch, command, below):
    (tmp_path / "file").write_text("")
    for module in ("pipeline.task", "analysis.analyse", "analysis.inspect"):
        for name in ("load_subtask", "load_teacher"):
            monkeypatch.setattr(f"subdistill_hf.{module}.{name}", raiser(AssertionError("work")), raising=False)
    status, out, err = run(command, ["--output_dir", str(tmp_path / below)])
    assert (status, out) == (2, "")
    assert one_line(err).startswith(f"error: output_dir='{tmp_path / below}' ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_run_in_a_folder_is_refused_before_any_work(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load_task", raiser(AssertionError("work")))
    with held_for_this_run(tmp_path / "out"):
        for more in ([], ["--overwrite"], ["--resume_from_checkpoint", "true"]):
            status, out, err = run("distill", [*arguments(inputs, tmp_path / "out"), *more])
            assert (status, out) == (2, "")
            assert one_line(err).startswith("error: another run is writing to output_dir=")


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("subdistill_hf.training.checkpoints.save_distillation", "Kept: nothing"),
        ("subdistill_hf.pipeline.student_folder.RunReport.save", "Kept: the training up to "),
        ("subdistill_hf.pipeline.student_folder.save_model", "Kept: all figures in "),
        ("subdistill_hf.pipeline.student_folder.save_card", "and the student in "),
        ("subdistill_hf.pipeline.student_folder.contact_sheet", "and the student in "),
    ],
)
def test_a_disk_that_fills_leaves_what_was_made_and_says_where(inputs, tmp_path, monkeypatch, place, kept):
    monkeypatch.setattr(place, raiser(FULL))
    status, out, err = run("distill", arguments(inputs, tmp_path / "out", method="kd"))
    last = err.splitlines()[-1]
    assert status == 2
    assert last.startswith(
        f"error: {tmp_path / 'out'} cannot be written to any more (No space left on device). Kept: "
    )
    assert kept in last
    assert "To go on: the same command with --" in last
    assert "Traceback" not in err
    if "student_folder" in place:
        assert "accuracy" in out  # the table of results is printed in any case


def test_after_a_full_disk_the_run_goes_on_where_it_was(inputs, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr("subdistill_hf.pipeline.student_folder.save_model", raiser(FULL))
        assert run("distill", arguments(inputs, tmp_path / "out", method="kd"))[0] == 2
    monkeypatch.setattr(SubDistillTrainer, "training_step", raiser(AssertionError("trained again")))
    status, _, err = run(
        "distill", [*arguments(inputs, tmp_path / "out", method="kd"), "--resume_from_checkpoint", "true"]
    )
    assert status == 0, err
    assert {"model.safetensors", "README.md"} <= files(tmp_path / "out").keys()
    assert len(NAMES) == 3
