"""Files of a teacher's targets: memory-mapped safetensors that are whole or not there, and checked before use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subdistill_hf.config.output_folder import take_space
from subdistill_hf.errors import SubDistillError

TENSOR = "targets"
BLOCK = 2**22
_TYPES: dict[str, tuple[str, type[np.generic]]] = {"float16": ("F16", np.float16), "float32": ("F32", np.float32)}
PRECISIONS = tuple(_TYPES)


class CacheError(SubDistillError):
    """A cache that cannot be made or used."""


@dataclass(frozen=True)
class TargetFile:
    """One array of targets, a row per (view, image), under a name that says what it was made from.

    The array lies in `NAME-DIGEST.safetensors`, `NAME.json` says which and what it holds. The JSON is written last
    and in one move, so what a killed process leaves is never taken for targets; and since the digest of the bytes is
    part of the file's name, two runs that write the same targets do not disturb each other.

    Attributes:
        folder: where the files are.
        description: everything that the targets depend on.
        shape: of the array; rows first.
        precision: `"float16"` or `"float32"`.
    """

    folder: Path
    description: Mapping[str, Any]
    shape: tuple[int, ...]
    precision: str = "float16"

    @property
    def name(self) -> str:
        """Digest of the description, shape and precision."""
        whole = {"of": dict(self.description), "shape": list(self.shape), "precision": self.precision}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape)) * np.dtype(_TYPES[self.precision][1]).itemsize

    @property
    def index(self) -> Path:
        """The file that says which file holds the array, and what that is."""
        return self.folder / f"{self.name}.json"

    def find(self) -> Path | None:
        """The file with the array, if there is one; its bytes are not looked at."""
        try:
            entry = json.loads(self.index.read_text(encoding="utf-8"))
            path = self.folder / Path(entry["file"]).name
            whole = path.stat().st_size == len(self._header()) + self.size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if whole else None

    def check(self) -> str | None:
        """Why the array cannot be used, or `None` when it is there and every byte is what was written."""
        if not self.index.is_file():
            return "not there"
        path = self.find()
        if path is None:
            return "truncated or incomplete"
        try:
            if digest_of(path) != json.loads(self.index.read_text(encoding="utf-8")).get("sha256"):
                return "damaged (its bytes have changed)"
            with contextlib.suppress(PermissionError):  # another user's, whose folder may be read alone
                os.utime(self.index)  # when it was last used, for `make_room`
        except FileNotFoundError:  # another run has made room meanwhile
            return "not there"
        return None

    def begin(self, temporary: Path) -> None:
        """Take the space of the array in a file that is not valid yet.

        Raises:
            CacheError: when the disk has not enough room: others may have written to it since `make_room` looked.
        """
        header = self._header()
        try:
            with temporary.open("wb") as file:
                file.write(header)
                take_space(file, len(header) + self.size)
        except OSError as error:
            raise CacheError(
                f"the teacher's targets cannot be written to {self.folder} ({error.strerror}): use another "
                "teacher_cache_dir, or teacher_cache=off"
            ) from error

    def mapped(self, path: Path, writable: bool = False) -> Tensor:
        """The array in `path`, mapped into memory; changes reach the file only when it is writable."""
        kind = _TYPES[self.precision][1]
        array = np.memmap(path, kind, "r+" if writable else "c", len(self._header()), self.shape)
        return torch.from_numpy(array)

    def publish(self, temporary: Path) -> None:
        """Make a completely written file the array."""
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        digest = digest_of(temporary)
        path = self.folder / f"{self.name}-{digest[:16]}.safetensors"
        temporary.replace(path)
        entry = {"file": path.name, "sha256": digest, "precision": self.precision, "of": dict(self.description)}
        index = temporary.with_suffix(".json")
        try:
            index.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
            index.replace(self.index)
        except OSError:  # a full disk needs its space
            index.unlink(missing_ok=True)
            if not self.index.is_file():  # that of another run
                path.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Delete the array."""
        for path in self.folder.glob(f"{self.name}*"):
            path.unlink(missing_ok=True)

    def _header(self) -> bytes:
        """The beginning of a safetensors file; the library itself cannot map a new file into memory to fill it."""
        entry = {"dtype": _TYPES[self.precision][0], "shape": list(self.shape), "data_offsets": [0, self.size]}
        text = json.dumps({TENSOR: entry}).encode()
        text += b" " * (-len(text) % 64)
        return len(text).to_bytes(8, "little") + text


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left, but not what another run may be writing now: a part, and an array or its
    description without the other."""
    described = {path.stem for path in folder.glob("[!.]*.json")}
    arrays = [path for path in folder.glob("*-*.safetensors") if path.stem.rpartition("-")[0] not in described]
    for path in [*folder.glob(".*.part"), *folder.glob(".*.json"), *arrays]:
        with contextlib.suppress(OSError):  # another run was faster
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def make_room(folder: Path, needed: int, limit: int, keep: Collection[str]) -> list[str]:
    """Delete the arrays that were not used for longest until `needed` more bytes fit; returns their names.

    What killed processes left goes first.

    Other runs may do the same in the same folder at the same time.

    Args:
        folder: where the files are.
        needed: bytes that will be written.
        limit: bytes that all files together may take.
        keep: names of arrays that stay.

    Raises:
        CacheError: when they do not fit the limit or the disk, before anything is deleted.
    """
    gib = 2**30
    remove_leftovers(folder)
    used, sizes = {}, {}
    for path in folder.glob("[!.]*.json"):  # the others are being written
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            size = sum(part.stat().st_size for part in folder.glob(f"{path.stem}-*.safetensors"))
            used[path], sizes[path] = path.stat().st_mtime, size
    kept = sum(size for path, size in sizes.items() if path.stem in keep)
    if needed + kept > limit:
        raise CacheError(
            f"the teacher's targets take {(needed + kept) / gib:.2f} GiB, more than "
            f"teacher_cache_limit={limit / gib:g}: use fewer views (teacher_cache=N), a higher limit, or "
            "teacher_cache=off"
        )
    gone: list[str] = []
    total = sum(sizes.values())
    free = shutil.disk_usage(folder).free
    if needed > free + total - kept:
        raise CacheError(
            f"the teacher's targets take {needed / gib:.2f} GiB, and the disk of {folder} has {free / gib:.2f} GiB "
            "left: use fewer views (teacher_cache=N), another teacher_cache_dir, or teacher_cache=off"
        )
    for path in sorted(used, key=lambda path: used[path]):
        if path.stem not in keep and (total + needed > limit or needed > free):
            path.unlink(missing_ok=True)
            for part in folder.glob(f"{path.stem}-*.safetensors"):
                part.unlink(missing_ok=True)
            total, free = total - sizes[path], free + sizes[path]
            gone.append(path.stem)
    return gone
