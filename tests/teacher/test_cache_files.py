"""Files of targets: whole or not there, checked byte by byte, within their limit."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from programs import run_program, start_program
from subdistill_hf.teacher.cache_files import PRECISIONS, CacheError, TargetFile, make_room, remove_leftovers

SHAPE = (6, 4, 5)


def target_file(folder, rows=SHAPE[0], precision="float16", **description):
    return TargetFile(folder, {"teacher": "abc", **description}, (rows, *SHAPE[1:]), precision)


def written(folder, seed=0, **options):
    file = target_file(folder, **options)
    part = folder / f".{file.name}.part"
    file.begin(part)
    values = torch.randn(file.shape, generator=torch.Generator().manual_seed(seed))
    array = file.mapped(part, writable=True)
    array[:] = values.to(array.dtype)
    del array
    file.publish(part)
    return file, values


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_read_here_and_by_safetensors(tmp_path, precision):
    file, values = written(tmp_path, precision=precision)
    assert file.check() is None
    kept = values.to(getattr(torch, precision))
    assert torch.equal(file.mapped(file.find()), kept)
    assert torch.equal(load_file(file.find())["targets"], kept)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert file.size == kept.numel() * kept.element_size()


def test_another_description_shape_or_precision_is_another_file(tmp_path):
    written(tmp_path)
    others = [
        target_file(tmp_path, teacher="other"),
        target_file(tmp_path, rows=7),
        target_file(tmp_path, precision="float32"),
    ]
    assert len({file.name for file in [target_file(tmp_path), *others]}) == 4
    assert [file.check() for file in others] == ["not there"] * 3


def test_changing_what_was_read_leaves_the_file_as_it_was(tmp_path):
    file, values = written(tmp_path)
    file.mapped(file.find()).zero_()
    assert file.check() is None
    assert torch.equal(file.mapped(file.find()), values.half())


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated": (lambda file: os.truncate(file.find(), file.find().stat().st_size - 1), "truncated or incomplete"),
    "deleted": (lambda file: file.find().unlink(), "truncated or incomplete"),
    "a byte flipped": (lambda file: flip_a_byte(file.find()), "damaged"),
    "index cut": (lambda file: os.truncate(file.folder / f"{file.name}.json", 20), "truncated or incomplete"),
    "index gone": (lambda file: (file.folder / f"{file.name}.json").unlink(), "not there"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_can_be_removed_and_written_again(tmp_path, damage):
    file, values = written(tmp_path)
    change, reason = DAMAGE[damage]
    change(file)
    assert reason in file.check()
    file.remove()
    assert list(tmp_path.iterdir()) == []
    again, _ = written(tmp_path)
    assert again.check() is None
    assert torch.equal(again.mapped(again.find()), values.half())


def test_two_writers_of_the_same_targets_do_not_disturb_each_other(tmp_path):
    """The second's bytes differ in rounding; a reader of the first goes on, a new reader gets one of the two."""
    first, values = written(tmp_path, seed=0)
    reading = first.mapped(first.find())
    second, others = written(tmp_path, seed=1)
    assert second.check() is None
    assert torch.equal(reading, values.half())
    assert torch.equal(second.mapped(second.find()), others.half())


KILLED = """
import os, signal, sys
from pathlib import Path
from teacher import test_cache_files as tests
from subdistill_hf.teacher.cache_files import TargetFile
moment = sys.argv[2]
def die(*unused, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "while writing":
    TargetFile.publish = die
elif moment == "before the index":
    Path.write_text = die
tests.written(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["while writing", "before the index"])
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, moment):
    done = run_program(KILLED, tmp_path, moment)
    assert done.returncode == -9, done.stderr
    assert list(tmp_path.iterdir()) != []
    assert target_file(tmp_path).check() == "not there"
    file, values = written(tmp_path)
    assert file.check() is None
    assert torch.equal(file.mapped(file.find()), values.half())


# The limit


def aged(folder, name, age, rows=SHAPE[0]):
    file, _ = written(folder, rows=rows, teacher=name)
    index = folder / f"{file.name}.json"
    os.utime(index, (index.stat().st_atime, index.stat().st_mtime - age))
    return file


def test_the_least_recently_used_make_room(tmp_path):
    old, older, new = aged(tmp_path, "old", 20), aged(tmp_path, "older", 30), aged(tmp_path, "new", 0)
    size = old.find().stat().st_size
    assert make_room(tmp_path, size, 4 * size, ()) == []
    assert make_room(tmp_path, size, 3 * size, ()) == [older.name]
    assert make_room(tmp_path, size, 2 * size, [old.name]) == [new.name]
    assert (old.check(), older.check(), new.check()) == (None, "not there", "not there")


ROOM = """
import sys
from pathlib import Path
from teacher import test_cache_files as tests
from subdistill_hf.teacher.cache_files import make_room
folder, name = Path(sys.argv[1]), sys.argv[2]
for number in range(60):
    file = tests.target_file(folder, teacher=f"{name}{number}")
    make_room(folder, file.size, 4 * file.size, ())
    tests.written(folder, teacher=f"{name}{number}")
    file.check()
"""


def test_several_runs_make_room_at_once(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "gone.json").symlink_to(tmp_path / "nowhere")  # as if deleted between listing and looking
    places = [tmp_path / "printed" / name for name in "ab"]
    for place in places:
        place.mkdir(parents=True)
    runs = [start_program(ROOM, folder, place.name, printed=place) for place in places]
    for run, place in zip(runs, places, strict=True):
        run.join()
        assert run.exitcode == 0, (place / "err").read_text(encoding="utf-8")
    assert not list(folder.glob(".*.part"))


def test_use_is_remembered(tmp_path):
    first, second = aged(tmp_path, "first", 30), aged(tmp_path, "second", 20)
    assert first.check() is None
    size = first.find().stat().st_size
    assert make_room(tmp_path, size, 2 * size, ()) == [second.name]


def test_too_much_is_refused_before_anything_is_deleted(tmp_path):
    file = aged(tmp_path, "one", 10)
    with pytest.raises(CacheError, match=r"more than teacher_cache_limit=1: use fewer views"):
        make_room(tmp_path, 2**30 + 1, 2**30, ())
    with pytest.raises(CacheError, match=r"the disk of .* has .* GiB left"):
        make_room(tmp_path, 2**60, 2**61, ())
    assert file.check() is None


def test_the_index_says_what_the_targets_are_of(tmp_path):
    file, _ = written(tmp_path, layer="stage 1")
    entry = json.loads((tmp_path / f"{file.name}.json").read_text(encoding="utf-8"))
    assert entry["of"] == {"teacher": "abc", "layer": "stage 1"}


def test_leftovers_of_killed_runs_are_deleted_an_hour_later(tmp_path):
    file, _ = written(tmp_path)
    orphan, _ = written(tmp_path, teacher="killed")
    orphan.index.unlink()
    left = [orphan.find(), *tmp_path.glob(f"{orphan.name}-*"), tmp_path / ".x.part", tmp_path / ".x.json"]
    left = [path for path in left if path is not None]
    for path in left[1:]:
        path.write_text("{}", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (0, 0))
    for path in tmp_path.glob(f"{file.name}*"):
        os.utime(path, (0, 0))
    make_room(tmp_path, 0, 2**30, ())
    assert not any(path.exists() for path in left)
    assert file.check() is None


def test_targets_of_another_user_can_be_read(tmp_path, monkeypatch):
    file, _ = written(tmp_path)

    def refused(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert file.check() is None


def test_space_is_taken_when_a_file_begins_and_a_full_disk_is_told_then(tmp_path, monkeypatch):
    """Later a full disk would be a bus error: the array is mapped into memory."""
    file = TargetFile(tmp_path, {"of": "space"}, (1000, 100), "float32")
    file.begin(tmp_path / "part")
    assert (tmp_path / "part").stat().st_blocks * 512 >= file.size

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"targets cannot be written to .*No space left on device.*teacher_cache_dir"):
        file.begin(tmp_path / "part")


def test_an_array_that_cannot_be_described_is_not_left_behind(tmp_path, monkeypatch):
    def full(*given, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []
