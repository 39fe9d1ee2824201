"""Checks before a training begins: an example of its images, their labels, and the student on it.

Whatever does not fit is refused here, whenever model, images and collator came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import Trainer

from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import NO_CLASS
from subdistill_hf.config.training import LABELS, SubDistillConfig
from subdistill_hf.core.activations import logits_of
from subdistill_hf.core.hooks import evaluation_mode
from subdistill_hf.data.collate import Collate, is_stream
from subdistill_hf.errors import DistillationError
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.arguments import Metrics, check_best_metric
from subdistill_hf.training.batch_norm import single_value_norm
from subdistill_hf.training.checks import (
    check_apart,
    check_labels,
    check_pixels,
    check_precision,
    check_student,
    check_trainable,
    tell_batch_statistics,
)
from subdistill_hf.training.examples import example_batch, example_of_loader, known_labels
from subdistill_hf.training.loaders import evaluation_collator
from subdistill_hf.training.matching import inputs_of, outputs_of
from subdistill_hf.training.overlap import tell_overlap


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training.

    Attributes:
        train: the training dataset; `None` where a loader of the user has none.
        fit: images for the moments; those of the training with `None`.
        collate: makes batches of their examples, with the teacher's pixels.
        loader: of a trainer that makes its own and has no training dataset.
    """

    train: Any
    fit: Any | None
    collate: Collate
    loader: Any | None = None

    @classmethod
    def of(
        cls, train: Any | None, fit: Any | None, collate: Collate, make_loader: Callable[[], Any]
    ) -> TrainingImages:
        """The images of a trainer: its dataset, or what its own loader gives, since one of torch says of what.

        Args:
            train: its training dataset, if it has one.
            fit: its images for the moments, if it has some.
            collate: its collator.
            make_loader: its method `get_train_dataloader`, perhaps of a subclass.

        Raises:
            DistillationError: when it has neither.
        """
        if train is not None:
            return cls(train, fit, collate)
        if getattr(make_loader, "__func__", None) is Trainer.get_train_dataloader:
            raise DistillationError("a training needs images: pass train_dataset=...")
        loader = make_loader()
        dataset, own_collate = (getattr(loader, name, None) for name in ("dataset", "collate_fn"))
        batched = [getattr(loader, name, None) for name in ("batch_sampler", "batch_size")] != [None, None]
        if dataset is None or own_collate is None or not batched:
            return cls(None, fit, collate, loader)  # whole batches come from somewhere else
        return cls(dataset, fit, collate if fit is not None else own_collate, loader)

    @property
    def for_moments(self) -> Any:
        """The images that the moments are taken of.

        Raises:
            DistillationError: where nobody knows them.
        """
        images = self.train if self.fit is None else self.fit
        if images is None:
            raise DistillationError(
                "get_train_dataloader gives batches of a dataset that it does not name: pass fit_dataset=..., images "
                "for the subspaces"
            )
        return images

    def example(self) -> dict[str, Any]:
        """Two collated examples, see `examples.example_batch`; of a stream beside which others are given, of those."""
        if self.loader is not None:
            return example_of_loader(self.loader)
        beside = is_stream(self.train) and self.fit is not None and not is_stream(self.fit)
        return example_batch(self.fit if beside else self.train, self.collate)


@dataclass(frozen=True)
class Start:
    """The facts of a training before it begins.

    Attributes:
        example: a batch of two images, on the device.
        single_value_norm: a batch norm of the student that a batch of one image cannot train.
    """

    example: dict[str, Any]
    single_value_norm: str | None


def check_start(
    args: SubDistillConfig,
    student: nn.Module,
    teacher: Teacher | None,
    images: TrainingImages,
    evaluated: Any,
    place: Callable[[dict[str, Any]], dict[str, Any]],
    metrics: Metrics,
) -> Start:
    """Refuse student, images and labels that do not fit together.

    Args:
        args: the arguments.
        student: the student, where it is trained.
        teacher: the teacher, if there is one.
        images: the images.
        evaluated: images of the evaluations: none, a dataset, or several by name.
        place: brings a batch to the device.
        metrics: what measures the evaluations.

    Returns:
        The example that was looked at.

    Raises:
        DistillationError: for what does not fit.
    """
    check_best_metric(args, evaluated, metrics)
    check_student(student, args)
    check_pixels(student, "student")
    check_trainable(student)
    if teacher is not None:
        check_pixels(teacher.model, "teacher")
        check_apart(student, teacher.model)
        tell_batch_statistics(teacher.model, "teacher")
    tell_batch_statistics(student, "student")
    if args.remove_unused_columns:
        _check_columns(images.train)
    example = place(images.example())
    inputs = inputs_of(student, example)
    check_precision(student, example["pixel_values"])
    with evaluation_mode(student), torch.no_grad():
        classes = outputs_of(logits_of(student(**inputs)), "student")
    if classes > 1:  # fewer are refused when student and teacher are matched
        _check_labels(args, example.get(LABELS), classes)
        _check_datasets(args, images, evaluated, classes)
    return Start(example, single_value_norm(student, inputs))


def _check_columns(images: Any) -> None:
    """Refuse to remove columns of which a transform makes the pixels."""
    if isinstance(images, datasets.Dataset) and images.format["type"] == "custom":
        raise DistillationError(
            "remove_unused_columns would remove columns before the dataset's transform sees them: leave it False"
        )


def _check_labels(args: SubDistillConfig, labels: Tensor | None, classes: int) -> None:
    """Refuse a method that needs labels where there are none, and labels that are no classes of the student."""
    each = METHODS[args.method].logit_labels
    if labels is not None:
        check_labels(labels, classes, "the training images", each)
    elif args.weights()["task"]:
        raise DistillationError("the cross entropy needs `labels` in the batch")
    elif each:
        raise DistillationError(f"method {args.method!r} needs `labels` in the batch")


def _check_datasets(args: SubDistillConfig, images: TrainingImages, evaluated: Any, classes: int) -> None:
    """Refuse labels of the datasets that are no classes of the student."""
    collate = evaluation_collator(images.collate)
    several = evaluated if isinstance(evaluated, dict) else {"": evaluated}
    named = [
        (dataset, f"the evaluation images{f' {name!r}' if name else ''}", False) for name, dataset in several.items()
    ]
    if images.loader is None:
        named.append((images.train, "the training images", METHODS[args.method].logit_labels))
    for dataset, who, each in named:
        labels = None if dataset is None else known_labels(dataset, collate)
        if labels is not None:
            check_labels(labels, classes, who, each)
            if dataset is images.train and args.weights()["task"] and not _has_classes(labels):
                raise DistillationError(
                    f"the cross entropy needs classes, and all labels of {who} are {NO_CLASS}, which stands for no "
                    "class: task_weight=0 trains without labels, with a method that has a teacher"
                )
    if images.loader is None:
        tell_overlap(images.train, several, collate)


def _has_classes(labels: Any) -> bool:
    return bool((torch.as_tensor(labels) != NO_CLASS).any())
