"""Where a command writes: refuse, before any work, a place that cannot be a folder."""

from __future__ import annotations

from pathlib import Path

from subdistill_hf.errors import SubDistillError


def refuse_file(folder: str | Path) -> None:
    """Refuse an `output_dir` that exists and is no folder.

    Raises:
        SubDistillError: naming it.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise SubDistillError(f"output_dir={str(folder)!r} is a file: expected a folder")
