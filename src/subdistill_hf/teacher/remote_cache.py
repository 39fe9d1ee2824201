"""Targets in object storage, or another place that fsspec reaches: fetched before the teacher runs, left there after.

The files there are those of a folder on disk, under the same names. Targets are read as memory, so they are copied to
a folder on disk first.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec

from subdistill_hf.config.addresses import has_password
from subdistill_hf.config.output_folder import check_output_folder
from subdistill_hf.teacher.cache_files import CacheError, TargetFile, digest_of


def is_remote(place: str | None) -> bool:
    """Whether a `teacher_cache_dir` is an address for fsspec, such as `s3://bucket/targets`, and no folder on disk."""
    return place is not None and "://" in place


class RemoteCache:
    """A place of targets that fsspec reaches. Who may read and write it, its library finds out by itself.

    Args:
        address: such as `s3://bucket/targets`.

    Raises:
        CacheError: for an address with a password, of an unknown kind, or of one whose library is not installed.
    """

    def __init__(self, address: str) -> None:
        if has_password(address):
            raise CacheError(
                "teacher_cache_dir holds a password, which would be logged: let the environment, or the library's own "
                "settings, say who you are"
            )
        self.address = address
        self._replaced: set[str] = set()
        with self._told("cannot be reached"):
            self._files, self._root = fsspec.core.url_to_fs(address)

    def check(self) -> None:
        """Refuse a place that cannot be looked at.

        Raises:
            CacheError: with what its library says.
        """
        with self._told("cannot be reached"):
            self._files.exists(self._root)

    def holds(self, file: TargetFile) -> bool:
        """Whether an array is there, whole.

        Raises:
            CacheError: when the place cannot be looked at.
        """
        with self._told("cannot be reached"):
            self._files.invalidate_cache()  # others write to it, too
            return bool(self._files.exists(self._index(file)))

    def fetch(self, file: TargetFile) -> str | None:
        """Copy an array that is there to its folder on disk; why it cannot be used, or `None` where it is whole.

        Raises:
            CacheError: when it cannot be copied.
        """
        part = file.folder / f".{file.name}-{uuid.uuid4().hex}.part"
        try:
            with self._told("cannot be read"):
                try:
                    entry = json.loads(self._files.cat_file(self._index(file)))
                    name, expected = PurePosixPath(entry["file"]).name, entry["sha256"]
                except (ValueError, KeyError, TypeError):
                    return "damaged (their description cannot be read)"
                try:
                    self._files.get_file(f"{self._root}/{name}", str(part))
                except FileNotFoundError:
                    return "incomplete"
            if digest_of(part) != expected:
                return "damaged (their bytes have changed)"
            file.publish(part)
        finally:
            part.unlink(missing_ok=True)
        return None

    def replace(self, file: TargetFile) -> None:
        """Let `leave` write an array although one is there: that one cannot be used."""
        self._replaced.add(file.name)

    def leave(self, file: TargetFile) -> bool:
        """Copy an array on disk to the place, its description last; whether it was not there.

        Raises:
            CacheError: when it cannot be written.
        """
        path = file.find()
        if path is None or (self.holds(file) and file.name not in self._replaced):
            return False
        with self._told("cannot be written"):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(path), f"{self._root}/{path.name}")
            self._files.put_file(str(file.index), self._index(file))
        self._replaced.discard(file.name)
        return True

    def _index(self, file: TargetFile) -> str:
        return f"{self._root}/{file.index.name}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Make one message of whatever the library of the place raises: each has errors of its own."""
        try:
            yield
        except Exception as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise CacheError(f"teacher_cache_dir={self.address!r} {what}: {reason}") from error


def check_cache_place(place: str) -> None:
    """Refuse a `teacher_cache_dir` that cannot be written, or an address that cannot be reached, before any work.

    Raises:
        SubDistillError: naming it.
    """
    if is_remote(place):
        RemoteCache(place).check()
    else:
        check_output_folder(place, "teacher_cache_dir")


def folder_on_disk(place: str | None) -> Path:
    """The folder on disk of a `teacher_cache_dir`: of an address, or of none, the default one."""
    return default_folder() if place is None or is_remote(place) else Path(place)


def default_folder() -> Path:
    """Where targets are kept: beside the datasets of the Hub's libraries."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "subdistill_hf" / "targets"
