"""The plan of a distillation: paired layers, their subspaces, the student with its layer losses, and their targets.

Each of these is made once, and made again only where something that it follows from has changed since: a
hyper-parameter search changes arguments and makes new students, and a trainer may be given other images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.trainer_utils import SaveStrategy

from subdistill_hf.acceleration.cuda_graphs import GraphsOf
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair, layer_table
from subdistill_hf.core.subspaces import Subspace, load_subspaces
from subdistill_hf.data.collate import teacher_pixels
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DistillationError
from subdistill_hf.losses.base import LayerLoss, is_replayable
from subdistill_hf.losses.building import make_layer_loss, needs_energies
from subdistill_hf.losses.procrustes import suited_rotation
from subdistill_hf.losses.rotations import FULL_WIDTH
from subdistill_hf.losses.subspace import RotationOption
from subdistill_hf.models.adapters import base_of, frozen_names
from subdistill_hf.models.loading import weights_digest
from subdistill_hf.teacher.cache_building import CacheRequest, TeacherViews, check_views, open_cache
from subdistill_hf.teacher.fitting import FitRequest, fit_energies, fit_pairs
from subdistill_hf.teacher.targets import CachedTargets, ComputedTargets
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.checkpoints import load_energies
from subdistill_hf.training.examples import described_images
from subdistill_hf.training.loaders import check_batches, length_of
from subdistill_hf.training.made import Made, Same, up_to_date
from subdistill_hf.training.matching import check_subspaces, inputs_of, match_models
from subdistill_hf.training.module import StudentWithAlignments
from subdistill_hf.training.optimizers import rates_of
from subdistill_hf.training.resuming import (
    RATES,
    check_given_subspaces,
    check_resumable,
    run_identity,
    tell_other_images,
)
from subdistill_hf.training.start import TrainingImages

Described = tuple[dict[str, Any] | None, dict[str, Any] | None]  # which images, and what is done to them


@dataclass(frozen=True)
class PairingInputs:
    """The inputs of the layer pairs, beside the teacher's architecture."""

    student: nn.Module
    method: str
    layers: tuple[str, ...] | None
    most_pairs: int
    image_shapes: tuple[torch.Size, torch.Size]


@dataclass(frozen=True)
class FitInputs:
    """The inputs of what is fitted to teacher layers.

    Attributes:
        basis: name of the basis and whether it is of all directions; `None` for energies alone.
        seed: `None` where nothing is drawn.
    """

    teacher_digest: str
    pairs: tuple[LayerPair, ...]
    images: Same
    collate: Same
    basis: tuple[str, bool] | None
    positions: int | None
    seed: int | None


@dataclass(frozen=True)
class ModuleInputs:
    """The inputs of the student with its layer losses."""

    student: nn.Module
    pairs: tuple[LayerPair, ...]
    method: str
    rotation: str
    centring: str
    normalise_energy: bool
    target_scale: str
    subspace_digests: tuple[str, ...]
    energies: tuple[float, ...]


@dataclass(frozen=True)
class TargetInputs:
    """The inputs of the source of the teacher's targets; the digest is `None` where none are cached."""

    teacher_digest: str | None
    views: int | None
    module: nn.Module
    images: Same
    collate: Same


class DistillationPlan:
    """Layer pairs, subspaces, layer losses and the teacher's targets of a training.

    Args:
        args: the arguments; they are read whenever something is asked for, since a search may change them.
        teacher: the teacher; `None` for a method without one, which compares no layers.
        subspaces: teacher layer name to subspace, to use instead of fitting.
        own_optimizer: whether the user made the optimiser.
    """

    def __init__(
        self,
        args: SubDistillConfig,
        teacher: Teacher | None,
        subspaces: Mapping[str, Subspace] | None = None,
        own_optimizer: bool = False,
    ) -> None:
        self.args, self.teacher, self.own_optimizer = args, teacher, own_optimizer
        self._given = dict(subspaces or {})
        self._pairing: Made[PairingInputs, list[LayerPair]] | None = None
        self._subspaces: Made[FitInputs, dict[str, Subspace]] | None = None
        self._energies: Made[FitInputs, dict[str, float]] | None = None
        self._module: Made[ModuleInputs, StudentWithAlignments] | None = None
        self._targets: Made[TargetInputs, ComputedTargets | CachedTargets] | None = None
        self._frozen: Made[Same, str] | None = None
        self._images: TrainingImages | None = None  # that the training reads
        self._described: Made[tuple[Same, Same], Described] | None = None

    def prepare(
        self,
        student: nn.Module,
        example: Mapping[str, Tensor],
        images: TrainingImages,
        checkpoint: str | None = None,
    ) -> StudentWithAlignments:
        """Make all that a training needs; what was made before is used again where nothing has changed.

        Args:
            student: the student, where it is trained.
            example: a batch of a few images, on the device.
            images: the images.
            checkpoint: what the training resumes; its subspaces are read.

        Returns:
            The student with its layer losses.

        Raises:
            DistillationError: when models and data do not fit, or the checkpoint is of another run.
            LayerError: when the layers cannot be compared.
            SubspaceError: when the images do not determine the subspaces.
        """
        args, teacher = self.args, self.teacher
        views = None if teacher is None else args.views
        check_batches(args, length_of(images.train))
        if not (args.learning_rate or self.own_optimizer):
            raise DistillationError("learning_rate=0: no weight would change; give a positive one")
        if views is not None:
            check_views(images.train, views)
        if teacher is not None:
            teacher.freeze()
        self.match(student, example)
        self._images = images
        if checkpoint is not None or args.save_strategy != SaveStrategy.NO:
            self._describe()  # now, since examples of some datasets are read
        if checkpoint is not None:
            check_resumable(checkpoint, self.identity(student), args.max_steps, args.num_train_epochs)
            tell_other_images(checkpoint, args, images.train)
        self.fit_subspaces(images, checkpoint)
        self._fit_energies(images, checkpoint)
        module = self.make_module(student)
        if teacher is not None:
            self._open_targets(teacher, module, images, views)
        return module

    # Layer pairs

    @property
    def pairs(self) -> list[LayerPair]:
        """The paired layers; none before `match`, and for methods that compare none."""
        return [] if self._pairing is None else self._pairing.product

    def match(self, student: nn.Module, example: Mapping[str, Tensor]) -> None:
        """Run both models on an example, check that their classes and given subspaces fit, and pair their layers.

        Args:
            student: the student.
            example: a batch of a few images, on the device.

        Raises:
            DistillationError: when classes or given subspaces do not fit.
            LayerError: when layers do not.
        """
        args, teacher = self.args, self.teacher
        layers = tuple(args.layers) if args.weights()["layer"] else None
        pixels = teacher_pixels(example)
        shapes = example["pixel_values"].shape[1:], pixels.shape[1:]
        inputs = PairingInputs(student, args.method, layers, args.layer_pairs, shapes)

        def pair() -> list[LayerPair]:
            if teacher is None:
                return []
            seen = inputs_of(student, example)
            return match_models(student, teacher, seen, pixels, layers, args.layer_pairs, args.method)

        self._pairing = up_to_date(self._pairing, inputs, pair)
        check_subspaces(self.pairs if self.uses_subspaces else [], self._given, self.rotation == FULL_WIDTH)

    @property
    def rotation(self) -> RotationOption:
        """The map of the student's features: what the arguments say, or what suits its layers."""
        if self.args.rotation != AUTO:
            return self.args.rotation
        widths = [pair.student.width for pair in self.pairs] if self.uses_subspaces else []
        return suited_rotation(widths, self.args.device)

    @property
    def uses_subspaces(self) -> bool:
        """Whether the method compares layers in subspaces."""
        return METHODS[self.args.method].uses_subspaces

    def preview(self) -> str:
        """The paired layers as a table."""
        return layer_table(self.pairs, subspaces=self.uses_subspaces and self.rotation != FULL_WIDTH)

    # Subspaces

    @property
    def subspaces(self) -> dict[str, Subspace]:
        """Teacher layer name to subspace: those that were given, until `fit_subspaces`."""
        return self._given if self._subspaces is None else self._subspaces.product

    @property
    def compared_subspaces(self) -> dict[str, Subspace]:
        """Those of the paired teacher layers; none for methods without subspaces."""
        return {pair.teacher.name: self.subspaces[pair.teacher.name] for pair in self.pairs if self.uses_subspaces}

    def fit_subspaces(self, images: TrainingImages, checkpoint: str | None = None) -> dict[str, Subspace]:
        """Fit, or read, the subspaces of all paired teacher layers (docs/method.md, "Bases").

        They are fitted in one pass over the images, of which each process reads its share; the moments are merged, so
        the result is that of one process.

        Args:
            images: the images.
            checkpoint: of a run with the same arguments, whose subspaces are read instead.

        Returns:
            Teacher layer name to subspace, for every pair; nothing for methods without subspaces.
        """
        teacher, args = self.teacher, self.args
        if teacher is None or not self.uses_subspaces or not self.pairs:
            return {}
        inputs = self._fit_inputs(teacher, images, (args.basis, self.rotation == FULL_WIDTH))
        if checkpoint is not None:
            self._subspaces = Made(inputs, load_subspaces(checkpoint))
            check_given_subspaces(self._given, self._subspaces.product)
        else:
            self._subspaces = up_to_date(self._subspaces, inputs, lambda: self._fitted(teacher, images))
        return self._subspaces.product

    def _fit_inputs(
        self, teacher: Teacher, images: TrainingImages, basis: tuple[str, bool] | None = None
    ) -> FitInputs:
        args = self.args
        drawn = args.positions is not None or (basis is not None and BASES[basis[0]].seeded)
        return FitInputs(
            teacher_digest=teacher.digest,
            pairs=tuple(self.pairs),
            images=Same(images.for_moments),
            collate=Same(images.collate),
            basis=basis,
            positions=args.positions,
            seed=args.seed if drawn else None,
        )

    def _fitted(self, teacher: Teacher, images: TrainingImages) -> dict[str, Subspace]:
        """The subspaces that were given, and all others fitted."""
        args, full_width = self.args, self.rotation == FULL_WIDTH
        request = FitRequest.for_training(args)
        missing = [pair for pair in self.pairs if pair.teacher.name not in self._given]
        basis = "identity" if full_width else args.basis
        known = dict(self._given)
        if missing:
            known |= fit_pairs(teacher, missing, images.for_moments, images.collate, request, basis, full_width)
        return {pair.teacher.name: known[pair.teacher.name] for pair in self.pairs}

    # The energies of layers without subspaces

    @property
    def energies(self) -> dict[str, float]:
        """Teacher layer name to energy, where targets without subspaces are scaled; none before `prepare`."""
        return {} if self._energies is None or not needs_energies(self.args) else self._energies.product

    def _fit_energies(self, images: TrainingImages, checkpoint: str | None) -> None:
        """Measure, or read, the energies of all paired teacher layers; each process reads its share of the images."""
        teacher, args = self.teacher, self.args
        if teacher is None or not self.pairs or not needs_energies(args):
            return
        inputs = self._fit_inputs(teacher, images)
        if checkpoint is not None:
            self._energies = Made(inputs, load_energies(checkpoint))
            return

        def measure() -> dict[str, float]:
            request = FitRequest.for_training(args)
            return fit_energies(teacher, self.pairs, images.for_moments, images.collate, request)

        self._energies = up_to_date(self._energies, inputs, measure)

    # The student and its layer losses

    @property
    def module(self) -> StudentWithAlignments | None:
        """The student with its layer losses; `None` before `make_module`."""
        return None if self._module is None else self._module.product

    def make_module(self, student: nn.Module) -> StudentWithAlignments:
        """The student with its layer losses, on the device; the random numbers of others stay as they are."""
        args = self.args
        inputs = ModuleInputs(
            student,
            tuple(self.pairs),
            args.method,
            self.rotation,
            args.centring,
            args.normalise_energy,
            args.scale_of_targets(),
            tuple(subspace.digest for subspace in self.compared_subspaces.values()),
            tuple(self.energies.values()),
        )

        def make() -> StudentWithAlignments:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)
                losses = [self._layer_loss(pair) for pair in self.pairs]
            return StudentWithAlignments(student, self.pairs, losses).to(args.device)

        self._module = up_to_date(self._module, inputs, make)
        return self._module.product

    def _layer_loss(self, pair: LayerPair) -> LayerLoss:
        subspace, energy = self.subspaces.get(pair.teacher.name), self.energies.get(pair.teacher.name)
        return make_layer_loss(self.args, pair, subspace, self.rotation, energy)

    # The teacher's targets

    @property
    def targets(self) -> ComputedTargets | CachedTargets | None:
        """The source of the teacher's logits and layer targets; `None` without a teacher, or before `prepare`."""
        return None if self._targets is None else self._targets.product

    def _open_targets(
        self, teacher: Teacher, module: StudentWithAlignments, images: TrainingImages, views: int | None
    ) -> None:
        """Let the targets be computed for each batch, or where views are kept be read from a cache, filled now."""
        digest = None if views is None else teacher.digest
        inputs = TargetInputs(digest, views, module, Same(images.train), Same(images.collate))

        def make() -> ComputedTargets | CachedTargets:
            computed = ComputedTargets(teacher, module.pairs, cast(Sequence[LayerLoss], module.alignments))
            if views is None:
                return computed
            shown = TeacherViews(computed, images.train, images.collate)
            return CachedTargets(open_cache(shown, CacheRequest.for_training(self.args, views)), computed)

        self._targets = up_to_date(self._targets, inputs, make)

    def replay(self, what: GraphsOf) -> None:
        """Let what can be recorded of module and targets be replayed from now on, from new recordings."""
        if self.module is not None:
            self.module.replay(what)
            if self.targets is not None:
                self.targets.replay(what == "all" and all(map(is_replayable, self.module.alignments)))

    # The run

    def identity(self, student: nn.Module, optimizer: Any | None = None) -> dict[str, Any]:
        """The identity of the run, JSON-able: see `resuming.run_identity`.

        Args:
            student: the student.
            optimizer: that trains it already; of a resumed run its rates count, not those of the arguments.
        """
        frozen = self._frozen_digest(student) if isinstance(student, PeftModel) else None
        images, views = self._describe()  # also where a callback saves one without a save_strategy
        identity = run_identity(
            self.args, self.teacher, student, self.pairs, self.rotation, images, views, frozen, self.own_optimizer
        )
        if optimizer is not None and not self.own_optimizer:
            identity[RATES] = rates_of(optimizer)
        return identity

    def _describe(self) -> Described:
        """Which images these are, as a checkpoint says, or one is compared."""
        if (images := self._images) is None:
            return None, None

        def describe() -> Described:
            known = None if images.train is None else described_images(images.train, images.collate)
            shown = images.train
            return known, {**shown.described(), "views": shown.views} if isinstance(shown, ViewDataset) else None

        self._described = up_to_date(self._described, (Same(images.train), Same(images.collate)), describe)
        return self._described.product

    def _frozen_digest(self, student: PeftModel) -> str:
        """Digest of the weights under an adapter, which stay as they are and which checkpoints do not hold."""
        base, names = base_of(student), frozen_names(student)
        self._frozen = up_to_date(self._frozen, Same(student), lambda: weights_digest(base, names))
        return self._frozen.product
