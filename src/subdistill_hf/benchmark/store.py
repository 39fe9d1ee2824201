"""The results of finished runs in one file, a line each, so that none is ever repeated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Results:
    """Rows of finished runs, by the key of the run.

    A row is written whole and reaches the disk before the next run's; a line that was cut short when its process was
    killed is dropped when the file is next read.

    Args:
        path: the JSON-lines file; made with its folder if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {}
        text = path.read_bytes() if path.is_file() else b""
        whole, _, rest = text.rpartition(b"\n")
        for line in whole.splitlines():
            row = json.loads(line)
            self.rows[row["key"]] = row
        if rest:
            path.write_bytes(whole + b"\n" if whole else b"")

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows[row["key"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
