"""transformers' Trainer over a student and what its layer losses learn, as one module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import save_adapter
from subdistill_hf.training.checkpoints import (
    LEARNING_RATE,
    lay_out_moments,
    load_alignments,
    load_student,
    save_distillation,
)
from subdistill_hf.training.hub_trainer import StudentOnHub
from subdistill_hf.training.module import StudentWithAlignments


class JointTrainer(StudentOnHub):
    """Optimises, wraps and checkpoints the student with its alignments; evaluates, saves and pushes the student alone.

    So the optimiser, clipping, gradient accumulation and DDP see what the layer losses learn, and `trainer.model` is
    the plain student all the time. A subclass says what the module is, and what a checkpoint must tell of its run.
    """

    model: nn.Module
    _distillation: StudentWithAlignments | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._users_optimizer = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None

    def fit_subspaces(self) -> dict[str, Subspace]:
        """The subspaces of the run by teacher layer, for its checkpoints."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share."""
        raise NotImplementedError

    @property
    def distillation(self) -> StudentWithAlignments:
        """The student with its alignments; made when training starts."""
        if self._distillation is None:
            raise RuntimeError("the alignments are made when train() or prepare_distillation() is called")
        return self._distillation

    @property
    def initial_learning_rate(self) -> float:
        """The one that the training has; of a resumed one its checkpoint decides, not the arguments."""
        first = {} if self.optimizer is None else self.optimizer.param_groups[0]
        rate = first.get("initial_lr")
        return float(self.args.learning_rate if rate is None else rate)

    # Training

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """Let the parent prepare (optimiser, wrapping, checkpoint) the student with its alignments as one module."""
        student: nn.Module = self.model
        self.model = self.model_wrapped = self.distillation
        try:
            prepared: tuple[nn.Module, Any] = super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
        finally:
            self.model = student
        self.callback_handler.model = student
        return prepared

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The parent's; an optimiser that the user made gets what the layer losses learn as a group of its own.

        Raises:
            DistillationError: when it comes with a schedule, which knows nothing of that group.
        """
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        alignments = self._distillation.alignments if self._distillation is not None else nn.ModuleList()
        learned = [weight for weight in alignments.parameters() if id(weight) not in known]
        if learned:
            if self.lr_scheduler is not None:
                raise DistillationError(
                    "what the layer losses learn cannot join an optimizer that has a schedule: pass "
                    "optimizers=(optimizer, None), or optimizer_cls_and_kwargs=..."
                )
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parent's, without what the layer losses learn: decay would pull rotations to where they started."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if not name.startswith("alignments.")]

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, with the same batch-norm statistics in every process."""
        self._share_buffers()
        return super().evaluation_loop(*args, **kwargs)

    @torch.no_grad()
    def _share_buffers(self) -> None:
        """Give every process the student's buffers of the first: each has statistics of its own images."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The parent's checkpoint, with alignments, subspaces and the run's identity in files of their own."""
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            rate = {} if self._users_optimizer else {LEARNING_RATE: self.initial_learning_rate}
            save_distillation(folder, {**self._identity(), **rate}, self.fit_subspaces(), self.distillation.alignments)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._reads_own_student:
            load_student(resume_from_checkpoint, self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_alignments(resume_from_checkpoint, self.distillation.alignments)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.optimizer is not None:
            lay_out_moments(self.optimizer)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self._reads_own_student and best is not None:
            load_student(best, self.model)
        else:
            super()._load_best_model()
        if best is not None:
            load_alignments(best, self.distillation.alignments)

    @property
    def _reads_own_student(self) -> bool:
        """Whether the student is a whole model of transformers or has an adapter, see `load_student`."""
        whole = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        return whole and isinstance(self.model, PreTrainedModel | PeftModel)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save student and processor. The parent's pickled arguments are left out: they hold paths and tokens."""
        folder = Path(output_dir or self.args.output_dir)
        if isinstance(self.model, PeftModel) and state_dict is None:
            if self.args.should_save:
                save_adapter(self.model, folder)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)
            return
        if state_dict is None and not isinstance(self.model, PreTrainedModel):
            # while training weights may lie channels last, which safetensors does not take
            state_dict = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        super()._save(output_dir, state_dict)
        (folder / "training_args.bin").unlink(missing_ok=True)
