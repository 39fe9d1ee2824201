"""Recipes of new students: kinds of networks by the options that a text gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from subdistill_hf.models.heads import new_classifier

RESNET_WIDTHS = "16-24-32-48"


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
        layer_scale_init_value=1.0,  # 1e-6, as published, is for deep networks: in a short training blocks stay idle
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


def recipe_options(text: str) -> dict[str, str]:
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


def smallest_image(kind: str, options: dict[str, str]) -> int:
    """The size that leaves two by two positions where the maps of a convolutional net shrink 32 times."""
    if kind == "resnet":  # its stem shrinks 4 times, each stage but the first twice
        return int(2 ** (len(options.get("widths", RESNET_WIDTHS).split("-")) + 2))
    return 64 if kind == "mobilenetv2" else 1


# Values


def positive(key: str, value: str | int) -> int:
    """The whole number of at least 1 that a recipe gives for a key."""
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"expected whole numbers of at least 1 for {key}, found {value!r}")
    return int(value)


def factor(value: str | float) -> float:
    """The width factor that a recipe gives, above 0 and at most 4."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 4:
        raise ValueError(f"expected a factor above 0 and at most 4 for width, found {value!r}")
    return number


def refuse_unknown(options: dict[str, str], known: Sequence[str]) -> None:
    """Refuse what is left of a recipe's options."""
    if options:
        raise ValueError(f"unknown key {next(iter(options))!r}: expected {', '.join(known)}")
