"""What a training needs before it begins: paired layers, subspaces, losses of the layers, kept targets."""

from __future__ import annotations

import operator
import os
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor

from subdistill_hf.acceleration.cuda_graphs import GraphsOf
from subdistill_hf.acceleration.memory_format import leave_channels_last, take_memory_format
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO
from subdistill_hf.core.pairing import LayerPair, layer_table
from subdistill_hf.core.subspaces import Subspace, load_subspaces
from subdistill_hf.data.collate import for_student, for_teacher
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.losses.orthonormal import FULL_WIDTH
from subdistill_hf.losses.procrustes import suited_rotation
from subdistill_hf.losses.registry import make_layer_loss
from subdistill_hf.losses.subspace import RotationOption, is_replayable
from subdistill_hf.teacher.cache_building import CacheRequest, TaughtViews, check_views, open_cache
from subdistill_hf.teacher.fitting import FitRequest, fit_pairs
from subdistill_hf.teacher.teacher import Teaching
from subdistill_hf.training.checkpoints import check_goes_on, check_resumable
from subdistill_hf.training.identity import RunIdentity
from subdistill_hf.training.loading_trainer import LoadingTrainer
from subdistill_hf.training.matching import check_subspaces, match_models
from subdistill_hf.training.module import StudentWithAlignments


class PreparingTrainer(LoadingTrainer):
    """Pairs layers, fits subspaces, makes the module that is trained and opens the teacher's targets.

    What was made is used again in another training where nothing that it follows from has changed since: the student,
    the teacher, the images or the arguments.
    """

    fit_dataset: Any | None
    pairs: list[LayerPair]
    subspaces: dict[str, Subspace]
    _given_subspaces: dict[str, Subspace]
    _run_identity: RunIdentity
    _example: dict[str, Any] | None = None  # a batch of two images
    # what pairs, subspaces, losses and targets were made for
    _matched: Any = None
    _fitted: Any = None
    _made: Any = None
    _opened: Any = None

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the labels, the logits and the layers; read anew, since a search may change the arguments."""
        return self.args.weights()  # type: ignore[no-any-return]

    @property
    def _uses_subspaces(self) -> bool:
        return METHODS[self.args.method].uses_subspaces

    @property
    def rotation(self) -> RotationOption:
        """The map of the student's features: what the arguments say, or what suits its layers."""
        if self.args.rotation != AUTO:
            return cast(RotationOption, self.args.rotation)
        widths = [pair.student.width for pair in self.pairs] if self._uses_subspaces else []
        return suited_rotation(widths, self.args.device)

    @property
    def graphs(self) -> GraphsOf:
        """What of a training step is replayed as CUDA graphs: what the arguments say, where it can be."""
        args = self.args
        compiled = self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
        split = args.world_size > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled
        if args.device.type != "cuda" or split or compiled or args.gradient_checkpointing:
            return "off"
        return cast(GraphsOf, args.cuda_graphs)

    def _replay(self, what: GraphsOf) -> None:
        """Let what can be recorded be replayed from now on."""
        if self._distillation is not None:
            self._distillation.replay(what)
        if self.teaching is not None:
            made = self._distillation
            fits = what == "all" and made is not None and all(map(is_replayable, made.alignments))
            self.teaching.replay(made if fits else None)

    def _place_student(self) -> None:
        """Bring the student to where it is trained: the parent does so later, with `bf16_full_eval` or sharding."""
        elsewhere = self.is_model_parallel or getattr(self, "is_distributed_loading_by_transformers", False)
        if not (self.place_model_on_device or elsewhere):
            self._move_model_to_device(self.model, self.args.device)

    def _take_memory_format(self) -> None:
        """Let the convolutions of student and teacher lie in memory as they are trained."""
        if self._example is None:
            return
        args, student, batch = self.args, self.model, self._example
        half = args.bf16 or args.fp16
        take_memory_format(student, lambda: student(**for_student(batch)), args.device, half, args.channels_last)
        if self.teaching is not None:
            half = half or args.teacher_bf16
            self.teaching.take_memory_format(for_teacher(batch)["pixel_values"], half, args.channels_last)

    def _leave_memory_format(self) -> None:
        """Let them lie contiguously again, as everybody expects weights to lie."""
        leave_channels_last(self.model)
        if self.teaching is not None:
            leave_channels_last(self.teaching.teacher)

    def _teacher_precision(self) -> AbstractContextManager[Any]:
        if self.args.teacher_bf16:
            return torch.autocast(self.args.device.type, dtype=torch.bfloat16)
        autocast: AbstractContextManager[Any] = self.accelerator.autocast()
        return autocast

    def _match(self, teaching: Teaching, batch: dict[str, Tensor]) -> None:
        """Check that the models fit, with one example, and pair their layers."""
        self.pairs = match_models(
            self.model,
            teaching,
            for_student(batch),
            for_teacher(batch)["pixel_values"],
            self.args.layers if self.loss_weights["layer"] else None,
            self.args.layer_pairs,
            self.args.method,
        )
        check_subspaces(self.pairs, self.subspaces, self.rotation == FULL_WIDTH)
        self._matched = self._matching()

    def _matching(self) -> tuple[Any, ...]:
        """What the pairs follow from, beside the teacher."""
        args = self.args
        return self.model, args.method, args.layers, args.layer_pairs, bool(self.loss_weights["layer"])

    def _match_anew(self) -> None:
        """Pair the layers again where the student or the arguments are others than before."""
        if self.teaching is not None and self._example is not None and self._matched != self._matching():
            self._match(self.teaching, self._example)

    def layer_preview(self) -> str:
        """The paired layers as a table."""
        projected = self._uses_subspaces and self.rotation != FULL_WIDTH
        return layer_table(self.pairs, subspaces=projected)

    # Subspaces

    def fit_subspaces(self) -> dict[str, Subspace]:
        """Fit the subspaces of all paired teacher layers in one pass over the images (METHOD step 1).

        The compared methods have none.

        Each process reads its share of the images; the moments are merged, so the result is that of one process.
        """
        if not self._uses_subspaces:
            return {}
        self._forget_others()
        missing = [pair for pair in self.pairs if pair.teacher.name not in self.subspaces]
        if missing and self.teaching is not None:
            args, full_width = self.args, self.rotation == FULL_WIDTH
            request = FitRequest(
                positions=args.positions,
                seed=args.seed,
                batch_size=args.per_device_eval_batch_size,
                rank=args.process_index,
                processes=args.world_size,
                show=args.process_index == 0 and not args.disable_tqdm,
            )
            dataset = self.train_dataset if self.fit_dataset is None else self.fit_dataset
            basis = "identity" if full_width else args.basis
            self.subspaces |= fit_pairs(
                self.teaching, missing, dataset, self.data_collator, request, basis, full_width
            )
        return {pair.teacher.name: self.subspaces[pair.teacher.name] for pair in self.pairs}

    def _forget_others(self) -> None:
        """Drop the subspaces that were fitted to another teacher, or with other arguments."""
        args = self.args
        digest = None if self.teaching is None else self.teaching.digest
        seed = None if args.positions is None else args.seed
        fitted = digest, args.basis, args.positions, seed, self.rotation == FULL_WIDTH
        if self._fitted not in (None, fitted):
            self.subspaces = dict(self._given_subspaces)
        self._fitted = fitted

    def prepare_distillation(self, checkpoint: str | None = None) -> StudentWithAlignments:
        """Fit the subspaces (or read them from `checkpoint`) and make the module that is trained; `train` calls it.

        What was made before is used again where nothing that it depends on has changed since.
        """
        views = None if self.teaching is None else self.args.views
        if views is not None:
            check_views(self.train_dataset, views)
        if self.teaching is not None:
            self.teaching.begin()
        self._place_student()
        self._match_anew()
        self._take_memory_format()
        if checkpoint is not None:
            check_resumable(checkpoint, self._identity())
            args = self.args
            check_goes_on(checkpoint, args.max_steps, args.num_train_epochs, args.learning_rate)
            if self.pairs and self._uses_subspaces:
                self._forget_others()
                self.subspaces = load_subspaces(checkpoint)
        self.fit_subspaces()
        made = self._made_of()
        student = None if self._distillation is None else self._distillation.student
        if self._distillation is None or student is not self.model or made != self._made:
            self._distillation, self._made = self._make_distillation(), made
        if self.teaching is not None:
            self._open_cache(self.teaching, self._distillation, views)
        self._replay(self.graphs)
        return self._distillation

    def _open_cache(self, teaching: Teaching, distillation: StudentWithAlignments, views: int | None) -> None:
        """Let the targets of these views be read, or no targets; what is open stays so where all is as before."""
        whole = teaching.digest, views
        parts = distillation, self.train_dataset, self.data_collator
        same = self._opened is not None and self._opened[0] == whole
        if same and teaching.cache is not None and all(map(operator.is_, self._opened[1], parts)):
            return
        self._opened, teaching.cache = (whole, parts), None
        if views is not None:
            views_of = TaughtViews(teaching, distillation, self.train_dataset, self.data_collator)
            teaching.cache = open_cache(views_of, self._cache_request(views))

    def _cache_request(self, views: int) -> CacheRequest:
        args = self.args
        return CacheRequest(
            views=views,
            folder=args.teacher_cache_dir,
            limit=int(args.teacher_cache_limit * 2**30),
            precision=args.teacher_cache_precision,
            batch_size=args.per_device_train_batch_size,
            local_rank=args.local_process_index,
            local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)),
            show=args.process_index == 0 and not args.disable_tqdm,
        )

    def _made_of(self) -> tuple[Any, ...]:
        """What the losses of the layers follow from."""
        args, digests = self.args, {name: subspace.digest for name, subspace in self.subspaces.items()}
        return self.pairs, args.method, self.rotation, args.centring, args.normalise_energy, digests

    def _make_distillation(self) -> StudentWithAlignments:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            alignments = [self._layer_loss(pair) for pair in self.pairs]
        return StudentWithAlignments(self.model, self.pairs, alignments).to(self.args.device)

    def _identity(self) -> dict[str, Any]:
        images: Any = self.train_dataset
        views = images.described() if isinstance(images, ViewDataset) else None
        return self._run_identity.of(self.args, self.teaching, self.model, self.pairs, views, self.rotation)

    def _layer_loss(self, pair: LayerPair) -> LayerLoss:
        return make_layer_loss(self.args, pair, self.subspaces.get(pair.teacher.name), self.rotation)
