"""`SubDistillTrainer`: transformers' Trainer with the losses of a teacher's relevant subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import PushInProgress

from subdistill_hf.acceleration.cuda_graphs import GraphsOf
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import Finish
from subdistill_hf.errors import NonFiniteLossError
from subdistill_hf.hub.clean import check_kept_card
from subdistill_hf.hub.client import limit_waiting
from subdistill_hf.hub.files import CARD_FILE, student_files
from subdistill_hf.hub.publish import Destination, commit
from subdistill_hf.hub.short_card import kept_evaluation, short_card
from subdistill_hf.losses.subspace import RotationOption
from subdistill_hf.metrics import compute_metrics as default_metrics
from subdistill_hf.models.heads import names_of
from subdistill_hf.teacher.class_ids import ClassIds
from subdistill_hf.teacher.targets import CachedTargets, ComputedTargets
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training import batch_norm, callbacks, checkpoints, loaders, optimizers, placement, pushes
from subdistill_hf.training.checks import check_adapter_names, check_arguments, check_batch_labels, check_trial
from subdistill_hf.training.evaluation import outputs_per_image, predictions_of
from subdistill_hf.training.loss_log import LossLog, naming_best
from subdistill_hf.training.loss_terms import LabelledMean, label_loss, stacked, weighted_terms
from subdistill_hf.training.made import Made, Same, up_to_date
from subdistill_hf.training.matching import columns_of, inputs_of, labels_of, teacher_of
from subdistill_hf.training.module import StudentWithAlignments
from subdistill_hf.training.plan import DistillationPlan
from subdistill_hf.training.start import Start, TrainingImages, check_start


class SubDistillTrainer(Trainer):
    """Trains a student in the relevant subspaces of a teacher (arXiv 2601.05913).

    Everything that `transformers.Trainer` does keeps working. `trainer.model` is the plain student: it is what is
    evaluated, saved and pushed. During `train()` the student and what its layer losses learn (rotations,
    regressors) are optimised as one module. Student and teacher may be `PeftModel`s: layers are named as in the
    network under the adapter, and of the student the adapter alone is trained, saved and pushed.

    A batch is a mapping with `pixel_values` for the student, `labels`, and `teacher_pixel_values` where the
    teacher's preprocessing differs; the student gets the fields that its `forward` names. Student and teacher are
    image-classification models of transformers, or any `nn.Module` that takes `pixel_values=` and returns logits
    `(B, C)` or an output with `logits`. Pushes hold the student, its processor and its card, and with `hub_strategy`
    `"checkpoint"` or `"all_checkpoints"` whole checkpoints; never pickled arguments or local paths.

    Args:
        model: the student, with one output per class of the subtask.
        args: a `SubDistillConfig`.
        teacher: the teacher, needed unless `args.method` is `"scratch"`; or a `Teacher` that several trainers share.
        teacher_class_ids: for each output of the student, the teacher's output of the same class; needed when the
            teacher has other outputs than the student. A `Teacher` has its own.
        fit_dataset: images for the moments, without augmentation; by default the training dataset as it is.
        subspaces: teacher layer name to subspace, to use instead of fitting.
        kwargs: everything else that `Trainer` takes. `compute_metrics` is accuracy by default.

    Attributes:
        teacher: the frozen teacher, restricted to the subtask; `None` for a method without one.
        plan: layer pairs, subspaces, layer losses and targets.

    Raises:
        DistillationError: when models, classes and data do not fit together.
        LayerError: for layers that do not exist or cannot be compared.
    """

    args: SubDistillConfig
    model: nn.Module
    optimizer: Any
    push_in_progress: PushInProgress | None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: SubDistillConfig | None = None,
        *,
        teacher: nn.Module | Teacher | None = None,
        teacher_class_ids: ClassIds | None = None,
        fit_dataset: Any | None = None,
        subspaces: Mapping[str, Subspace] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = default_metrics,
        **kwargs: Any,
    ) -> None:
        args = SubDistillConfig() if args is None else args
        check_arguments(args, kwargs, compute_metrics)
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would not split the targets: several GPUs need a launcher
        self.teacher = teacher_of(args, model, teacher, teacher_class_ids)
        if args.push_to_hub:
            check_kept_card(args.output_dir)
            limit_waiting()
        super().__init__(model=model, args=args, compute_metrics=compute_metrics, **kwargs)
        self.add_callback(callbacks.EpochsOfViews)
        # whatever **kwargs the model takes: the losses are means over a batch, to be divided by the accumulation steps
        self.model_accepts_loss_kwargs = False
        self._signature_columns = [*columns_of(self.model, self.data_collator), *self.label_names]
        self._users_optimizer = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
        self._optimizer_origin = optimizers.OptimizerOrigin(self.optimizer)
        self.fit_dataset = fit_dataset
        self.plan = DistillationPlan(args, self.teacher, subspaces, self._users_optimizer)
        self.loss_log = LossLog()
        self._formats = placement.MemoryFormats()
        self._start: Made[tuple[Same, ...], Start] | None = None
        self._single_value_norm: str | None = None  # a batch norm that a batch of one image cannot train
        self._finish: Finish | None = None  # makes what the loader of the training loop leaves to the device
        self._evaluated = LabelledMean()  # of the present evaluation
        self._checkpoint: str | None = None  # that the present training resumes
        self._has_trained = False
        if self.train_dataset is not None:
            self._check_models(self._images)

    def _check_models(self, images: TrainingImages) -> dict[str, Any]:
        """Refuse models and images that do not fit, and pair the layers, again for another one; gives two images."""
        self._place_student()
        parts = (self.model, images.train, images.fit, images.collate, self.eval_dataset)
        model, evaluated, place = self.model, self.eval_dataset, self._prepare_inputs
        check = partial(check_start, self.args, model, self.teacher, images, evaluated, place, self.compute_metrics)
        self._start = up_to_date(self._start, tuple(map(Same, parts)), check)
        self._single_value_norm = self._start.product.single_value_norm
        if 1 in (self.args.train_batch_size, loaders.length_of(images.train)):
            batch_norm.check_single_image(self._single_value_norm)
        self.plan.match(model, self._start.product.example)
        return self._start.product.example

    # What is compared

    @property
    def pairs(self) -> list[LayerPair]:
        """The paired layers."""
        return self.plan.pairs

    @property
    def subspaces(self) -> dict[str, Subspace]:
        """Teacher layer name to subspace: those that were given, until they are fitted."""
        return self.plan.subspaces

    @property
    def rotation(self) -> RotationOption:
        """The map of the student's features: what the arguments say, or what suits its layers."""
        return self.plan.rotation

    @property
    def distillation(self) -> StudentWithAlignments:
        """The student with its layer losses, which is trained; made by `prepare_distillation`."""
        if self.plan.module is None:
            raise RuntimeError("the alignments are made when train() or prepare_distillation() is called")
        return self.plan.module

    @property
    def targets(self) -> ComputedTargets | CachedTargets | None:
        """The source of the teacher's logits and layer targets of a batch; `None` without a teacher."""
        return self.plan.targets

    # Preparation

    def prepare_distillation(self, checkpoint: str | None = None) -> StudentWithAlignments:
        """Make all that a training needs: pairs, subspaces, the module that is trained, and the teacher's targets.

        `train` calls it; called before, it refuses early what the training would refuse. What was made before is used
        again where nothing that it follows from has changed. Arguments and errors as for `DistillationPlan.prepare`.
        """
        images = self._images
        example = self._check_models(images)
        self._formats.take(self.args, self.model, self.teacher, example)
        module = self.plan.prepare(self.model, example, images, checkpoint)
        self.plan.replay(self.graphs)
        return module

    def fit_subspaces(self) -> dict[str, Subspace]:
        """The subspaces of all paired teacher layers, by name, see `DistillationPlan.fit_subspaces`."""
        return self.plan.fit_subspaces(self._images)

    @property
    def _images(self) -> TrainingImages:
        return TrainingImages.of(self.train_dataset, self.fit_dataset, self.data_collator, self.get_train_dataloader)

    def _place_student(self) -> None:
        """Bring the student to where it is trained: the parent does so later, with `bf16_full_eval` or sharding."""
        elsewhere = self.is_model_parallel or getattr(self, "is_distributed_loading_by_transformers", False)
        if not (self.place_model_on_device or elsewhere):
            self._move_model_to_device(self.model, self.args.device)

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    @property
    def graphs(self) -> GraphsOf:
        """The parts of a training step that CUDA graphs replay: those that the arguments say, where they can."""
        compiled = self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
        return placement.replayable_graphs(self.args, compiled, self._is_sharded)

    # Losses

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training the sum of `loss_terms`, in evaluation the cross entropy with the labels."""
        labels, seen = labels_of(inputs), inputs_of(self.model, inputs)
        if not isinstance(self.accelerator.unwrap_model(model, keep_torch_compile=False), StudentWithAlignments):
            with self.accelerator.autocast():  # accelerate puts it into some models, and not into others
                outputs = outputs_per_image(model(**seen))
            check_batch_labels(labels, outputs["logits"], "evaluation")
            loss = label_loss(outputs["logits"], labels)
            self._evaluated.add(loss, labels)
            return (loss, {"loss": loss, **outputs}) if return_outputs else loss
        batch_norm.check_single_image(self._single_value_norm, len(inputs["pixel_values"]))
        teacher_logits, targets = (None, {}) if self.targets is None else self.targets.of(inputs)
        self.distillation.keep_matrices(not self.accelerator.sync_gradients)  # until the optimiser's step
        outputs = model(targets=targets, **seen)
        check_batch_labels(labels, outputs["logits"], "training", METHODS[self.args.method].logit_labels)
        terms = self.loss_terms(outputs, teacher_logits, labels)
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)
        parts = stacked(terms)
        inputs = {"the images of a batch": inputs["pixel_values"], "the teacher's logits": teacher_logits}
        self.loss_log.add(list(terms), parts.detach(), self.state.global_step, share, inputs)
        return (parts.sum(), outputs) if return_outputs else parts.sum()

    def loss_terms(
        self, outputs: Mapping[str, Any], teacher_logits: Tensor | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss, by the name under which each is logged (docs/method.md, "The total loss").

        Override to add a term: call `super().loss_terms(...)` and add to the result.

        Args:
            outputs: `logits` `(B, C)` of the student and `layer_losses` `(L,)`, one per pair.
            teacher_logits: the teacher's subtask logits `(B, C)`; `None` without a teacher.
            labels: class of each image `(B,)`, or shares of the classes `(B, C)`, if the batch has labels.
        """
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return weighted_terms(self.args, self.pairs, outputs, teacher_logits, labels, progress)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the parent's entries, and the mean of each part of the loss as `loss_NAME`; they add up to `loss`."""
        if "loss" in logs and self.loss_log.count:
            means = self.loss_log.means(self.state.global_step, self._mean_of_processes)
            logs |= {f"loss_{name}": value for name, value in means.items()}
        super().log(logs, start_time)

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Prepare what the training needs, then train; arguments as for `Trainer.train`.

        `resume_from_checkpoint=True` takes the last complete checkpoint: one whose writing was cut short is passed
        over.

        Raises:
            DistillationError: when the checkpoint was made with another teacher, other layers or other losses.
            DivergedError: when the loss has grown far beyond its beginning, and the student is not that of a best
                checkpoint from before that.
        """
        self._checkpoint = checkpoints.resumed(resume_from_checkpoint, self.args.output_dir)
        if self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            torch.compiler.reset()  # what was compiled for an earlier training may leave out this one's hooks
        if self._has_trained and self.teacher is not None:
            self.teacher.forget_digest()  # nobody knows what was done to it since
        self._has_trained = True
        try:
            output = super().train(self._checkpoint, *args, **kwargs)
        except NonFiniteLossError as error:
            raise naming_best(error, self.state) from error
        finally:
            self.is_in_train = False
            self.plan.replay("off")
            self._formats.leave(self.model, self.teacher)
        batch_norm.share_statistics(self.model, self.args.world_size)
        loaded = self.state.best_global_step if self.args.load_best_model_at_end else None
        self.loss_log.check_end(self.state, sum(self.args.weights().values()), self._mean_of_processes, loaded)
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The parent's; not after the last checkpoint of a run that ended within an epoch: it would go on."""
        if self._checkpoint is not None and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _mean_of_processes(self, values: Tensor) -> Any:
        return self.accelerator.reduce(values, reduction="mean")

    def _hp_search_setup(self, trial: Any) -> None:
        """The parent's, after which student and arguments are those of the training: what it needs is made here."""
        super()._hp_search_setup(trial)
        check_trial(self.args, self.teacher, self.eval_dataset, self.compute_metrics)
        self.prepare_distillation(self._checkpoint)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """The parent's, for the student with its layer losses as one module; nothing of an earlier try is left."""
        student: nn.Module = self.model
        self.optimizer = self._optimizer_origin.kept(self.optimizer, self.distillation, self.args)
        self.model = self.model_wrapped = self.distillation
        try:
            model, loader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        finally:
            self.model = student
        self.callback_handler.model = student
        if resume_from_checkpoint is not None and self.optimizer is not None:
            optimizers.lay_out_state(self.optimizer)
        self._finish = loaders.leave_pixels_to(self.args.device, loader)
        self.loss_log = LossLog()
        self.plan.replay(self.graphs)
        return model, loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The parent's; one that the user made gets what the layer losses learn as well, see `add_learned`."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.plan.module is not None:
            optimizers.add_learned(optimizer, self.lr_scheduler, self.plan.module.alignments)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parent's, without what the layer losses learn: decay would pull rotations to where they started."""
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith("alignments.")]

    # Batches and evaluation

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """The parent's loader, whose batches hold what they are needed for; see `loaders`."""
        collate, options = loaders.evaluation_collator(self.data_collator), loaders.EVALUATION_OPTIONS
        if is_training:
            taught = self.teacher is not None
            dataset, collate = loaders.training_views(self.args, dataset, self.data_collator, self.targets, taught)
            options = loaders.training_options(self.args, dataset, self._train_batch_size, self._single_value_norm)
        with loaders.replaced(self, data_collator=collate), loaders.replaced(self.args, **options):
            return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The parent's, with their pixels, if these were left to the device."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        return [batch if self._finish is None else self._finish(batch) for batch in batches], items

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, with the same batch-norm statistics in every process; images without a class lower no loss."""
        batch_norm.share_statistics(self.model, self.args.world_size)
        self._evaluated = LabelledMean()
        output = super().evaluation_loop(*args, **kwargs)
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        output.metrics.update(self._evaluated.described(name, self._mean_of_processes))
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """The parent's, and for images without labels the outputs alone."""
        if labels_of(inputs) is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad():  # the parent would take the logits of one image for a tuple
            _, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return None, None if prediction_loss_only else predictions_of(outputs, self.model, ignore_keys), None

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The parent's checkpoint, with alignments, subspaces and the run's identity in files of their own."""
        self.loss_log.note_checkpoint(self.state.global_step)
        folder = checkpoints.without_earlier(self._get_output_dir(trial=trial), self.state.global_step, self.args)
        if self.args.should_save:
            parts = self.plan.compared_subspaces, self.distillation, self.plan.energies, self.args
            checkpoints.save_distillation(folder, self.plan.identity(self.model, self.optimizer), *parts)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the student and the state of its layer losses."""
        if self._is_sharded or not checkpoints.load_student(resume_from_checkpoint, self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoints.load_alignments(resume_from_checkpoint, self.distillation.alignments)

    def _load_best_model(self) -> None:
        """Read the student and its layer losses of the best checkpoint; called where there is one."""
        best = str(self.state.best_model_checkpoint)
        if self._is_sharded or not checkpoints.load_student(best, self.model):
            super()._load_best_model()
        checkpoints.load_alignments(best, self.distillation.alignments)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save student and processor. The parent's pickled arguments are left out: they hold paths and tokens."""
        folder = Path(output_dir or self.args.output_dir)
        if isinstance(self.model, PeftModel) and state_dict is None:
            if self.args.should_save:
                checkpoints.save_adapter_student(self.model, self.processing_class, folder)
            return
        if state_dict is None and not checkpoints.saves_itself(self.model):
            state_dict = checkpoints.separate_weights(self.model)
        super()._save(output_dir, state_dict)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    # The Hub

    def create_model_card(self, language: str | None = None, model_name: str | None = None, **kwargs: Any) -> None:
        """Write a short card, of what the trainer knows, to the output folder; `distill` writes the full one."""
        if self.is_world_process_zero():
            name = model_name or (self.hub_model_id or self.args.output_dir).rstrip("/").split("/")[-1]
            classes, teacher = names_of(getattr(self.model, "config", None)), getattr(self.teacher, "name", None)
            evaluation = kept_evaluation(self.state, self.args.load_best_model_at_end)
            card = short_card(name, classes, teacher, self.pairs, evaluation)
            card.save(Path(self.args.output_dir) / CARD_FILE)

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
        check_adapter_names(self.model)
        if self.hub_model_id is None:
            limit_waiting()
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        args, message = self.args, commit_message or "End of training"
        self.callback_handler.on_push_begin(args, self.state, self.control)
        if not Path(args.output_dir, CARD_FILE).is_file():
            self.create_model_card(**kwargs)
        self._finish_current_push()
        target = Destination(self.hub_model_id, None, revision or args.hub_revision, token or args.hub_token)
        return commit(target, student_files(args.output_dir), args.output_dir, message, in_background=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student of a checkpoint; the parent would push its pickled arguments too, with paths and tokens."""
        if self.is_world_process_zero() and pushes.is_time(self.args, self.push_in_progress):
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            folder, step = Path(checkpoint_folder), self.state.global_step
            self.push_in_progress = pushes.of_checkpoint(self.args, self.hub_model_id, folder, step)
