"""What a checkpoint holds beside the Trainer's files: alignments, subspaces, and whose run it is."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from subdistill_hf.core.subspaces import Subspace, save_subspaces
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import load_adapters

ALIGNMENTS_FILE = "alignments.safetensors"
STATE_FILE = "subdistill.json"
LEARNING_RATE = "learning_rate"  # in it


def save_distillation(
    folder: Path, state: Mapping[str, Any], subspaces: Mapping[str, Subspace], alignments: nn.Module
) -> None:
    """Write a run's identity, and and where it has them its subspaces and the state of its layer losses.

    Args:
        folder: the checkpoint's folder; made if need be.
        state: what a resumed run must share, see `check_resumable`.
        subspaces: teacher layer name to subspace.
        alignments: the losses of all layer pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    if subspaces:
        save_subspaces(subspaces, folder)
    if state_of_losses := {name: value.contiguous() for name, value in alignments.state_dict().items()}:
        save_file(state_of_losses, folder / ALIGNMENTS_FILE)


def load_student(checkpoint: str | Path, student: Any) -> None:
    """Read the student's weights of a checkpoint into `student`, a `PreTrainedModel` or a `PeftModel`.

    transformers writes some models (ViT is one) under the names of their first release, and only `from_pretrained`
    reads these back: its Trainer would leave such weights as they are, with a warning (transformers#43701). And an
    adapter that it reads back as the best one is frozen. Where the names are the student's own they are read as they
    are: its configuration may not tell what was done to it since.
    """
    if isinstance(student, PeftModel):
        load_adapters(student, checkpoint)
        return
    weights = Path(checkpoint) / SAFE_WEIGHTS_NAME
    if weights.is_file():
        saved, own = load_file(weights), student.state_dict()
        if saved.keys() == own.keys() and all(tensor.shape == own[name].shape for name, tensor in saved.items()):
            student.load_state_dict(saved)
            return
    loaded = type(student).from_pretrained(checkpoint, config=student.config, dtype=student.dtype)
    student.load_state_dict(loaded.state_dict())


def load_alignments(checkpoint: str | Path, alignments: nn.Module) -> None:
    """Read the losses of a checkpoint into `alignments`; does nothing where they have no state."""
    path = Path(checkpoint) / ALIGNMENTS_FILE
    if path.is_file():
        alignments.load_state_dict(load_file(path, device="cpu"))


def check_resumable(checkpoint: str | Path, state: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was another one.

    Args:
        checkpoint: the checkpoint's folder.
        state: of the run that would go on; `teacher` is compared by its `digest`, the rest whole.

    Raises:
        DistillationError: naming what differs.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise DistillationError(f"{checkpoint} has no {STATE_FILE}: it is not a checkpoint of SubDistillTrainer")
    saved = json.loads(path.read_text(encoding="utf-8"))
    for part, now in state.items():
        there = saved.get(part)
        same = (there or {}).get("digest") == now["digest"] if part == "teacher" else there == now
        if not same:
            raise DistillationError(
                f"the checkpoint was made with another choice of {part}: {there} there, {now} now. Resume with the "
                "same, or start a new run in another folder"
            )


def lay_out_moments(optimizer: Any) -> None:
    """Let what an optimiser keeps of each weight lie in memory as the weight does.

    A checkpoint's state lies as it was saved, perhaps where convolutions lay otherwise, and fused optimisers go
    through weights and state in the order of memory, without a look at their strides.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def check_goes_on(checkpoint: str | Path, max_steps: int, epochs: float, learning_rate: float) -> None:
    """Say what of the arguments does not hold for a run that goes on from a checkpoint.

    Args:
        checkpoint: the checkpoint's folder.
        max_steps: of the run that would go on; 0 or less where its epochs decide.
        epochs: of that run.
        learning_rate: that it asks for; the schedule of the checkpoint goes on, with a warning where that differs.

    Raises:
        DistillationError: when the checkpoint is of a later step.
    """
    state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    step, epoch = state["global_step"], state.get("epoch") or 0
    if 0 < max_steps < step or (max_steps <= 0 and math.ceil(epochs) < epoch):
        asked = f"max_steps={max_steps}" if max_steps > 0 else f"num_train_epochs={epochs:g}"
        raise DistillationError(
            f"the checkpoint is of step {step}, epoch {epoch:g}, later than {asked}: ask for more, or start a new run "
            "in another folder"
        )
    saved = json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8")).get(LEARNING_RATE)
    if saved is not None and not math.isclose(saved, learning_rate):
        warnings.warn(
            f"the learning rate goes on as in the checkpoint, from {saved:g} on: {learning_rate:g} needs a new run",
            stacklevel=2,
        )


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` whose last file was written, or `None`."""
    checkpoints = sorted(
        (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    for path in reversed(checkpoints):
        try:
            step = json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):  # the writing of this checkpoint was cut short
            continue
        if math.isfinite(step):
            return str(path)
    return None
