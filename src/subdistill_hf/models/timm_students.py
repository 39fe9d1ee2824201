"""Describe timm architectures as configurations that plain transformers builds again: width, image size."""

from __future__ import annotations

import inspect
import re
from typing import Any

import timm
import torch
from torch import nn
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from subdistill_hf.models.recipes import factor, positive, refuse_unknown

PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
STAGE_WIDTHS = ("channels", "dims", "embed_dims")  # arguments of timm's models that give one width per stage
ROUND_TO = 8


def described_timm_student(name: str, options: dict[str, str]) -> dict[str, Any]:
    """The arguments of a `TimmWrapperConfig` for a new student.

    Args:
        name: of the architecture, without a tag.
        options: `width`, a factor on the widths of its stages, and `image`, the size of its images (the
            architecture's own by default).

    Raises:
        ValueError: for an unknown architecture or option, or a width factor that it has not.
    """
    width, image = factor(options.pop("width", 1.0)), options.pop("image", None)
    refuse_unknown(options, ("width", "image"))
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('_')[0]}*")[:5]
        raise ValueError(f"timm {timm.__version__} has no architecture {name!r}; it has {', '.join(near) or 'others'}")
    described: dict[str, Any] = {"architecture": name}
    if width != 1.0:
        described |= _narrowed(name, width)
    known = timm.get_pretrained_cfg(described["architecture"])
    preprocessing = {} if known is None else known.to_dict()
    if image is not None:
        size = positive("image", image)
        if preprocessing.get("fixed_input_size"):
            described["model_args"] = {**described.get("model_args", {}), "img_size": size}
        # the whole image: nothing of a small one is cut away
        preprocessing |= {"input_size": (3, size, size), "crop_pct": 1.0}
    described["pretrained_cfg"] = {name: preprocessing[name] for name in PREPROCESSING if name in preprocessing}
    return described


def timm_processor(config: Any) -> TimmWrapperImageProcessor:
    """The processor that `AutoImageProcessor` would make from the saved student."""
    return TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)


def _narrowed(name: str, width: float) -> dict[str, Any]:
    """The architecture with its widths times a factor: a variant that timm has, or arguments of its model."""
    base, own = re.fullmatch(r"(.+?)(?:_(\d{3}))?", name).groups()  # type: ignore[union-attr]
    variants = {int(other[-3:]) / 100: other for other in timm.list_models(f"{base}_[0-9][0-9][0-9]")}
    if timm.is_model(base):
        variants[1.0] = base
    wanted = width * (int(own) / 100 if own else 1.0)
    if variant := variants.get(round(wanted, 4)):
        return {"architecture": variant}
    with torch.device("meta"):
        model = timm.create_model(name)
    arguments = _width_arguments(model, width)
    if not arguments:
        has = ", ".join(f"{known:g}" for known in sorted(variants))
        raise ValueError(
            f"timm has no {base} of width {wanted:g} (it has {has}) that transformers could build again; "
            f"mobilenetv2:width={width:g} takes any factor"
        )
    return {"model_args": arguments}


def _width_arguments(model: nn.Module, width: float) -> dict[str, Any]:
    """The arguments of timm's model class that narrow it; none where it has no such argument."""
    parameters = inspect.signature(type(model).__init__).parameters
    for name in STAGE_WIDTHS:
        if name in parameters:
            default = parameters[name].default
            widths = default if name == "channels" else [info["num_chs"] for info in model.feature_info]  # type: ignore[union-attr]
            return {name: [max(ROUND_TO, round(width * value / ROUND_TO) * ROUND_TO) for value in widths]}
    if isinstance(model, timm.models.vision_transformer.VisionTransformer):
        heads = model.blocks[0].attn.num_heads
        narrowed = max(1, round(width * heads))
        return {"embed_dim": narrowed * (model.embed_dim // heads), "num_heads": narrowed}
    return {}
