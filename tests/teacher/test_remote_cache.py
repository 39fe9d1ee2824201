"""Targets in another place: whole or not there, checked when they come, and never a reason to lose those on disk.

An object storage is a server of moto on this machine, which s3fs speaks to as to one of S3, where both are installed.
"""

from importlib.util import find_spec

import fsspec
import pytest
import torch

from subdistill_hf.teacher.cache_files import CacheError
from subdistill_hf.teacher.remote_cache import RemoteCache, check_cache_place, folder_on_disk, is_remote
from teacher.test_cache_files import target_file, written

needs_storage = pytest.mark.skipif(
    find_spec("s3fs") is None or find_spec("moto") is None, reason="pip install s3fs 'moto[server]'"
)


@pytest.fixture(scope="module")
def storage():
    """The address of an object storage on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def signed_in(storage, monkeypatch):
    """What a user sets in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage)
    for name, value in (("ACCESS_KEY_ID", "name"), ("SECRET_ACCESS_KEY", "word"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=needs_storage)])
def address(request, tmp_path, monkeypatch):
    """An empty place."""
    if request.param == "file":
        yield f"file://{tmp_path / 'storage'}"
        return
    if request.param == "s3":
        signed_in(request.getfixturevalue("storage"), monkeypatch)
    yield f"{request.param}://bucket/targets"
    files = fsspec.filesystem(request.param)
    if request.param == "s3":
        files.rm("bucket", recursive=True)
    else:
        files.store.clear()


def folders(tmp_path):
    """Of two machines."""
    found = tmp_path / "here", tmp_path / "there"
    for folder in found:
        folder.mkdir()
    return found


def files_of(address):
    files, root = fsspec.core.url_to_fs(address)
    return files, sorted(files.ls(root, detail=False))


def test_what_one_machine_leaves_another_fetches(tmp_path, address):
    here, there = folders(tmp_path)
    file, values = written(here)
    remote = RemoteCache(address)
    remote.check()
    assert not remote.holds(file)
    assert remote.leave(file)
    assert remote.holds(file)
    assert not remote.leave(file)  # it is there
    other = target_file(there)
    assert RemoteCache(address).fetch(other) is None
    assert other.check() is None
    assert torch.equal(other.mapped(other.find()), values.half())
    assert sorted(path.name for path in there.iterdir()) == sorted(path.name for path in here.iterdir())


def test_an_array_without_its_description_is_not_there(tmp_path, address):
    here, _ = folders(tmp_path)
    file, _ = written(here)
    remote = RemoteCache(address)
    remote.leave(file)
    files, kept = files_of(address)
    files.rm_file(kept[1])  # .json, as where the leaving was cut short
    assert not remote.holds(file)
    assert remote.leave(file)
    assert files_of(address)[1] == kept


@pytest.mark.parametrize("fault", ["damaged (their bytes", "damaged (their description", "incomplete"])
def test_what_is_damaged_there_is_not_taken_and_replaced(tmp_path, address, fault):
    here, there = folders(tmp_path)
    file, _ = written(here)
    remote = RemoteCache(address)
    remote.leave(file)
    files, (array, index) = files_of(address)
    if fault == "incomplete":
        files.rm_file(array)
    else:
        place = array if "bytes" in fault else index
        content = files.cat_file(place)
        files.pipe_file(place, content[:-1] + b"x")
    other = target_file(there)
    assert remote.fetch(other).startswith(fault)
    assert list(there.iterdir()) == []
    remote.replace(file)
    assert remote.leave(file)
    assert remote.fetch(other) is None


def test_errors_of_the_place_are_one_message(tmp_path, monkeypatch):
    here, there = folders(tmp_path)
    file, _ = written(here)
    remote = RemoteCache("memory://bucket/targets")

    def fail(*given, **options):
        raise PermissionError("Forbidden.")

    for name in ("exists", "cat_file"):
        monkeypatch.setattr(type(remote._files), name, fail)
    for use in (remote.check, lambda: remote.leave(file), lambda: remote.holds(file)):
        with pytest.raises(CacheError, match=r"^teacher_cache_dir='memory://bucket/targets' cannot be reached: Forb"):
            use()
    with pytest.raises(CacheError, match=r"cannot be read: Forbidden$"):
        remote.fetch(target_file(there))
    assert file.check() is None
    assert list(there.iterdir()) == []


@needs_storage
def test_a_storage_that_does_not_answer_is_refused_before_any_work(monkeypatch):
    signed_in("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(CacheError, match=r"^teacher_cache_dir='s3://bucket/targets' cannot be reached: Could not"):
        check_cache_place("s3://bucket/targets")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_an_address_that_means_nothing_is_refused_and_a_password_is_not_repeated():
    with pytest.raises(CacheError, match=r"teacher_cache_dir='nope://place' cannot be reached: Protocol not known"):
        check_cache_place("nope://place")
    for address in ("ftp://me:secret@host/targets", "simplecache::s3://me:secret@bucket", "s3://me:secret/x@bucket"):
        with pytest.raises(CacheError, match="holds a password") as refused:
            check_cache_place(address)
        assert "secret" not in str(refused.value)


def test_the_folder_on_disk_of_an_address_is_the_default_one(tmp_path):
    assert folder_on_disk(str(tmp_path)) == tmp_path
    assert folder_on_disk("s3://bucket/targets") == folder_on_disk(None)
    assert is_remote("s3://bucket/targets")
    assert not is_remote("C:\\targets")
    check_cache_place(str(tmp_path))
    check_cache_place("memory://nothing/there/yet")
