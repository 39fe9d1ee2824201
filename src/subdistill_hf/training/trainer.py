"""`SubDistillTrainer`: transformers' Trainer with the losses of a teacher's relevant subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import DynamoBackend
from huggingface_hub import ModelCard
from torch import Tensor, nn

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.activations import Features, logits_of
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import EpochsOfViews, for_student, for_teacher
from subdistill_hf.errors import DistillationError
from subdistill_hf.losses.registry import logit_loss
from subdistill_hf.losses.rotations import KeptMatrices, matrices_kept
from subdistill_hf.metrics import compute_metrics as default_metrics
from subdistill_hf.models.heads import names_of
from subdistill_hf.teacher.teacher import Teaching
from subdistill_hf.training.batch_norm import norm_of_one_position, refuse_lone_image
from subdistill_hf.training.checkpoints import last_complete_checkpoint
from subdistill_hf.training.hub_trainer import plain_card
from subdistill_hf.training.identity import RunIdentity
from subdistill_hf.training.loss_log import LossParts
from subdistill_hf.training.matching import check_takes_pixels, example_batch
from subdistill_hf.training.preparing_trainer import PreparingTrainer


class SubDistillTrainer(PreparingTrainer):
    """Trains a student in the relevant subspaces of a teacher (arXiv 2601.05913).

    Everything that `transformers.Trainer` does keeps working. `trainer.model` is the plain student: it is what is
    evaluated, saved and pushed. During `train()` the student and what its layer losses learn (rotations,
    regressors) are optimised as one module. Student and teacher may be `PeftModel`s: layers are named as in the
    network under the adapter, and of the student the adapter alone is trained, saved and pushed.

    A batch is a mapping with `pixel_values` for the student, `labels`, and `teacher_pixel_values` where the
    teacher's preprocessing differs. Student and teacher are image-classification models of transformers, or any
    `nn.Module` that takes `pixel_values=` and returns logits `(B, C)` or an output with `logits`.

    Args:
        model: the student, with one output per class of the subtask.
        args: a `SubDistillConfig`.
        teacher: the teacher; needed unless `args.method` is `"scratch"`.
        teacher_class_ids: for each output of the student, the teacher's output of the same class; needed when the
            teacher has other outputs than the student.
        fit_dataset: images for the moments, without augmentation; by default the training dataset as it is.
        subspaces: teacher layer name to subspace, to use instead of fitting.
        kwargs: everything else that `Trainer` takes. `compute_metrics` is accuracy by default.

    Raises:
        DistillationError: when models, classes and data do not fit together.
        LayerError: for layers that do not exist or cannot be compared.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: SubDistillConfig | None = None,
        *,
        teacher: nn.Module | None = None,
        teacher_class_ids: Sequence[int] | None = None,
        fit_dataset: Any | None = None,
        subspaces: Mapping[str, Subspace] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = default_metrics,
        **kwargs: Any,
    ) -> None:
        args = SubDistillConfig() if args is None else args
        if not isinstance(args, SubDistillConfig):
            raise TypeError(f"expected args of type SubDistillConfig, found {type(args).__name__}")
        weights = args.weights()
        needs_teacher = bool(weights["kd"] or weights["layer"])
        if needs_teacher and teacher is None:
            raise DistillationError(f"method {args.method!r} needs a teacher: pass teacher=...")
        if model is not None and model is teacher:
            raise DistillationError("teacher and student are the same model, whose weights cannot teach and learn")
        if kwargs.get("compute_loss_func") is not None:
            raise DistillationError("compute_loss_func has no place in this loss: override loss_terms to change it")
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would not split the targets: several GPUs need a launcher
        super().__init__(model=model, args=args, compute_metrics=compute_metrics, **kwargs)
        self.add_callback(EpochsOfViews)
        # Our losses are means over the batch, so the Trainer must divide them by the accumulation steps; vision
        # models that accept **kwargs would make it believe otherwise.
        self.model_accepts_loss_kwargs = False
        self.fit_dataset = fit_dataset
        if needs_teacher and teacher is not None:
            self.teaching = Teaching(teacher, teacher_class_ids, args.device, self._teacher_precision)
        self.pairs, self.subspaces = [], dict(subspaces or {})
        self._given_subspaces = dict(self.subspaces)
        self._resumes_from: str | None = None
        self._parts = LossParts()
        self._matrices: KeptMatrices = {}
        self._run_identity = RunIdentity()
        if self.train_dataset is not None:
            check_takes_pixels(self.model, "student")
            if self.teaching is not None:
                check_takes_pixels(self.teaching.teacher, "teacher")
            self._place_student()
            self._example = example = self._prepare_inputs(example_batch(self.train_dataset, self.data_collator))
            if self.teaching is not None:
                self._match(self.teaching, example)
            self._norm_of_one_position = norm_of_one_position(self.model, for_student(example))
            if self._norm_of_one_position and 1 in (args.train_batch_size, self._training_images):
                refuse_lone_image(self._norm_of_one_position)

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training the sum of `loss_terms`, in evaluation the cross entropy with the labels."""
        labels = inputs.get("labels")
        if self.accelerator.unwrap_model(model, keep_torch_compile=False) is not self._distillation:
            logits = logits_of(model(**for_student(inputs)))
            loss = F.cross_entropy(logits.float(), labels) if labels is not None else logits.new_zeros(())
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        if self._norm_of_one_position and len(inputs["pixel_values"]) == 1:
            refuse_lone_image(self._norm_of_one_position)
        teacher_logits: Tensor | None = None
        targets: dict[str, Features] = {}
        if self.teaching is not None:
            teacher_logits, targets = self.teaching.teach(for_teacher(inputs), self.distillation)
        with matrices_kept(self._matrices):
            outputs = model(targets=targets, **for_student(inputs))
        if self.accelerator.sync_gradients:  # the optimiser's step is next
            self._matrices.clear()
        terms = self.loss_terms(outputs, teacher_logits, labels)
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)
        parts = torch.stack(list(terms.values()))
        self._parts.add(list(terms), parts.detach(), self.state.global_step, share)
        loss = parts.sum()
        return (loss, outputs) if return_outputs else loss

    def loss_terms(
        self, outputs: Mapping[str, Any], teacher_logits: Tensor | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss, by the name under which each is logged (METHOD step 3).

        Override to add a term: call `super().loss_terms(...)` and add to the result.

        Args:
            outputs: `logits` `(B, C)` of the student and `layer_losses` `(L,)`, one per pair.
            teacher_logits: the teacher's subtask logits `(B, C)`; `None` without a teacher.
            labels: class of each image `(B,)`, or shares of the classes `(B, C)`, if the batch has labels.
        """
        terms: dict[str, Tensor] = {}
        weights = self.loss_weights
        if weights["task"]:
            if labels is None:
                raise DistillationError("the cross entropy needs `labels` in the batch")
            smoothing = self.args.label_smoothing_factor
            terms["task"] = weights["task"] * F.cross_entropy(
                outputs["logits"].float(), labels, label_smoothing=smoothing
            )
        if weights["kd"] and teacher_logits is not None:
            terms["kd"] = weights["kd"] * logit_loss(self.args, outputs["logits"], teacher_logits, labels)
        layer_losses = weights["layer"] * outputs["layer_losses"]
        for pair, loss in zip(self.pairs, layer_losses.unbind(), strict=True):
            terms[f"layer/{pair.teacher.name}"] = loss
        return terms

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the parent's entries, and the mean of each part of the loss as `loss_NAME`; they add up to `loss`."""
        if "loss" in logs and self._parts.count:
            means = self._parts.means(self.state.global_step)
            reduced = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
            logs |= {f"loss_{name}": float(value) for name, value in zip(means, reduced, strict=True)}
        super().log(logs, start_time)

    # The trained module

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Fit the subspaces (or read them from the checkpoint), then train; arguments as for `Trainer.train`.

        `resume_from_checkpoint=True` takes the last complete checkpoint: one whose writing was cut short is passed
        over.

        Raises:
            DistillationError: when the checkpoint was made with another teacher, other layers or other losses.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise DistillationError(f"there is no complete checkpoint in {self.args.output_dir}")
        self._resumes_from = resume_from_checkpoint or None
        if self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            torch.compiler.reset()  # what was compiled for an earlier training may leave out this one's hooks
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.is_in_train = False
            self._replay("off")
            self._leave_memory_format()
        self._share_buffers()
        return output

    def _hp_search_setup(self, trial: Any) -> None:
        """The parent's, after which the student and the arguments are those of the training that begins."""
        super()._hp_search_setup(trial)
        self.prepare_distillation(self._resumes_from)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, Any]:
        """The parent's; nothing of an earlier training, or of a try with larger batches, goes on."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._parts = LossParts()
        self._matrices.clear()
        self._replay(self.graphs)
        return prepared

    def describe_student(self, name: str) -> ModelCard:
        """A short card, of what the trainer knows; `distill` writes the full one."""
        evaluations = [entry for entry in reversed(self.state.log_history) if "eval_accuracy" in entry]
        if self.args.load_best_model_at_end and self.state.best_global_step:
            evaluations = [entry for entry in evaluations if entry["step"] == self.state.best_global_step]
        measured: dict[str, float] = next(iter(evaluations), {})
        return plain_card(
            name,
            names_of(getattr(self.model, "config", None)),
            None if self.teaching is None else self.teaching.name,
            self.pairs,
            {key.removeprefix("eval_"): measured[key] for key in ("eval_accuracy", "eval_loss") if key in measured},
        )
