"""The results of finished runs in one file, a line each, so that none is ever repeated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from subdistill_hf.benchmark.config import BenchmarkError
from subdistill_hf.config.output_folder import written_whole


class Results:
    """Rows of finished runs, by the key of the run; of several rows of a run the last counts.

    A row is written whole and reaches the disk before the next run's. A last line that was cut short when its process
    was killed does not count, and leaves the file before the next row is added. Reading changes nothing.

    Args:
        path: the JSON-lines file; the first row makes it, with its folder, if need be.

    Raises:
        BenchmarkError: for a line that is no row, naming file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes() if path.is_file() else b""
        *lines, rest = text.split(b"\n")
        self.rows: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = _row(line)
                if row is None:
                    raise BenchmarkError(
                        f"{path}, line {number}: expected a run as JSON with its key, found "
                        f"{line[:60].decode(errors='replace')!r}: correct the line, or take it out"
                    )
                self.rows[row["key"]] = row
        self._mended: bytes | None = None  # what the file should hold before a row is added
        if rest:
            row = _row(rest)
            self._mended = text.removesuffix(rest) if row is None else text + b"\n"
            self.rows |= {} if row is None else {row["key"]: row}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._mended is not None:
            with written_whole(self.path) as part:
                part.write_bytes(self._mended)
            self._mended = None
        self.rows[row["key"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line; `None` where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("key"), str) else None
