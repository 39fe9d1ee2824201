"""Build students for a subtask: from a recipe, timm, a folder or the Hub; whole or through low-rank changes (LoRA)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageClassification, ViTImageProcessor

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.core.hooks import evaluation_mode
from subdistill_hf.formatting import last_part
from subdistill_hf.hub.errors import explain, missing_place
from subdistill_hf.models.adapters import ASKED_FOR_STRIDE, head_weights, lora_targets, replace_head, with_adapter
from subdistill_hf.models.configuration import read_configuration
from subdistill_hf.models.errors import LOADING_ERRORS, ModelError
from subdistill_hf.models.heads import expect_one_class, labels_of, name_outputs, names_of, new_classifier
from subdistill_hf.models.loading import (
    LoadedModel,
    check_image_channels,
    check_labels,
    check_shapes,
    input_size_of,
    load_processor,
)
from subdistill_hf.models.provenance import hub_revision, license_of
from subdistill_hf.models.recipes import RECIPES, RESNET_WIDTHS, positive, recipe_options, smallest_image
from subdistill_hf.models.timm_students import described_timm_student, timm_processor

UNBUILDABLE = (*LOADING_ERRORS, TypeError, AssertionError)


def build_student(
    recipe: str, names: Sequence[str], teacher_processor: Any, trust_remote_code: bool = False
) -> LoadedModel:
    """Build a student with one output per class.

    Args:
        recipe: `KIND:key=value,...` for a new student of the kinds in `RECIPES`; `timm/NAME` or
            `timm/NAME:width=FACTOR,image=SIZE` for a new student of a timm architecture; or the id of a pretrained
            model on the Hub (timm's have a tag, `timm/NAME.TAG`) or a local folder, which get a new head. A new
            student of `RECIPES` takes images of the teacher's size (larger ones where its last map would have a single
            position), one of timm those of its architecture, unless `image=SIZE` is given.
        names: the subtask's classes, in the order of the outputs.
        teacher_processor: its size and normalisation are those of `RECIPES`.
        trust_remote_code: run model code from the repository.

    Raises:
        ModelError: for an unknown recipe or key, or a model that cannot be loaded or cannot take its images.
    """
    if not is_new(recipe):
        return _pretrained(recipe, list(names), trust_remote_code)
    student = _new(recipe, names, teacher_processor)
    _check_takes_its_images(student)
    return student


def check_recipe(recipe: str) -> nn.Module | None:
    """Refuse a recipe of a new student that cannot be followed, whatever its classes and images are.

    Returns:
        A student of this recipe, of two classes; `None` for a pretrained one.

    Raises:
        ModelError: as `build_student` does.
    """
    if not is_new(recipe):
        return None
    with torch.random.fork_rng(devices=[]):
        return _new(recipe, ("first", "second"), ViTImageProcessor()).model


def check_student_is_there(source: str, trust_remote_code: bool = False) -> None:
    """Refuse a pretrained student whose configuration cannot be read, before anything large is; a new one has none.

    Args:
        source: see `build_student`.
        trust_remote_code: run model code from the repository.

    Raises:
        ModelError: as `build_student` does.
    """
    if not is_new(source):
        with _explained(source):
            read_configuration(source, trust_remote_code)


def _new(recipe: str, names: Sequence[str], teacher_processor: Any) -> LoadedModel:
    kind, _, text = recipe.partition(":")
    labels = labels_of(names)
    try:
        options = recipe_options(text)
        if kind.startswith("timm/"):
            described = described_timm_student(kind.removeprefix("timm/"), options)
            model = new_classifier("TimmWrapperForImageClassification", **described, **labels)
            return LoadedModel(model, timm_processor(model.config), recipe)
        usual = max(*input_size_of(teacher_processor), smallest_image(kind, options))
        size = positive("image", options.pop("image", usual))
        model = RECIPES[kind](size, options, labels)
        return LoadedModel(model, _processor_of_size(size, teacher_processor), recipe)
    except UNBUILDABLE as error:
        raise ModelError(f"student recipe {recipe!r}: {error}") from error


def is_new(recipe: str) -> bool:
    """Whether a text asks for a student without trained weights."""
    if Path(recipe).is_dir():
        return False
    kind, separator, _ = recipe.partition(":")
    return (bool(separator) and kind in RECIPES) or (kind.startswith("timm/") and "." not in kind)


def _pretrained(source: str, names: list[str], trust_remote_code: bool) -> LoadedModel:
    """A model of the Hub or of a folder, with a new head where its classes are others."""
    local = Path(source).is_dir()
    with _explained(source):
        config = read_configuration(source, trust_remote_code)
        check_labels(config, f"student {source!r}")
        before = names_of(config)
        name_outputs(config, names)
        expect_one_class(config)
        model, loading = AutoModelForImageClassification.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            dtype=torch.float32,  # whatever it was saved in: half precision is for autocast
        )
        processor = load_processor(source, model, trust_remote_code)
    check_image_channels(model, f"student {source!r}")
    _check_body_fits(source, model, len(names), loading["mismatched_keys"])
    _check_mostly_trained(source, model, loading["missing_keys"])
    if len(before) == len(names) and before != names:  # of as many outputs, so that its head was read
        replace_head(model, names)
    revision = hub_revision(source)
    return LoadedModel(
        model,
        processor,
        last_part(source) if local else source,
        None if local else source,
        revision,
        license_of(source, revision),
    )


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what the libraries raise of a pretrained student inside the context into one message."""
    try:
        yield
    except UNBUILDABLE as error:
        reason = missing_place(source) or explain(error).rstrip(".")
        raise ModelError(
            f"student {source!r} cannot be built: {reason}. Expected a recipe "
            f"({', '.join(f'{kind}:...' for kind in RECIPES)}, timm/NAME), a folder, or the id of a model on the Hub; "
            f"a new student needs no network, such as --student resnet:widths={RESNET_WIDTHS}"
        ) from error


def _check_body_fits(source: str, model: nn.Module, classes: int, mismatched: Collection[Any]) -> None:
    """Refuse weights of other shapes than the model's, but for a head, which is new."""
    body = [entry for entry in mismatched if tuple(entry[2]) != (classes, *entry[1][1:])]
    # a model of the repository's code may not be made without weights: it is not, for a head as most are
    odd = set(head_weights(model)) if body else ()
    body = [entry for entry in body if entry[0] not in odd]
    check_shapes(f"student {source!r}", body, "Give it the config.json that was saved with its weights")


def _check_mostly_trained(source: str, model: nn.Module, missing: Sequence[str]) -> None:
    """Refuse weights that belong to another architecture; a missing head or norm is new."""
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    absent = sum(sizes.get(name, 0) for name in missing)
    if 2 * absent > sum(sizes.values()):
        raise ModelError(
            f"student {source!r} has no trained weights for {', '.join(sorted(missing)[:4])} and others, more than "
            f"half of {type(model).__name__}: expected the weights of this architecture, or a recipe for a new student"
        )


@torch.no_grad()
def _check_takes_its_images(student: LoadedModel) -> None:
    """Run one image of the processor's size."""
    height, width = input_size_of(student.processor)
    try:
        with evaluation_mode(student.model):
            student.model(pixel_values=torch.zeros(1, 3, height, width))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"student {student.name!r} cannot take images of {height}x{width} pixels: {error}. Give another image=SIZE"
        ) from error


def _processor_of_size(size: int, template: Any) -> ViTImageProcessor:
    """A processor with square input of `size`, normalised as the template normalises."""
    mean, deviation = getattr(template, "image_mean", None), getattr(template, "image_std", None)
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=mean or [0.5] * 3, image_std=deviation or [0.5] * 3
    )


# Low-rank changes


def check_student_lora(options: TaskOptions) -> None:
    """Refuse low-rank changes of a student that is new, before anything is loaded.

    Raises:
        ModelError: naming the student.
    """
    if options.student_lora and is_new(options.student):
        raise ModelError(
            f"student_lora: the student {options.student!r} is new, and low-rank changes of random weights cannot "
            "make it good: give a pretrained student (an id of the Hub or a folder), or train all its weights"
        )


def with_lora(student: LoadedModel, options: TaskOptions) -> PeftModel:
    """The student with low-rank changes and a head that are trained, and a body that is not.

    Args:
        student: pretrained; its model is changed in place.
        options: rank and modules.

    Raises:
        AdapterError: for modules that cannot take LoRA.
        ModelError: for an adapter that PEFT alone could not run.
    """
    model: Any = student.model
    if options.student_lora_save == "adapter" and model.config.model_type in ASKED_FOR_STRIDE:
        raise ModelError(
            f"student_lora_save=adapter: PEFT alone cannot run an adapter of {model.config.model_type}, whose "
            "convolutions are asked for their stride: save it merged"
        )
    pixels = torch.zeros(1, 3, *input_size_of(student.processor))
    targets = lora_targets(model, lambda: model(pixel_values=pixels), options.student_lora_target_modules)
    base = student.hub_id or str(Path(options.student).resolve())
    return with_adapter(model, targets, options.student_lora_rank, base, student.revision)


def described_lora(model: PeftModel, options: TaskOptions) -> dict[str, Any]:
    """The report's entry of a student that was trained through LoRA."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"rank": options.student_lora_rank, "trained_parameters": trained, "saved": options.student_lora_save}
