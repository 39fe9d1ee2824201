"""Build students for a subtask: from a recipe, a timm architecture, a local folder or the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from subdistill_hf.core.activations import evaluation_mode
from subdistill_hf.hub.errors import explain
from subdistill_hf.models.adapters import replace_head
from subdistill_hf.models.heads import labels_of, names_of, new_classifier
from subdistill_hf.models.licenses import license_of
from subdistill_hf.models.loading import LOADING_ERRORS, LoadedModel, ModelError, check_image_channels, image_size_of
from subdistill_hf.models.provenance import hub_revision
from subdistill_hf.models.recipes import factor, positive, refuse_unknown
from subdistill_hf.models.timm_students import described_timm_student, timm_processor

UNBUILDABLE = (*LOADING_ERRORS, TypeError, AssertionError)

RESNET_WIDTHS = "16-24-32-48"


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
    labels = labels_of(names)
    if not is_new(recipe):
        return _pretrained(recipe, labels, trust_remote_code)
    kind, _, text = recipe.partition(":")
    try:
        options = _options(text)
        if kind.startswith("timm/"):
            described = described_timm_student(kind.removeprefix("timm/"), options)
            model = new_classifier("TimmWrapperForImageClassification", **described, **labels)
            student = LoadedModel(model, timm_processor(model.config), recipe)
        else:
            usual = max(image_size_of(teacher_processor)[0], _smallest_image(kind, options))
            size = positive("image", options.pop("image", usual))
            model = RECIPES[kind](size, options, labels)
            student = LoadedModel(model, _processor_of_size(size, teacher_processor), recipe)
    except UNBUILDABLE as error:
        raise ModelError(f"student recipe {recipe!r}: {error}") from error
    _check_takes_its_images(student)
    return student


def _smallest_image(kind: str, options: dict[str, str]) -> int:
    """The size that leaves two by two positions where the maps of a convolutional net shrink 32 times."""
    if kind == "resnet":  # its stem shrinks 4 times, each stage but the first twice
        return int(2 ** (len(options.get("widths", RESNET_WIDTHS).split("-")) + 2))
    return 64 if kind == "mobilenetv2" else 1


def is_new(recipe: str) -> bool:
    """Whether a text asks for a student without trained weights."""
    if Path(recipe).is_dir():
        return False
    kind, separator, _ = recipe.partition(":")
    return (bool(separator) and kind in RECIPES) or (kind.startswith("timm/") and "." not in kind)


def _pretrained(source: str, labels: dict[str, Any], trust_remote_code: bool) -> LoadedModel:
    """A model of the Hub or of a folder, with a new head where its classes are others."""
    local = Path(source).is_dir()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        before, names = names_of(config), list(labels["label2id"])
        config.update(labels)
        model, loading = AutoModelForImageClassification.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            dtype=torch.float32,  # whatever it was saved in: half precision is for autocast
        )
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except UNBUILDABLE as error:
        raise ModelError(
            f"student {source!r} cannot be built: {explain(error)}. Expected a recipe "
            f"({', '.join(f'{kind}:...' for kind in RECIPES)}, timm/NAME), a folder, or the id of a model on the Hub"
        ) from error
    check_image_channels(model, f"student {source!r}")
    _check_mostly_trained(source, model, loading["missing_keys"])
    if len(before) == len(names) and before != names:  # of as many outputs, so that its head was read
        replace_head(model, names)
    revision = hub_revision(source)
    return LoadedModel(
        model,
        processor,
        Path(source).name if local else source,
        None if local else source,
        revision,
        license_of(source, revision),
    )


def _check_mostly_trained(source: str, model: nn.Module, missing: Sequence[str]) -> None:
    """Refuse weights that belong to another architecture; a missing head or norm is made anew."""
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
    height, width = image_size_of(student.processor)
    try:
        with evaluation_mode(student.model):
            student.model(pixel_values=torch.zeros(1, 3, height, width))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"student {student.name!r} cannot take images of {height}x{width} pixels: {error}. Give another image=SIZE"
        ) from error


# Recipes


def _resnet(size: int, options: dict[str, str], labels: dict[str, Any]) -> nn.Module:
    """A residual net of basic blocks; keys: widths (one per stage), width (a factor on them), depth (of a stage)."""
    widths = _widths(options, RESNET_WIDTHS)
    depth = positive("depth", options.pop("depth", 1))
    refuse_unknown(options, ("widths", "width", "depth", "image"))
    return new_classifier(
        "ResNetForImageClassification",
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=[depth] * len(widths),
        layer_type="basic",
        downsample_in_first_stage=False,
        **labels,
    )


def _convnext(size: int, options: dict[str, str], labels: dict[str, Any]) -> nn.Module:
    """A ConvNeXt, without batch norm; keys: widths, width (a factor on them), depth (of a stage), patch."""
    widths = _widths(options, "16-32-48-64")
    depth = positive("depth", options.pop("depth", 1))
    patch = positive("patch", options.pop("patch", 2 if size < 64 else 4))
    refuse_unknown(options, ("widths", "width", "depth", "patch", "image"))
    return new_classifier(
        "ConvNextForImageClassification",
        hidden_sizes=widths,
        depths=[depth] * len(widths),
        num_stages=len(widths),
        patch_size=patch,
        image_size=size,
        **labels,
    )


def _mobilenetv2(size: int, options: dict[str, str], labels: dict[str, Any]) -> nn.Module:
    """A MobileNetV2; key: width, its width factor (depth multiplier in transformers)."""
    width = factor(options.pop("width", 1.0))
    refuse_unknown(options, ("width", "image"))
    return new_classifier(
        "MobileNetV2ForImageClassification",
        depth_multiplier=width,
        image_size=size,
        classifier_dropout_prob=0.2,
        **labels,
    )


def _vit(size: int, options: dict[str, str], labels: dict[str, Any]) -> nn.Module:
    """A vision transformer; keys: hidden, layers, heads (hidden/24 by default), patch (an eighth of the image)."""
    hidden, layers = positive("hidden", options.pop("hidden", 72)), positive("layers", options.pop("layers", 4))
    heads = positive("heads", options.pop("heads", max(1, hidden // 24)))
    patch = positive("patch", options.pop("patch", max(1, size // 8)))
    refuse_unknown(options, ("hidden", "layers", "heads", "patch", "image"))
    if hidden % heads:
        raise ValueError(f"hidden={hidden} is not divisible by heads={heads}")
    return new_classifier(
        "ViTForImageClassification",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        image_size=size,
        patch_size=patch,
        **labels,
    )


RECIPES: dict[str, Callable[[int, dict[str, str], dict[str, Any]], nn.Module]] = {
    "resnet": _resnet,
    "convnext": _convnext,
    "mobilenetv2": _mobilenetv2,
    "vit": _vit,
}
"""New students: kind to a function of image size, options and labels."""


def _options(text: str) -> dict[str, str]:
    """`key=value,...` as a dictionary."""
    options: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, separator, value = item.partition("=")
        if not separator or not value:
            raise ValueError(f"expected key=value, found {item!r}")
        options[key.strip()] = value.strip()
    return options


def _widths(options: dict[str, str], default: str) -> list[int]:
    """The `widths` of the stages, times the factor `width`."""
    times = factor(options.pop("width", 1.0))
    widths = [positive("widths", width) for width in options.pop("widths", default).split("-")]
    return [max(1, round(times * width)) for width in widths]


def _processor_of_size(size: int, template: Any) -> ViTImageProcessor:
    """A processor with square input of `size`, normalised as the template normalises."""
    mean, deviation = getattr(template, "image_mean", None), getattr(template, "image_std", None)
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=mean or [0.5] * 3, image_std=deviation or [0.5] * 3
    )
