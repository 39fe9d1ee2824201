"""`SubDistillTrainer`: transformers' Trainer with the losses of a teacher's relevant subspaces."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from subdistill_hf.activations import Features, record, to_features
from subdistill_hf.config import SubDistillConfig
from subdistill_hf.distillation_module import StudentWithAlignments, logits_of
from subdistill_hf.errors import SubDistillError
from subdistill_hf.layers import LayerPair, layer_table, pair_layers
from subdistill_hf.losses import SubspaceAlignment, logit_distillation
from subdistill_hf.metrics import compute_metrics as default_metrics
from subdistill_hf.models import count_parameters, freeze, weights_digest
from subdistill_hf.relevance import activations_and_contexts
from subdistill_hf.subspaces import Subspace, collect_moments, load_subspaces, save_subspaces
from subdistill_hf.teacher_cache import TeacherCache

ALIGNMENTS_FILE = "alignments.safetensors"
STATE_FILE = "subdistill.json"
NOT_FOR_THE_STUDENT = ("labels", "teacher_pixel_values", "index", "view")


class DistillationError(SubDistillError):
    """Models, data or a checkpoint that do not fit together."""


class NonFiniteLossError(SubDistillError):
    """A part of the loss became NaN or infinite."""


class SubDistillTrainer(Trainer):
    """Trains a student in the relevant subspaces of a teacher (METHOD.md; arXiv 2601.05913).

    Everything that `transformers.Trainer` does keeps working. `trainer.model` is the plain student: it is what is
    evaluated, saved and pushed. During `train()` the student and its rotations are optimised as one module.

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

    model: nn.Module

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
        if kwargs.get("compute_loss_func") is not None:
            raise DistillationError("compute_loss_func has no place in this loss: override loss_terms to change it")
        super().__init__(model=model, args=args, compute_metrics=compute_metrics, **kwargs)
        # Our losses are means over the batch, so the Trainer must divide them by the accumulation steps; vision
        # models that accept **kwargs would make it believe otherwise.
        self.model_accepts_loss_kwargs = False
        self.fit_dataset = fit_dataset
        self.teacher = freeze(teacher).to(args.device) if needs_teacher and teacher is not None else None
        self._class_ids = None if teacher_class_ids is None else torch.tensor(teacher_class_ids, device=args.device)
        self.pairs: list[LayerPair] = []
        self.subspaces: dict[str, Subspace] = dict(subspaces or {})
        self._digest: str | None = None
        self._distillation: StudentWithAlignments | None = None
        self._cache: TeacherCache | None = None
        self._term_sums: dict[str, Tensor] = {}
        self._term_count = 0.0
        self._tracked: list[str] = []
        self._first_bad_terms: Tensor | None = None
        if self.train_dataset is not None:
            example = self._example_batch()
            if self.teacher is not None:
                self._match_models(example)

    # Setting up

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the labels, the logits and the layers; read anew, since a search may change the arguments."""
        return self.args.weights()  # type: ignore[no-any-return]

    def _match_models(self, example: dict[str, Tensor]) -> None:
        """Check that the models fit, with one example, and pair their layers."""
        assert self.teacher is not None
        student_inputs, teacher_inputs, _ = self._split(self._prepare_inputs(example))

        def run_student() -> Tensor:
            return logits_of(self.model(**student_inputs))

        def run_teacher() -> Tensor:
            assert self.teacher is not None
            return logits_of(self.teacher(**teacher_inputs))

        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            self._check_classes(run_student().shape[1], run_teacher().shape[1])
        if self.loss_weights["layer"]:
            self.pairs = pair_layers(
                self.teacher,
                self.model,
                self.args.layers,
                run_teacher,
                run_student,
                _image_size(teacher_inputs),
                _image_size(student_inputs),
                self.args.layer_pairs,
            )
        self.model.train(training)
        if wrong := [pair for pair in self.pairs if pair.teacher.name in self.subspaces and not self._fits(pair)]:
            raise DistillationError(f"the given subspace of {wrong[0].teacher.name!r} does not fit {wrong[0].teacher}")

    def _fits(self, pair: LayerPair) -> bool:
        subspace = self.subspaces[pair.teacher.name]
        return (subspace.width, subspace.dimensions) == (pair.teacher.width, pair.dimensions)

    def _check_classes(self, student_outputs: int, teacher_outputs: int) -> None:
        if student_outputs < 2:
            raise DistillationError(f"a subtask needs at least two classes: the student has {student_outputs} outputs")
        if self._class_ids is None:
            if student_outputs != teacher_outputs:
                raise DistillationError(
                    f"the student has {student_outputs} outputs and the teacher {teacher_outputs}: pass "
                    "teacher_class_ids=[...], the teacher's output for each output of the student"
                )
            return
        if len(self._class_ids) != student_outputs:
            raise DistillationError(
                f"teacher_class_ids has {len(self._class_ids)} entries, but the student has {student_outputs} outputs"
            )
        if int(self._class_ids.min()) < 0 or int(self._class_ids.max()) >= teacher_outputs:
            raise DistillationError(f"teacher_class_ids must lie between 0 and {teacher_outputs - 1}")
        if len(set(self._class_ids.tolist())) < student_outputs:
            raise DistillationError("teacher_class_ids names one output of the teacher twice")

    def _example_batch(self) -> dict[str, Tensor]:
        """Two collated training examples."""
        dataset = self.train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
            iterator = iter(dataset)
            examples = [example for example, _ in zip(iterator, range(2), strict=False)]
        else:
            if len(dataset) == 0:
                raise DistillationError("the training dataset is empty")
            examples = [dataset[index] for index in range(min(2, len(dataset)))]
        if not examples:
            raise DistillationError("the training dataset is empty")
        batch = self.data_collator(examples)
        if "pixel_values" not in batch:
            raise DistillationError(f"expected batches with `pixel_values`, found {', '.join(batch)}")
        return dict(batch)

    def layer_preview(self) -> str:
        """The paired layers as a table."""
        return layer_table(self.pairs)

    # Subspaces

    def fit_subspaces(self) -> dict[str, Subspace]:
        """Fit the subspaces of all paired teacher layers in one pass over the images (METHOD step 1).

        Each process reads its share of the images; the moments are merged, so the result is that of one process.
        """
        if missing := [pair for pair in self.pairs if pair.teacher.name not in self.subspaces]:
            assert self.teacher is not None
            stream = activations_and_contexts(
                forward=lambda batch: self.teacher_logits(batch["pixel_values"]),
                model=self.teacher,
                layers=[pair.teacher.name for pair in missing],
                batches=self._fit_batches(),
                channels_last=[pair.teacher.name for pair in missing if pair.teacher.channels_last],
                with_context=self.args.basis not in ("pca", "random", "identity"),
            )
            moments = collect_moments(
                stream,
                without_prefix=[pair.teacher.name for pair in missing if pair.drops_prefix],
                positions=self.args.positions,
                seed=self.args.seed,
            )
            for pair in missing:
                self.subspaces[pair.teacher.name] = Subspace.fit(
                    moments[pair.teacher.name], pair.dimensions, self.args.basis
                )
        return {pair.teacher.name: self.subspaces[pair.teacher.name] for pair in self.pairs}

    def _fit_batches(self) -> Any:
        """Batches of this process's share of the images, every image once, in a fixed order."""
        dataset: Any = self.train_dataset if self.fit_dataset is None else self.fit_dataset
        if hasattr(dataset, "__len__"):
            if len(dataset) < self.args.world_size:
                raise DistillationError(f"{len(dataset)} images cannot be shared by {self.args.world_size} processes")
            dataset = torch.utils.data.Subset(
                dataset, range(self.args.process_index, len(dataset), self.args.world_size)
            )
        elif self.args.world_size > 1:
            raise DistillationError("a streamed dataset cannot be shared by several processes: pass subspaces=...")
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator
        )
        for batch in loader:
            _, teacher_inputs, _ = self._split(self._prepare_inputs(batch))
            yield teacher_inputs

    # The teacher

    def teacher_logits(self, pixel_values: Tensor) -> Tensor:
        """The teacher's logits of the subtask's classes, in the student's order, `(B, C)`."""
        assert self.teacher is not None
        if self.args.teacher_bf16:
            context = torch.autocast(pixel_values.device.type, dtype=torch.bfloat16)
        else:
            context = self.accelerator.autocast()
        with context:
            logits = logits_of(self.teacher(pixel_values=pixel_values))
        return logits.float() if self._class_ids is None else logits[:, self._class_ids].float()

    def teacher_targets(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Features]]:
        """The teacher's subtask logits and the projected features of each paired layer, computed or remembered.

        Args:
            inputs: a batch; with `teacher_views`, its `index` and `view` name the views.
        """
        if self.teacher is None:
            return None, {}
        _, teacher_inputs, _ = self._split(inputs)
        if self._cache is None:
            return self._run_teacher(teacher_inputs)
        if "index" not in inputs or "view" not in inputs:
            raise DistillationError(
                "teacher_views needs `index` and `view` in the batch, as ViewDataset and ViewCollator give them"
            )
        return self._cache.targets(
            inputs["index"],
            inputs["view"],
            lambda places: self._run_teacher({name: value[places] for name, value in teacher_inputs.items()}),
            self.args.device,
        )

    @torch.no_grad()
    def _run_teacher(self, teacher_inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Features]]:
        """One pass of the teacher; features are projected the moment a layer returns, so none is kept."""
        assert self.teacher is not None
        distillation = self.distillation
        alignments = {
            pair.teacher.name: (pair, alignment)
            for pair, alignment in zip(distillation.pairs, distillation.alignments, strict=True)
        }
        image_size = _image_size(teacher_inputs)

        def project(name: str, output: Any) -> Features:
            pair, alignment = alignments[name]
            assert isinstance(alignment, SubspaceAlignment)
            return alignment.target(to_features(output, name, image_size, pair.teacher.channels_last))

        with record(self.teacher, list(alignments), transform=project) as recorder:
            logits = self.teacher_logits(teacher_inputs["pixel_values"])
        return logits, dict(recorder.outputs)

    @property
    def teacher_digest(self) -> str | None:
        """Digest of the teacher's weights; computed once."""
        if self._digest is None and self.teacher is not None:
            self._digest = weights_digest(self.teacher)
        return self._digest

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training the sum of `loss_terms`, in evaluation the cross entropy with the labels."""
        student_inputs, _, labels = self._split(inputs)
        if self.accelerator.unwrap_model(model) is not self._distillation:
            logits = logits_of(model(**student_inputs))
            loss = F.cross_entropy(logits.float(), labels) if labels is not None else logits.new_zeros(())
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        teacher_logits, targets = self.teacher_targets(inputs)
        outputs = model(targets=targets, **student_inputs)
        terms = self.loss_terms(outputs, teacher_logits, labels)
        self._track(terms)
        loss = torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def loss_terms(
        self, outputs: Mapping[str, Any], teacher_logits: Tensor | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss, by the name under which each is logged (METHOD step 3).

        Override to add a term: call `super().loss_terms(...)` and add to the result.

        Args:
            outputs: `logits` `(B, C)` of the student and `layer_losses`, one scalar per pair.
            teacher_logits: the teacher's subtask logits `(B, C)`; `None` without a teacher.
            labels: class of each image `(B,)`, if the batch has labels.
        """
        terms: dict[str, Tensor] = {}
        weights = self.loss_weights
        if weights["task"]:
            if labels is None:
                raise DistillationError("the cross entropy needs `labels` in the batch")
            cross_entropy = F.cross_entropy(
                outputs["logits"].float(), labels, label_smoothing=self.args.label_smoothing_factor
            )
            terms["task"] = weights["task"] * cross_entropy
        if weights["kd"] and teacher_logits is not None:
            terms["kd"] = weights["kd"] * logit_distillation(outputs["logits"], teacher_logits, self.args.temperature)
        for pair, loss in zip(self.pairs, outputs["layer_losses"], strict=True):
            terms[f"layer/{pair.teacher.name}"] = weights["layer"] * loss
        return terms

    def _split(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Tensor | None]:
        """Separate a batch into what the student takes, what the teacher takes, and the labels."""
        student = {key: value for key, value in inputs.items() if key not in NOT_FOR_THE_STUDENT}
        teacher = {"pixel_values": inputs.get("teacher_pixel_values", inputs.get("pixel_values"))}
        return student, teacher, inputs.get("labels")

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The parent's, on what the student takes."""
        inputs = {key: value for key, value in inputs.items() if key == "labels" or key not in NOT_FOR_THE_STUDENT}
        if inputs.get("labels") is None:  # the parent would take a lone image's logits for a tuple of one
            with torch.no_grad():
                _, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
            return None, None if prediction_loss_only else outputs["logits"], None
        result: tuple[Tensor | None, Tensor | None, Tensor | None] = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys
        )
        return result

    # Logging

    def _track(self, terms: Mapping[str, Tensor]) -> None:
        """Add up the parts for the log; stop, or note where a look would stall the device, if one is not finite."""
        if list(terms) != self._tracked:  # a subclass added a term or left one out
            self._stop_if_not_finite()
            self._tracked, self._first_bad_terms = list(terms), None
        values = torch.stack([term.detach().float() for term in terms.values()])
        bad = ~values.isfinite()
        self._first_bad_terms = bad if self._first_bad_terms is None else self._latched(bad)
        if values.device.type == "cpu":
            self._stop_if_not_finite()
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)  # of this batch in its step
        for name, value in zip(terms, values, strict=True):
            self._term_sums[name] = self._term_sums.get(name, torch.zeros_like(value)) + share * value
        self._term_count += share

    def _latched(self, bad: Tensor) -> Tensor:
        """The first set of parts that was not finite: later steps are NaN everywhere and tell nothing."""
        assert self._first_bad_terms is not None
        return torch.where(self._first_bad_terms.any(), self._first_bad_terms, bad)

    def _stop_if_not_finite(self) -> None:
        if self._first_bad_terms is not None and bool(self._first_bad_terms.any()):
            bad = [name for name, flag in zip(self._tracked, self._first_bad_terms.tolist(), strict=True) if flag]
            raise NonFiniteLossError(
                f"the loss of {', '.join(bad)} is NaN or infinite near step {self.state.global_step}. Likely causes: "
                "a learning rate or layer weight that is too large, or float16 overflow (use bf16)"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the parent's entries, and the mean of each part of the loss as `loss_NAME`; they add up to `loss`."""
        if "loss" in logs and self._term_count:
            names = list(self._term_sums)
            self._stop_if_not_finite()
            means = torch.stack([self._term_sums[name] for name in names]) / self._term_count
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= {f"loss_{name}": float(value) for name, value in zip(names, means, strict=True)}
            self._term_sums, self._term_count = {}, 0.0
        super().log(logs, start_time)

    # The trained module

    @property
    def distillation(self) -> StudentWithAlignments:
        """The student with its alignments; made when training starts."""
        if self._distillation is None:
            raise RuntimeError("the alignments are made when train() is called")
        return self._distillation

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
        self.prepare_distillation(resume_from_checkpoint or None)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._share_buffers()
        return output

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

    def prepare_distillation(self, checkpoint: str | None = None) -> StudentWithAlignments:
        """Fit the subspaces (or read them from `checkpoint`) and make the module that is trained; `train` calls it."""
        if checkpoint is not None:
            self._check_resumable(Path(checkpoint))
            if self.pairs:
                self.subspaces = load_subspaces(checkpoint)
        self.fit_subspaces()
        if self.teacher is not None:
            freeze(self.teacher)
        if self._distillation is None or self._distillation.student is not self.model:
            self._distillation = self._make_distillation()
        if self.args.teacher_views is not None and self._cache is None and self.teacher is not None:
            if not hasattr(self.train_dataset, "__len__"):
                raise DistillationError("teacher_views needs a training dataset with a length: leave it unset")
            self._cache = TeacherCache(len(self.train_dataset), self.args.teacher_views)
        return self._distillation

    def _make_distillation(self) -> StudentWithAlignments:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            alignments = [
                SubspaceAlignment(
                    self.subspaces[pair.teacher.name],
                    pair.student.width,
                    self.args.centring,
                    self.args.rotation,
                    self.args.normalise_energy,
                )
                for pair in self.pairs
            ]
        return StudentWithAlignments(self.model, self.pairs, alignments).to(self.args.device)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """Let the parent prepare (optimiser, wrapping, checkpoint) the student with its alignments as one module."""
        student: nn.Module = self.model
        if self.distillation.student is not student:  # model_init made a new one
            self._distillation = self._make_distillation()
            if resume_from_checkpoint is not None:
                self._load_alignments(resume_from_checkpoint)
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
        """The parent's; an optimiser that the user made gets the rotations as a group of its own.

        Raises:
            DistillationError: when it comes with a schedule, which knows nothing of that group.
        """
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        alignments = self._distillation.alignments if self._distillation is not None else nn.ModuleList()
        rotations = [weight for weight in alignments.parameters() if id(weight) not in known]
        if rotations:
            if self.lr_scheduler is not None:
                raise DistillationError(
                    "the rotations cannot join an optimizer that has a schedule: pass optimizers=(optimizer, None), "
                    "or optimizer_cls_and_kwargs=..."
                )
            optimizer.add_param_group({"params": rotations, "weight_decay": 0.0})
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parent's, without the rotations: decay would pull them to where they started."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if not name.startswith("alignments.")]

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        """What a resumed run must share with the run that wrote the checkpoint."""
        args = self.args
        return {
            "teacher": {"name": self._teacher_name(), "digest": self.teacher_digest},
            "student": {"model": type(self.model).__name__, "parameters": count_parameters(self.model)},
            "classes": None if self._class_ids is None else self._class_ids.tolist(),
            "layers": [str(pair) for pair in self.pairs],
            "method": {
                name: getattr(args, name)
                for name in ("method", "basis", "centring", "rotation", "normalise_energy", "positions")
            },
            "weights": dict(self.loss_weights, temperature=args.temperature),
        }

    def _teacher_name(self) -> str | None:
        """The teacher's Hub id, or the last part of its folder's name."""
        config = getattr(self.teacher, "config", None)
        name = getattr(config, "_name_or_path", None) or (type(self.teacher).__name__ if self.teacher else None)
        return Path(name).name if name and Path(name).is_dir() else name

    def _check_resumable(self, checkpoint: Path) -> None:
        path = checkpoint / STATE_FILE
        if not path.is_file():
            raise DistillationError(f"{checkpoint} has no {STATE_FILE}: it is not a checkpoint of SubDistillTrainer")
        saved, current = json.loads(path.read_text(encoding="utf-8")), self._state()
        for part, now in current.items():
            there = saved.get(part)
            if (there["digest"] != now["digest"]) if part == "teacher" else (there != now):
                raise DistillationError(
                    f"{checkpoint} was made with another choice of {part}: {there} there, {now} now. Resume with "
                    "the same, or start a new run in another folder"
                )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The parent's checkpoint, with alignments, subspaces and the run's identity in files of their own."""
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE_FILE).write_text(json.dumps(self._state(), indent=2) + "\n", encoding="utf-8")
            if self.pairs:
                save_subspaces(self.fit_subspaces(), folder)
                tensors = {
                    name: tensor.contiguous() for name, tensor in self.distillation.alignments.state_dict().items()
                }
                save_file(tensors, folder / ALIGNMENTS_FILE)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_alignments(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_alignments(self.state.best_model_checkpoint)

    def _load_alignments(self, checkpoint: str) -> None:
        path = Path(checkpoint) / ALIGNMENTS_FILE
        if path.is_file():
            self.distillation.alignments.load_state_dict(load_file(path, device="cpu"))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save student and processor. The parent's pickled arguments are left out: they hold paths and tokens."""
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)


def _image_size(inputs: Mapping[str, Any]) -> tuple[int, int]:
    pixels = inputs["pixel_values"]
    return (int(pixels.shape[-2]), int(pixels.shape[-1]))


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` whose last file was written, or `None`."""
    checkpoints = sorted(
        (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    for path in reversed(checkpoints):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            continue
        if math.isfinite(step):
            return str(path)
    return None
