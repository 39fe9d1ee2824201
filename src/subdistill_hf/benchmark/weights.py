"""Which weights a run had: the folder of its teacher may hold others by now, and its key has the name alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from subdistill_hf.config.options import EMBEDDED_TEACHERS
from subdistill_hf.hub.files import weights_identity

WEIGHTS: Final = "weights"
"""The entry of a row: `teacher` and `student`, as far as they are folders, to the digests of their weights."""
MODELS: Final = ("teacher", "student")


def weights_of_folders(task: Mapping[str, Any], identity: Callable[[Path], str] = weights_identity) -> dict[str, str]:
    """The digests of the weights of teacher and student, as far as these are folders that are there.

    Args:
        task: options of what to distil.
        identity: gives the digest of a folder.
    """
    folders = {
        model: Path(str(task[model])) for model in MODELS if task.get(model, "") not in ("", *EMBEDDED_TEACHERS)
    }
    return {model: identity(folder) for model, folder in folders.items() if folder.is_dir()}


def is_of_these_weights(row: Mapping[str, Any], now: Mapping[str, str]) -> bool:
    """Whether a finished run had the weights that its folders hold now; one that does not say so is taken to have had.

    Args:
        row: of the run.
        now: see `weights_of_folders`; of a folder that is gone nobody can tell.
    """
    recorded = row.get(WEIGHTS, {})
    return all(recorded[model] == now[model] for model in recorded.keys() & now.keys())
