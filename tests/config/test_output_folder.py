"""Folders that cannot be written are refused before any work; a folder serves one run at a time."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from subdistill_hf.config.output_folder import (
    LOCK_FILE,
    check_output_folder,
    disk_fault,
    held_for_this_run,
    holds_files,
    refuse_other_files,
    written_whole,
)
from subdistill_hf.errors import SubDistillError

HOLD = """
import sys
from subdistill_hf.config.output_folder import held_for_this_run
with held_for_this_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("below", ["", "inner/most"])
def test_a_folder_that_can_be_made_is_taken_and_not_left_behind(tmp_path, below):
    folder = tmp_path / "new" / below
    check_output_folder(folder)
    assert not (tmp_path / "new").exists()


def test_a_folder_keeps_what_it_holds(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    check_output_folder(tmp_path)
    with held_for_this_run(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("file", "is a file"), ("file/below", "cannot be written"), ("n" * 300, "cannot be written")],
)
def test_places_that_cannot_be_folders_are_refused_in_one_line(tmp_path, name, said):
    (tmp_path / "file").write_text("")
    for refuse in (check_output_folder, lambda folder: held_for_this_run(folder).__enter__()):
        with pytest.raises(SubDistillError, match=said) as caught:
            refuse(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no folders, on Linux alone")
def test_a_file_system_that_takes_no_folders_is_refused():
    with pytest.raises(SubDistillError, match="cannot be written"):
        check_output_folder("/proc/subdistill")


def test_a_folder_of_other_files_is_told_from_one_that_is_free_or_an_earlier_one(tmp_path):
    def refused(**options):
        with pytest.raises(SubDistillError, match=r"already holds other files: give another --space"):
            refuse_other_files(tmp_path, ("runs.jsonl",), "space", **options)

    refuse_other_files(tmp_path / "new", ("runs.jsonl",))
    (tmp_path / LOCK_FILE).touch()
    assert not holds_files(tmp_path, hidden=True)
    (tmp_path / ".gitignore").touch()
    refuse_other_files(tmp_path, ("runs.jsonl",))
    refused(hidden=True)
    (tmp_path / "README.md").touch()
    refused()
    (tmp_path / "runs.jsonl").touch()
    refuse_other_files(tmp_path, ("runs.jsonl",), hidden=True)


def test_a_second_run_is_refused_while_the_first_one_writes(tmp_path):
    folder = tmp_path / "student"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(SubDistillError, match="another run is writing"), held_for_this_run(folder):
        pytest.fail("the folder was held twice")
    first.communicate("\n", timeout=60)
    with held_for_this_run(folder):
        assert (folder / LOCK_FILE).exists()
        (folder / "model").write_text("")
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_a_killed_run_holds_nothing(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    first.kill()
    first.communicate()
    with held_for_this_run(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_frees_the_folder(tmp_path):
    with pytest.raises(KeyError), held_for_this_run(tmp_path / "new"):
        raise KeyError
    with held_for_this_run(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path, monkeypatch):
    def no_locks(*given, **options):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("subdistill_hf.config.output_folder.FileLock.acquire", no_locks)
    with (
        pytest.warns(UserWarning, match="cannot be locked .*that no other run"),
        held_for_this_run(tmp_path),
    ):
        pass


def of_another(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "No space left on device, a.json"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left on"),
        (
            RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"),
            "No space left",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "No space left"),
        (of_another(ValueError("x"), OSError(errno.EROFS, "Read-only file system")), "Read-only file system"),
    ],
)
def test_a_full_disk_is_recognised_in_the_errors_of_other_libraries(error, fault):
    assert disk_fault(error).startswith(fault)


@pytest.mark.parametrize("error", [None, ValueError("other"), OSError(errno.ENOENT, "No such file or directory")])
def test_other_errors_are_not_of_the_disk(error):
    assert disk_fault(error) is None


def test_a_file_is_written_whole_or_stays_as_it_is(tmp_path):
    file = tmp_path / "report.json"
    for text in ("first", "second"):
        with written_whole(file) as part:
            part.write_text(text)
            assert not file.exists() or file.read_text() != text
        assert file.read_text() == text

    def fail():
        with written_whole(file) as part:
            part.write_text("thi")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert file.read_text() == "second"
