"""An adapter of a teacher that is there already: whether another run may use it again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import SubDistillError
from subdistill_hf.models.adapter_loading import RECORD_FILE
from subdistill_hf.models.adapters import ADAPTER_FILE
from subdistill_hf.pipeline.auto import images_of_a_step
from subdistill_hf.training.checkpoints import last_complete_checkpoint
from subdistill_hf.training.resuming import OF_DISTILLATION, PARTS, RATES, WEIGHTS, argument_of

TRAINING: Final = "training"
"""The entry of an adapter's identity with the arguments of its training, where it was trained inside the model."""
ADDED: Final = ("processor", "architecture", TRAINING)
"""Entries that the identity of an adapter of an earlier version lacks."""
TRAINED_BY: Final = ("weights", "order", "optimizer", "schedule", RATES, "clipping", "precision", "split")
"""Those of `resuming.PARTS` that change what the training of a teacher gives."""
OF_STUDENTS: Final = (*WEIGHTS, *OF_DISTILLATION, "teacher_cache_precision")
"""Arguments of these parts that the training of a teacher does not have."""
ELSEWHERE: Final = ("seed", "learning_rate")
"""Arguments of these parts that have an entry of their own, which is that of the adaptation."""
NOTICED: Final = frozenset(name for part in PARTS if part.change == "noticed" for name in part.arguments)
"""Arguments of which a resumed run may have other values."""


class AdaptationError(SubDistillError):
    """A teacher that cannot be adapted, or an adapter that cannot be used again."""


def seen_by(model: nn.Module, processor: Any) -> dict[str, str]:
    """The digests of what a teacher makes of an image, beside its weights: its modules, and its image processor."""
    described = {"processor": str(processor), "architecture": repr(model)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in described.items()}


def training_arguments(config: SubDistillConfig) -> dict[str, Any]:
    """The training arguments that change what the training of a teacher gives, JSON-able."""
    listed = [name for part in PARTS if part.name in TRAINED_BY for name in part.arguments]
    names = [name for name in listed if name not in (*OF_STUDENTS, *ELSEWHERE)]
    arguments = {name: argument_of(config, name) for name in names}
    return {**arguments, "images_of_a_step": images_of_a_step(config)}


def usable_record(folder: Path, identity: Mapping[str, Any], runs: Path, resume: bool) -> dict[str, Any] | None:
    """The record of an adapter that fits, `None` if there is none; one that does not is replaced or refused.

    Args:
        folder: where an adapter may lie.
        identity: what it must have been made of.
        runs: the folder of the run's checkpoints.
        resume: whether an interrupted run goes on, which needs the adapter that it began with.

    Raises:
        AdaptationError: for a folder of other files, and where a resumed run lacks its adapter.
    """
    if not folder.exists():
        if resume and any(last_complete_checkpoint(path) for path in runs.glob("*") if path.name != "teacher"):
            raise AdaptationError(
                f"{folder}, with which this run began, is gone: start a new run with --overwrite instead of resuming"
            )
        return None
    if not folder.is_dir() or not ((folder / RECORD_FILE).is_file() or not any(folder.iterdir())):
        raise AdaptationError(f"{folder} holds other files: move them away, or give another --output_dir")
    reason = ""
    noticed: list[str] = []
    record: dict[str, Any] = {}
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if record["sha256"] != sha256_of(folder / ADAPTER_FILE):
            reason = f"its {ADAPTER_FILE} is damaged"
        else:
            reason, noticed = _compared(record["identity"], json.loads(json.dumps(identity)), resume)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"its files are damaged ({error})"
    if not reason:
        for notice in noticed:
            print(f"note: the adapter in {folder} stays as it was made: {notice}", file=sys.stderr)
        return record
    if resume:
        raise AdaptationError(
            f"the adapter in {folder} cannot be used again: {reason}. Resume with the same options, or start a "
            "new run with --overwrite"
        )
    print(f"note: the adapter in {folder} is replaced: {reason}", file=sys.stderr)
    return None


def _compared(found: Mapping[str, Any], identity: Mapping[str, Any], resume: bool) -> tuple[str, list[str]]:
    """Why an adapter cannot be used again, empty if it can, and what to know where it can.

    Args:
        found: the adapter's identity.
        identity: of the run.
        resume: whether an interrupted run goes on: as with its checkpoints, some arguments may be others then.
    """
    unknown = [name for name in ADDED if name in identity and name not in found]
    differing = [name for name, value in identity.items() if name != TRAINING and found.get(name) != value]
    there, now = (each.get(TRAINING, {}) for each in (found, identity))
    differing += [] if TRAINING in unknown else [name for name, value in now.items() if there.get(name) != value]
    differing = [name for name in differing if name not in unknown]
    noticed = [name for name in differing if resume and name in NOTICED]
    refused = [name for name in differing if name not in noticed]
    if refused:
        return f"it was made with another choice of {', '.join(refused)}", []
    kept = f"an earlier version made it, which did not keep {', '.join(unknown)}"
    if unknown and not resume:
        return kept, []
    return "", [
        *(f"{name} is {now[name]} now, and was {there.get(name)}" for name in noticed),
        *([f"{kept}: not compared"] if unknown else []),
    ]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
