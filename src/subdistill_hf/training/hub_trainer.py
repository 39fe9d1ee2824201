"""transformers' Trainer, whose pushes hold the student and nothing that tells of this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, ModelCard, ModelCardData, create_commit
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.hub.client import limit_waiting
from subdistill_hf.hub.files import CARD_FILE, student_files

logger = logging.getLogger(__name__)


def _tell_if_it_failed(push: Future[Any]) -> None:
    """Log the error of a push in the background, which nobody waits for."""
    if (error := push.exception()) is not None:
        logger.error(f"A checkpoint, whole in its folder, was not pushed; trainer.push_to_hub() tries again. {error}")


def checkpoint_files(folder: Path) -> dict[str, bytes | Path]:
    """All files of a checkpoint by name; the trainer's state says of the best checkpoint its name, not its place."""
    files: dict[str, bytes | Path] = {
        str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()
    }
    if (state := folder / TRAINER_STATE_NAME).is_file():
        described = json.loads(state.read_text(encoding="utf-8"))
        if best := described.get("best_model_checkpoint"):
            described["best_model_checkpoint"] = Path(best).name
            files[TRAINER_STATE_NAME] = json.dumps(described, indent=2).encode()
    return files


class StudentOnHub(Trainer):
    """transformers' Trainer, with pushes that hold the student alone: no pickled arguments, logs or local paths.

    With `hub_strategy` `"checkpoint"` or `"all_checkpoints"` a push holds whole checkpoints as well, with optimizer
    and alignments: that is what these ask for, and a run cannot be resumed without them.
    """

    push_in_progress: PushInProgress | None

    def describe_student(self, name: str) -> ModelCard:
        """The card of the model under its name on the Hub."""
        return plain_card(name, [], None, [], {})

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """The parent's, which would wait for ever for a Hub that does not answer."""
        limit_waiting()
        super().init_hf_repo(*args, **kwargs)

    def create_model_card(self, language: str | None = None, model_name: str | None = None, **kwargs: Any) -> None:
        """Write the card to the output folder."""
        if self.is_world_process_zero():
            name = model_name or (self.hub_model_id or self.args.output_dir).rstrip("/").split("/")[-1]
            self.describe_student(name).save(Path(self.args.output_dir) / CARD_FILE)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student of a checkpoint; the parent would push its pickled arguments too, with paths and tokens."""
        args, folder = self.args, Path(checkpoint_folder)
        if args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        if not (self.push_in_progress is None or self.push_in_progress.is_done() or args.hub_always_push):
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        files: dict[str, bytes | Path] = dict(student_files(folder))
        if args.hub_strategy != HubStrategy.EVERY_SAVE:  # the user asked for whole checkpoints, to resume from
            place = folder.name if args.hub_strategy == HubStrategy.ALL_CHECKPOINTS else "last-checkpoint"
            files |= {f"{place}/{name}": content for name, content in checkpoint_files(folder).items()}
        job = self._commit(files, f"Training in progress, step {self.state.global_step}", run_as_future=True)
        job.add_done_callback(_tell_if_it_failed)
        self.push_in_progress = PushInProgress([job])

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the student and push it with its processor and card; the parent would push logs and local paths too.

        A `README.md` in the output folder is kept; without one a short card is written. Arguments as for
        `Trainer.push_to_hub`.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not Path(self.args.output_dir, CARD_FILE).is_file():
            self.create_model_card(**kwargs)
        self._finish_current_push()
        files = student_files(self.args.output_dir)
        return self._commit(files, commit_message, token=token, revision=revision, run_as_future=not blocking)

    def _commit(
        self,
        files: Mapping[str, bytes | Path],
        message: str | None,
        run_as_future: bool,
        token: str | None = None,
        revision: str | None = None,
    ) -> Any:
        limit_waiting()
        options: dict[str, Any] = {"run_as_future": run_as_future}  # bool: neither of the overloads
        return create_commit(
            self.hub_model_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=message or "End of training",
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            **options,
        )


def plain_card(
    name: str,
    classes: Sequence[str],
    teacher: str | None,
    pairs: Sequence[LayerPair],
    metrics: Mapping[str, float],
) -> ModelCard:
    """A short card for a student that was trained with the trainer alone, which knows neither dataset nor baselines.

    Args:
        name: the model's name.
        classes: class names, in the order of the outputs.
        teacher: the teacher's name; `None` without a teacher.
        pairs: the paired layers.
        metrics: of the last evaluation, by name.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["subdistill", "image-classification"],
    )
    lines = [f"# {name}", "", f"An image classifier for {len(classes)} classes: {', '.join(classes)}."]
    if teacher is not None:
        lines += ["", f"Distilled from `{teacher}` with [SubDistill](https://arxiv.org/abs/2601.05913)."]
    lines += ["", "It knows nothing else: any other image is forced into one of these classes."]
    if pairs:
        lines += ["", "| teacher layer | student layer | subspace |", "|---|---|---|"]
        lines += [
            f"| `{pair.teacher.name}` | `{pair.student.name}` | {pair.dimensions} of {pair.teacher.width} |"
            for pair in pairs
        ]
    if metrics:
        lines += ["", "Last evaluation, on the images that were given to the trainer:", ""]
        lines += [f"- {metric}: {value:.4f}" for metric, value in metrics.items()]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")
