"""Load teachers, build students for a subtask, and identify and count weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from subdistill_hf.adapter_loading import find_adapter, load_merged
from subdistill_hf.adapters import head_modules
from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub_revision import hub_revision

TEACHERS_FOLDER = Path(__file__).parent / "teachers"
EMBEDDED_TEACHERS = ("glyphs-resnet", "glyphs-vit")


LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)


class ModelError(SubDistillError):
    """A teacher or a student that cannot be loaded or built."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        name: a Hub id, or the last part of a folder's name.
        hub_id: its id, when it came from the Hub.
        revision: the Hub commit, when known.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model with its image processor.

    Attributes:
        model: the classifier.
        processor: its image processor.
        name: what a person would call it: a Hub id, or the last part of a folder's name.
        hub_id: its id, when it came from the Hub.
        revision: the Hub commit, when known.
        license: when known.
        base: the model that it was adapted from, when it came as a PEFT adapter.
        without_head: whether its head is untrained.
    """

    model: nn.Module
    processor: Any
    name: str
    hub_id: str | None = None
    revision: str | None = None
    license: str | None = None
    base: Origin | None = None
    without_head: bool = False

    @property
    def labels(self) -> dict[int, str]:
        """The model's outputs by name, `id2label` of its configuration."""
        config: Any = self.model.config
        return {int(output): str(name) for output, name in config.id2label.items()}


def load_teacher(name: str, trust_remote_code: bool = False, adaptable: bool = False) -> LoadedModel:
    """Load and freeze a teacher: evaluation mode, no gradients.

    Args:
        name: an embedded teacher, a local folder, or an id of the Hub; of a model, or of a PEFT adapter, which is
            merged into its base model.
        trust_remote_code: run model code from the repository.
        adaptable: take a model without a trained head, too.

    Raises:
        ModelError: when it cannot be loaded, or has no trained classification head.
    """
    path, local = _place(name)
    try:
        adapter = find_adapter(path)
        if adapter is None:
            model, loading = AutoModelForImageClassification.from_pretrained(
                path, trust_remote_code=trust_remote_code, output_loading_info=True
            )
            missing, revision, base, source = loading["missing_keys"], hub_revision(path), None, path
        else:
            source, base_is_local = _place(adapter.base)
            model = load_merged(adapter, source, trust_remote_code)
            missing, revision = [], adapter.revision
            base = _origin(adapter.base, source, base_is_local, hub_revision(source, adapter.base_revision))
            source = str(adapter.folder) if adapter.has_processor else source
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"teacher {name!r} cannot be loaded: {error}. Expected an embedded teacher "
            f"({', '.join(EMBEDDED_TEACHERS)}), a folder, or the id of an image classifier on the Hub"
        ) from error
    replaceable = head_modules(model) if missing and adaptable else []
    if untrained := sorted(weight for weight in missing if weight.rpartition(".")[0] not in replaceable):
        raise ModelError(
            f"teacher {name!r} has no trained weights for {', '.join(untrained[:4])}: it is not a finished classifier "
            "(a random head would teach nothing). Fine-tune it on the classes first, as --adapt_teacher lora does"
        )
    origin = _origin(name, path, local, revision)
    embedded = (base.name if base else name) in EMBEDDED_TEACHERS
    return LoadedModel(
        freeze(model),
        processor,
        origin.name,
        origin.hub_id,
        origin.revision,
        license="apache-2.0" if embedded else None,
        base=base,
        without_head=bool(missing),
    )


def _place(name: str) -> tuple[str, bool]:
    """Where a model is read, and whether that is a folder."""
    path = str(TEACHERS_FOLDER / name) if name in EMBEDDED_TEACHERS else name
    return path, Path(path).is_dir()


def _origin(name: str, path: str, local: bool, revision: str | None) -> Origin:
    return Origin(Path(path).name) if local else Origin(name, name, revision)


def freeze(model: nn.Module) -> nn.Module:
    """Put a model in evaluation mode and stop gradients to its parameters."""
    return model.eval().requires_grad_(False)


def build_student(
    recipe: str, names: Sequence[str], teacher_processor: Any, trust_remote_code: bool = False
) -> LoadedModel:
    """Build a student with one output per class.

    Args:
        recipe: `resnet:widths=16-24-32-48`, `vit:hidden=72,layers=4`, `timm/NAME`, a Hub id or a local folder.
            Recipes of the first two kinds take `image=SIZE` (the teacher's by default) and more keys, see
            `_resnet` and `_vit`.
        names: the subtask's classes, in the order of the outputs.
        teacher_processor: its size and normalisation are the default of recipes.
        trust_remote_code: run model code from the repository.

    Raises:
        ModelError: for an unknown recipe or key, or a model that cannot be loaded.
    """
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: output for output, name in enumerate(names)},
    }
    kind, separator, text = recipe.partition(":")
    if separator and kind in _RECIPES:
        options = _recipe_options(recipe, text)
        try:
            size = _positive("image", options.pop("image", image_size_of(teacher_processor)[0]))
            model = _RECIPES[kind](size, options, labels)
        except (TypeError, ValueError) as error:
            raise ModelError(f"student recipe {recipe!r}: {error}") from error
        return LoadedModel(model, _processor_of_size(size, teacher_processor), recipe)
    try:
        if recipe.startswith("timm/") and not Path(recipe).is_dir():
            preprocessing = _timm_preprocessing(recipe.removeprefix("timm/"))
            config = TimmWrapperConfig(
                architecture=recipe.removeprefix("timm/"), pretrained_cfg=preprocessing, **labels
            )
            model = TimmWrapperForImageClassification(config)
            return LoadedModel(model, _timm_processor(config), recipe)
        config = AutoConfig.from_pretrained(recipe, trust_remote_code=trust_remote_code, **labels)
        model = AutoModelForImageClassification.from_pretrained(
            recipe, config=config, ignore_mismatched_sizes=True, trust_remote_code=trust_remote_code
        )
        processor = AutoImageProcessor.from_pretrained(recipe, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"student {recipe!r} cannot be built: {error}. Expected a recipe "
            f"({', '.join(f'{kind}:...' for kind in _RECIPES)}, "
            "timm/NAME), a folder, or the id of a model on the Hub"
        ) from error
    local = Path(recipe).is_dir()
    return LoadedModel(
        model,
        processor,
        Path(recipe).name if local else recipe,
        None if local else recipe,
        hub_revision(recipe),
    )


def _recipe_options(recipe: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, separator, value = item.partition("=")
        if not separator or not value:
            raise ModelError(f"student recipe {recipe!r}: expected key=value, found {item!r}")
        options[key.strip()] = value.strip()
    return options


def _resnet(size: int, options: dict[str, str], labels: dict[str, Any]) -> nn.Module:
    """A four-stage residual net of basic blocks; keys: widths (one per stage), depth (blocks per stage)."""
    widths = [_positive("widths", width) for width in options.pop("widths", "16-24-32-48").split("-")]
    depth = _positive("depth", options.pop("depth", 1))
    _refuse_unknown(options, ("widths", "depth", "image"))
    config = ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=[depth] * len(widths),
        layer_type="basic",
        downsample_in_first_stage=False,
        **labels,
    )
    model: nn.Module = ResNetForImageClassification(config)
    return model


def _vit(size: int, options: dict[str, str], labels: dict[str, Any]) -> nn.Module:
    """A vision transformer; keys: hidden, layers, heads (hidden/24 by default), patch (an eighth of the image)."""
    hidden, layers = _positive("hidden", options.pop("hidden", 72)), _positive("layers", options.pop("layers", 4))
    heads = _positive("heads", options.pop("heads", max(1, hidden // 24)))
    patch = _positive("patch", options.pop("patch", max(1, size // 8)))
    _refuse_unknown(options, ("hidden", "layers", "heads", "patch", "image"))
    if hidden % heads:
        raise ValueError(f"hidden={hidden} is not divisible by heads={heads}")
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        image_size=size,
        patch_size=patch,
        **labels,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


_RECIPES = {"resnet": _resnet, "vit": _vit}


def _positive(key: str, value: str | int) -> int:
    """The whole number of at least 1 that a recipe gives for a key."""
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"expected whole numbers of at least 1 for {key}, found {value!r}")
    return int(value)


def _refuse_unknown(options: dict[str, str], known: Sequence[str]) -> None:
    if options:
        raise ValueError(f"unknown key {next(iter(options))!r}: expected {', '.join(known)}")


def _processor_of_size(size: int, template: Any) -> ViTImageProcessor:
    """A processor with square input of `size`, normalised as the template normalises."""
    mean, deviation = getattr(template, "image_mean", None), getattr(template, "image_std", None)
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=mean or [0.5] * 3, image_std=deviation or [0.5] * 3
    )


TIMM_PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def _timm_preprocessing(architecture: str) -> dict[str, Any]:
    """How timm feeds an architecture; the student's configuration carries it, its processor is made from it."""
    import timm

    known = timm.get_pretrained_cfg(architecture)
    described = {} if known is None else known.to_dict()
    return {name: described[name] for name in TIMM_PREPROCESSING if name in described}


def _timm_processor(config: Any) -> Any:
    """The processor that `AutoImageProcessor` would make from the saved student."""
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    return TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)


def image_size_of(processor: Any) -> tuple[int, int]:
    """Height and width of what a processor gives."""
    for name in ("crop_size" if getattr(processor, "do_center_crop", False) else "size", "size"):
        size = getattr(processor, name, None) or {}
        if "height" in size:
            return int(size["height"]), int(size["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    data_config = getattr(processor, "data_config", None)
    if data_config:
        return int(data_config["input_size"][1]), int(data_config["input_size"][2])
    raise ModelError(f"{type(processor).__name__} does not say the size of its images")


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_digest(model: nn.Module, names: Collection[str] | None = None) -> str:
    """SHA-256 over names, shapes and values of all weights and buffers, or of those that are named."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if names is not None and name not in names:
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()
