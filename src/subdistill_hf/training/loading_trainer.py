"""A trainer's batches: views with the teacher's targets, whose pixels are made where the student is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.data.collate import NOT_FOR_THE_STUDENT, Finish, ViewCollator, divided, with_epochs
from subdistill_hf.teacher.cache import CachedCollator
from subdistill_hf.teacher.teacher import Teaching
from subdistill_hf.training.joint_trainer import JointTrainer


class LoadingTrainer(JointTrainer):
    """Lets the loader do what the device cannot, and leaves out what a batch is not needed for.

    On a GPU the batches of the loader that callbacks are handed are not finished: their images are bytes. Loaders that
    `get_train_dataloader` and `get_eval_dataloader` give to others have pixels.
    """

    data_collator: Any
    _signature_columns: list[str]
    teaching: Teaching | None = None
    _trains = False  # the next training loader is that of the training loop, which finishes its batches
    _finish: Finish | None = None  # does what that loader leaves
    _norm_of_one_position: str | None = None  # a batch norm of the student that no lone image can be trained with

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, whose own loader leaves pixels to the device."""
        self._trains = True
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            self._trains = False

    @property
    def _training_images(self) -> int | None:
        """How many images a pass over the training dataset has, where it knows."""
        dataset: Any = self.train_dataset
        return len(dataset) if hasattr(dataset, "__len__") else None

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """The parent's, with the teacher's targets where they are cached.

        A last batch of one image is left out where the student cannot be trained on it, and workers are started anew
        in each epoch where that has other views: they would keep those of the first.
        """
        args, images = self.args, self._training_images
        chosen = args.dataloader_drop_last, args.dataloader_persistent_workers
        # several processes complete their last batches
        alone = args.world_size == 1 and images is not None and images % self._train_batch_size == 1
        args.dataloader_drop_last |= self._norm_of_one_position is not None and alone
        args.dataloader_persistent_workers &= not with_epochs(self.train_dataset)
        try:
            loader: torch.utils.data.DataLoader[Any] = self._loader_with_targets()
        finally:
            args.dataloader_drop_last, args.dataloader_persistent_workers = chosen
        return loader

    def _loader_with_targets(self) -> Any:
        """The parent's training batches; with a teacher cache they carry the teacher's targets."""
        cache = None if self.teaching is None else self.teaching.cache
        collate = self._collator(cache is None)
        if self._trains:
            self._trains = False
            collate, self._finish = divided(collate, self.args.device)
        with self._collating(collate if cache is None else CachedCollator(collate, cache)):
            return super().get_train_dataloader()

    def _set_signature_columns_if_needed(self) -> None:
        """The parent's, which `remove_unused_columns` keeps, and what the teacher takes."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*{*self._signature_columns, *NOT_FOR_THE_STUDENT}]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader[Any]:
        """The parent's, without the teacher's pixels."""
        with self._collating(self._collator(with_teacher=False)):
            loader: torch.utils.data.DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The parent's, with their pixels, if these were left to the device."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        return [batch if self._finish is None else self._finish(batch) for batch in batches], items

    def _collator(self, with_teacher: bool) -> Any:
        """The collator, for batches that the teacher sees or not."""
        collate = self.data_collator
        return collate if with_teacher or not isinstance(collate, ViewCollator) else collate.for_student()

    @contextmanager
    def _collating(self, collate: Any) -> Iterator[None]:
        """Loaders that are made inside collate so."""
        whole, self.data_collator = self.data_collator, collate
        try:
            yield
        finally:
            self.data_collator = whole

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
