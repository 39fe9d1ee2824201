"""The folder that a command writes to: checked before any work, and held for one run at a time."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from filelock import FileLock, Timeout

from subdistill_hf.errors import SubDistillError, with_causes

LOCK_FILE = ".run.lock"
"""The file by which a running command holds its folder; it is gone when the command ends."""

RUNS_FOLDER: Final = "runs"
"""The folder with the checkpoints of a run of `distill`, in its output folder."""
LEAST_SPACE: Final = 2**16  # bytes that the disk must have left
_DISK_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_FAULTS_OF_LIBRARIES: Final = {
    "No space left on device": "No space left on device",
    "Disk quota exceeded": "Disk quota exceeded",
    "PytorchStreamWriter failed": "No space left on device",
    ". unexpected pos ": "No space left on device",  # of torch's writer, too
}
"""In the messages of safetensors and torch, whose errors have no number."""


def disk_fault(error: BaseException | None) -> str | None:
    """The system's message of a disk that is full or cannot be written, if an error comes from that."""
    for each in with_causes(error):
        if isinstance(each, OSError) and each.errno in _DISK_FAULTS:
            return f"{each.strerror}{f', {each.filename}' if each.filename else ''}"
        found = next((fault for text, fault in _FAULTS_OF_LIBRARIES.items() if text in str(each)), None)
        if found is not None:
            return found
    return None


@contextmanager
def telling_full_disk(folder: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Make one message of an error of a disk that is full or cannot be written.

    Args:
        folder: that is written to.
        advice: what is kept, or how to go on.

    Raises:
        SubDistillError: with the system's message, or that of this package, and the advice.
    """
    try:
        yield
    except Exception as error:
        if (fault := disk_fault(error)) is None:
            raise
        told = isinstance(error, SubDistillError)  # such as a cache on another disk
        said = error if told else f"{folder} cannot be written to any more ({fault})"
        raise SubDistillError(f"{said}. {advice()}") from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file that is written whole or not at all: one that is there stays as it is if the writing fails.

    Args:
        path: of the file.

    Yields:
        The path to write to, which then takes the place of the file.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def take_space(file: IO[bytes], size: int) -> None:
    """Give a file its size and the disk's space for it: writing to a mapped file whose disk is full kills a process.

    Args:
        file: open for writing; what is in it stays.
        size: bytes.

    Raises:
        OSError: when the disk has not enough room.
    """
    file.flush()
    if not hasattr(os, "posix_fallocate"):
        file.truncate(size)
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        file.truncate(size)  # a file system that cannot tell


def check_output_folder(folder: str | Path, option: str = "output_dir") -> None:
    """Refuse a folder that cannot be made or written; what was made for the check is taken back.

    Args:
        folder: the folder.
        option: that gives it.

    Raises:
        SubDistillError: naming the folder, and what the system says of it.
    """
    path = Path(folder)
    try:
        if path.exists() and not path.is_dir():
            raise SubDistillError(f"{option}={str(folder)!r} is a file: expected a folder")
        with _made(path), tempfile.TemporaryFile(dir=path) as file:
            file.write(b"-" * LEAST_SPACE)
    except OSError as error:
        raise SubDistillError(
            f"{option}={str(folder)!r} cannot be written ({error.strerror or error}): give another folder"
        ) from error


def holds_files(folder: Path, hidden: bool = False) -> bool:
    """Whether a folder is there and holds something.

    Args:
        folder: the folder.
        hidden: count hidden files and folders too, which a command leaves alone unless it replaces the whole folder;
            the lock of a run never counts.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    return any(path.name != LOCK_FILE and (hidden or not path.name.startswith(".")) for path in found)


def refuse_other_files(
    folder: Path,
    marks: Collection[str],
    option: str = "output_dir",
    hidden: bool = False,
    error: type[SubDistillError] = SubDistillError,
) -> None:
    """Refuse a folder that holds somebody else's files, which a command would write over.

    Args:
        folder: that the command writes to.
        marks: names of files and folders; where one of them is there, the folder is an earlier one of the command.
        option: that gives the folder.
        hidden: see `holds_files`.
        error: that is raised.

    Raises:
        SubDistillError: of the given kind, naming the folder.
    """
    if holds_files(folder, hidden) and not any((folder / name).exists() for name in marks):
        raise error(f"{folder} already holds other files: give another --{option}")


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
        except (OSError, NotImplementedError) as error:
            warnings.warn(
                f"{str(folder)!r} cannot be locked ({error}): see to it that no other run writes to it", stacklevel=3
            )
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
            with suppress(OSError):  # somebody else has put something into it
                path.rmdir()


def how_to_go_on(folder: Path) -> str:
    """The addition to the command of a run of `distill` that was cut short, read from the run's folder."""
    if any(folder.glob(f"{RUNS_FOLDER}/*/checkpoint-*/trainer_state.json")):
        return "the same command with --resume_from_checkpoint true, or with --overwrite to start again"
    if (folder / RUNS_FOLDER).is_dir():
        return "the same command with --overwrite, which starts again"
    return "the same command, which starts again"
