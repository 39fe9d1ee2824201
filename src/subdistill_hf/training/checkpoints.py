"""Checkpoints: the files that a training adds to those of the Trainer, and whether a run may be resumed from them.

These are the state of the layer losses, the subspaces, and the identity of the run: what a resumed run must share.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace, save_subspaces
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import base_of, load_adapters, save_adapter
from subdistill_hf.models.heads import names_of
from subdistill_hf.models.loading import count_parameters
from subdistill_hf.teacher.teacher import Teacher

ALIGNMENTS_FILE = "alignments.safetensors"
STATE_FILE = "subdistill.json"
LEARNING_RATE = "learning_rate"  # in it
METHOD_OPTIONS = ("method", "basis", "centring", "normalise_energy", "positions")


def run_identity(
    args: SubDistillConfig,
    teacher: Teacher | None,
    student: nn.Module,
    pairs: Sequence[LayerPair],
    rotation: str,
    views: Mapping[str, Any] | None,
    frozen: str | None,
) -> dict[str, Any]:
    """The identity of a run, which a resumed one must share: teacher, student, classes, layers, losses and views.

    Args:
        args: the arguments of the run.
        teacher: the teacher, if there is one.
        student: the student.
        pairs: the paired layers.
        rotation: the map of the student's features that the run has.
        views: what is done to the images, where it is known.
        frozen: digest of the frozen weights of a student with an adapter, whose checkpoints hold the others alone.
    """
    base = base_of(student)
    described = {"model": type(base).__name__, "parameters": count_parameters(student)}
    class_ids = None if teacher is None or teacher.class_ids is None else teacher.class_ids.tolist()
    return {
        "teacher": {
            "name": None if teacher is None else teacher.name,
            "digest": None if teacher is None else teacher.digest,
        },
        "student": described if frozen is None else {**described, "frozen": frozen},
        "classes": {"teacher_ids": class_ids, "names": names_of(getattr(student, "config", None))},
        "layers": [str(pair) for pair in pairs],
        "method": {name: getattr(args, name) for name in METHOD_OPTIONS} | {"rotation": rotation},
        "views": views,
        "weights": dict(args.weights(), temperature=args.temperature, dkd_beta=args.dkd_beta),
    }


def save_distillation(
    folder: Path, state: Mapping[str, Any], subspaces: Mapping[str, Subspace], alignments: nn.Module
) -> None:
    """Write a run's identity, and where it has them its subspaces and the state of its layer losses.

    Args:
        folder: the checkpoint's folder; made if need be.
        state: see `run_identity`; with the learning rate under `LEARNING_RATE`, where the arguments decide it.
        subspaces: teacher layer name to subspace.
        alignments: the losses of all layer pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    if subspaces:
        save_subspaces(subspaces, folder)
    if state_of_losses := {name: value.contiguous() for name, value in alignments.state_dict().items()}:
        save_file(state_of_losses, folder / ALIGNMENTS_FILE)


def saves_itself(student: nn.Module) -> bool:
    """Whether a student is a model of transformers or PEFT, which write and read their own format."""
    return isinstance(student, PreTrainedModel | PeftModel)


def separate_weights(student: nn.Module) -> dict[str, Tensor]:
    """A student's weights as safetensors takes them: contiguous, and each in memory of its own.

    While training they may lie channels last, and a block that has two names has its weights under both.
    """
    weights: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in student.state_dict().items():
        place = value.untyped_storage().data_ptr()
        weights[name] = value.clone(memory_format=torch.contiguous_format) if place in places else value.contiguous()
        places.add(place)
    return weights


def save_adapter_student(student: PeftModel, processor: Any | None, folder: Path) -> None:
    """Write a student's adapter, and its processor if there is one."""
    save_adapter(student, folder)
    if processor is not None:
        processor.save_pretrained(folder)


def load_student(checkpoint: str | Path, student: Any) -> bool:
    """Read the student's weights of a checkpoint into `student`, if it is a `PreTrainedModel` or a `PeftModel`.

    transformers writes some models (ViT is one) under the names of their first release, and only `from_pretrained`
    reads these back: its Trainer would leave such weights as they are, with a warning (transformers#43701). And an
    adapter that it reads back as the best one is frozen. Where the names are the student's own they are read as they
    are: its configuration may not tell what was done to it since.

    Returns:
        Whether they were read: models of other kinds are left to the Trainer.
    """
    if not saves_itself(student):
        return False
    if isinstance(student, PeftModel):
        load_adapters(student, checkpoint)
        return True
    weights = Path(checkpoint) / SAFE_WEIGHTS_NAME
    if weights.is_file():
        saved, own = load_file(weights), student.state_dict()
        if saved.keys() == own.keys() and all(tensor.shape == own[name].shape for name, tensor in saved.items()):
            student.load_state_dict(saved)
            return True
    loaded = type(student).from_pretrained(checkpoint, config=student.config, dtype=student.dtype)
    student.load_state_dict(loaded.state_dict())
    return True


def load_alignments(checkpoint: str | Path, alignments: nn.Module) -> None:
    """Read the losses of a checkpoint into `alignments`; does nothing where they have no state."""
    path = Path(checkpoint) / ALIGNMENTS_FILE
    if path.is_file():
        alignments.load_state_dict(load_file(path, device="cpu"))


def check_resumable(checkpoint: str | Path, identity: Mapping[str, Any]) -> None:
    """Refuse to resume a run that was another one.

    Args:
        checkpoint: the checkpoint's folder.
        identity: of the run that would resume it; `teacher` is compared by its `digest`, the rest whole.

    Raises:
        DistillationError: naming what differs.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise DistillationError(f"{checkpoint} has no {STATE_FILE}: it is not a checkpoint of SubDistillTrainer")
    saved = json.loads(path.read_text(encoding="utf-8"))
    for part, now in identity.items():
        there = saved.get(part)
        same = (there or {}).get("digest") == now["digest"] if part == "teacher" else there == now
        if not same:
            raise DistillationError(
                f"the checkpoint was made with another choice of {part}: {there} there, {now} now. Resume with the "
                "same, or start a new run in another folder"
            )


def check_schedule(checkpoint: str | Path, max_steps: int, epochs: float, learning_rate: float) -> None:
    """Refuse an end before the checkpoint, and warn of a learning rate that the checkpoint overrides.

    Args:
        checkpoint: the checkpoint's folder.
        max_steps: of the run that would resume it; 0 or less where its epochs decide.
        epochs: of that run.
        learning_rate: that it asks for; the schedule of the checkpoint is resumed, with a warning where that differs.

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
            f"the learning rate stays that of the checkpoint, which began with {saved:g}: for {learning_rate:g} start "
            "a new run",
            stacklevel=2,
        )


def resumed(asked: str | bool | None, folder: str | Path) -> str | None:
    """The checkpoint that a training resumes, if any.

    Args:
        asked: its folder, or `True` for the last complete one.
        folder: where checkpoints are.

    Raises:
        DistillationError: when there is none.
    """
    if asked is not True:
        return asked or None
    found = last_complete_checkpoint(folder)
    if found is None:
        raise DistillationError(f"there is no complete checkpoint in {folder}")
    return found


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
