"""Checkpoints: the files that a training adds to those of the Trainer, what is read of them, and which are whole.

These are the state of the layer losses, the subspaces, and the identity of the run, see `resuming`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from subdistill_hf.core.distributed import processes_of_machine
from subdistill_hf.core.subspaces import SUBSPACES_FILE, Subspace, save_subspaces
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import ADAPTER_FILE, adapter_folders, load_adapters, save_adapter
from subdistill_hf.training.module import StudentWithAlignments

ALIGNMENTS_FILE = "alignments.safetensors"
STATE_FILE = "subdistill.json"
INCOMPLETE_FILE = "checkpoint-is-incomplete.txt"  # of transformers, while it writes one on SIGTERM
FILES = "files"  # in it: what belongs to the checkpoint beside it
ENERGIES = "energies"  # in it: of teacher layers without subspaces, where they were measured
WEIGHTS_FILES = (
    SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
)
TRAINING_FILES = {"optimizer.pt": "optimizer.*", "scheduler.pt": "scheduler.pt", "rng_state.pth": "rng_state*.pth"}
"""The parts of a checkpoint beside the model, by name, and as which patterns it is there."""
SHARDED_FOLDERS = ("global_step", "optimizer", "pytorch_model_fsdp")


def without_earlier(output_dir: str, step: int, args: TrainingArguments) -> Path:
    """The folder of a new checkpoint, without an earlier one that it replaces.

    A process that ended in between would leave a mixture of both, which must not count as whole: what tells a whole
    checkpoint goes first. Each process takes away its own random state, which it may write before others.

    Args:
        output_dir: of the run, where an earlier one may have left a checkpoint of the same step.
        step: of the checkpoint.
        args: of the run.
    """
    folder = Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    if args.should_save:
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    (folder / _random_state_file(args.process_index, args.world_size)).unlink(missing_ok=True)
    if args.should_save and folder.is_dir():
        for path in folder.iterdir():
            if path.is_file() and path.name != INCOMPLETE_FILE and not path.match(TRAINING_FILES["rng_state.pth"]):
                path.unlink(missing_ok=True)
    return folder


def random_state_files(args: TrainingArguments) -> list[str]:
    """The names of the random states in a checkpoint: of each process that writes to this machine's output folder."""
    if args.save_only_model:
        return []
    ranks = range(args.world_size)
    if args.save_on_each_node:
        first = args.process_index - args.local_process_index
        ranks = range(first, first + processes_of_machine(args.world_size))
    return [_random_state_file(rank, args.world_size) for rank in ranks]


def _random_state_file(rank: int, processes: int) -> str:
    return "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"


def save_distillation(
    folder: Path,
    state: Mapping[str, Any],
    subspaces: Mapping[str, Subspace],
    trained: StudentWithAlignments,
    energies: Mapping[str, float],
    args: TrainingArguments,
) -> None:
    """Write a run's identity, and where it has them its subspaces or energies and the state of its layer losses.

    Args:
        folder: the checkpoint's folder; made if need be.
        state: the run's identity, see `resuming.run_identity`.
        subspaces: teacher layer name to subspace.
        trained: the losses of all layer pairs, and the student, whose weights the Trainer writes.
        energies: teacher layer name to energy.
        args: of the run, which tell the random states that the Trainer will write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[str] = random_state_files(args)
    if isinstance(trained.student, PeftModel):
        files += [(place / ADAPTER_FILE).as_posix() for place in adapter_folders(trained.student).values()]
    if subspaces:
        save_subspaces(subspaces, folder)
        files += [f"{SUBSPACES_FILE}.safetensors", f"{SUBSPACES_FILE}.json"]
    if state_of_losses := {name: value.contiguous() for name, value in trained.alignments.state_dict().items()}:
        save_file(state_of_losses, folder / ALIGNMENTS_FILE)
        files.append(ALIGNMENTS_FILE)
    whole = {**state, ENERGIES: dict(energies), FILES: files}
    (folder / STATE_FILE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


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


def load_energies(checkpoint: str | Path) -> dict[str, float]:
    """The energies of a checkpoint, teacher layer name to energy."""
    energies: dict[str, float] = json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))[ENERGIES]
    return energies


def load_alignments(checkpoint: str | Path, alignments: nn.Module) -> None:
    """Read the losses of a checkpoint into `alignments`; does nothing where they have no state."""
    path = Path(checkpoint) / ALIGNMENTS_FILE
    if path.is_file():
        alignments.load_state_dict(load_file(path, device="cpu"))


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
    """The newest checkpoint in `folder` of which nothing is missing, or `None`.

    One whose writing or removal was cut short is passed over.

    Raises:
        DistillationError: when there is none from which a run can go on, since they hold the models alone.
    """
    checkpoints = sorted(
        (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    missing = {path: missing_files(path) for path in checkpoints}
    for path, names in missing.items():
        if not names:
            return str(path)
    for path, names in missing.items():
        if names == list(TRAINING_FILES):
            raise DistillationError(why_incomplete(path, names))
    return None


def why_incomplete(checkpoint: str | Path, missing: Sequence[str]) -> str:
    """Why a run cannot be resumed from a checkpoint without some of its files."""
    left_out = list(missing) == list(TRAINING_FILES)
    why = "save_only_model leaves them out" if left_out else "its writing or its removal was cut short"
    return (
        f"{checkpoint} has no {', '.join(missing)}: {why}, and a run cannot go on from there as if nothing had "
        "happened. Resume from a whole checkpoint, or start a new run in another folder"
    )


def missing_files(checkpoint: str | Path) -> list[str]:
    """The files of a checkpoint that are not there, of those that a run needs to go on as if nothing had happened.

    Args:
        checkpoint: the checkpoint's folder; those of FSDP and DeepSpeed have folders in place of some files.
    """
    folder = Path(checkpoint)
    sharded = any(path.is_dir() and path.name.startswith(SHARDED_FOLDERS) for path in folder.glob("*"))
    if (folder / INCOMPLETE_FILE).is_file():
        return [f"end of its writing ({INCOMPLETE_FILE})"]
    missing = [] if _step_of(folder) is not None else [TRAINER_STATE_NAME]
    listed = _listed_files(folder)
    missing += [name for name in listed if not (folder / name).is_file()]
    known = any(Path(name).name in WEIGHTS_FILES for name in listed)  # those of a student with adapters
    if not (sharded or known or any((folder / name).is_file() for name in WEIGHTS_FILES)):
        missing.append(SAFE_WEIGHTS_NAME)
    for name, pattern in TRAINING_FILES.items():
        if not (sharded or any(folder.glob(pattern)) or any(fnmatch(one, pattern) for one in missing)):
            missing.append(name)
    return missing


def _step_of(folder: Path) -> int | None:
    """The step of a checkpoint, `None` where its last file was not written."""
    try:
        step = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step if math.isfinite(step) else None


def _listed_files(folder: Path) -> list[str]:
    """The files of which other files say that they belong to a checkpoint: of this package, and parts of weights."""
    listed: list[str] = []
    for name, files_of in ((STATE_FILE, _own_files), (SAFE_WEIGHTS_INDEX_NAME, _shards)):
        if not (folder / name).is_file():
            continue
        try:
            listed += files_of(json.loads((folder / name).read_text(encoding="utf-8")))
        except (ValueError, KeyError):  # its writing was cut short
            listed.append(f"whole {name}")
    return listed


def _own_files(state: Mapping[str, Any]) -> list[str]:
    files: list[str] = state.get(FILES, [])  # older versions do not say
    return files


def _shards(index: Mapping[str, Any]) -> list[str]:
    return sorted(set(index["weight_map"].values()))
