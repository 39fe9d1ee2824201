"""The pictures of a run, as they stand in its page: inside of it, so that it needs no other file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

from subdistill_hf.reporting.report import RunReport
from subdistill_hf.reporting.reported_answers import THUMBNAILS_FOLDER, WrongAnswer

LARGEST_PICTURE: Final = 100_000
"""Bytes; what is larger is none of ours."""
_TYPES: Final = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}


def data_address(path: Path) -> str | None:
    """A picture as an address that holds it; `None` where there is none, or a file that is too large for one."""
    if path.suffix not in _TYPES or not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
        return None
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def thumbnails(folder: Path, report: RunReport) -> dict[WrongAnswer, str]:
    """The pictures of wrong answers that the folder of a run has.

    Args:
        folder: of the run.
        report: of it.
    """
    found = {one: data_address(folder / THUMBNAILS_FOLDER / one.thumbnail) for one in report.wrong_answers or ()}
    return {one: address for one, address in found.items() if address is not None}
