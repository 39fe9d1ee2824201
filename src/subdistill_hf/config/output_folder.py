"""The folder that a command writes to: checked before any work, and held for one run at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from subdistill_hf.errors import SubDistillError

LOCK_FILE = ".run.lock"
"""The file by which a running command holds its folder; it is gone when the command ends."""


def check_output_folder(folder: str | Path) -> None:
    """Refuse a folder that cannot be made or written; what was made for the check is taken back.

    Raises:
        SubDistillError: naming the folder, and what the system says of it.
    """
    path = Path(folder)
    try:
        if path.exists() and not path.is_dir():
            raise SubDistillError(f"output_dir={str(folder)!r} is a file: expected a folder")
        with _made(path), tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SubDistillError(
            f"output_dir={str(folder)!r} cannot be written ({error.strerror or error}): give another folder"
        ) from error


@contextmanager
def held_for_this_run(folder: str | Path | None) -> Iterator[None]:
    """Inside the context no other run of this package writes to the folder; `None` for a run that writes nothing.

    The lock is the operating system's: it is free again when the process ends, however it ends.

    Raises:
        SubDistillError: when another run holds the folder; or when it cannot be written.
    """
    if folder is None:
        yield
        return
    check_output_folder(folder)
    path = Path(folder)
    with _made(path):
        lock = FileLock(path / LOCK_FILE)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise SubDistillError(
                f"another run is writing to output_dir={str(folder)!r}: wait for its end, or give another folder"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # the folder may be gone, or read-only by now
                (path / LOCK_FILE).unlink(missing_ok=True)
            lock.release()


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Inside the context the folder exists; on exit those that were made for it and are empty are removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            if not path.is_dir() or next(path.iterdir(), None) is not None:
                break
            path.rmdir()
