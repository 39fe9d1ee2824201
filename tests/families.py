"""Tiny models of every family that is tested, with random weights, made from their configurations."""

from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

TRANSFORMER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
MAPS = ["16x16", "8x8", "4x4", "2x2"]


class Family(NamedTuple):
    """How to build a model for some labels, its input size, and the layers at which it splits naturally."""

    build: object
    size: tuple[int, int]
    stages: dict[str, str]


def vit(blocks, image_size=32):
    def build(labels):
        config = ViTConfig(num_hidden_layers=blocks, image_size=image_size, patch_size=8, **TRANSFORMER, **labels)
        return ViTForImageClassification(config)

    return build


def deit(model_class):
    def build(labels):
        return model_class(DeiTConfig(num_hidden_layers=5, image_size=32, patch_size=8, **TRANSFORMER, **labels))

    return build


def dinov2_with_registers(labels):
    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, **labels
    )
    return Dinov2WithRegistersForImageClassification(config)


def swin(labels):
    config = SwinConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 2], window_size=2, image_size=64, **labels
    )
    return SwinForImageClassification(config)


def convnext(config_class, model_class):
    def build(labels):
        config = config_class(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], patch_size=2, **labels)
        return model_class(config)

    return build


def resnet(stages=4):
    def build(labels):
        config = ResNetConfig(
            embedding_size=4,
            hidden_sizes=[4, 8, 12, 16][:stages],
            depths=[1, 1, 2, 1][:stages],
            layer_type="basic",
            **labels,
        )
        return ResNetForImageClassification(config)

    return build


def mobilenetv2(labels):
    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25, image_size=64, **labels))


def efficientnet(labels):
    # with its usual small random weights, a deep layer's activations would be too small for float32
    config = EfficientNetConfig(
        width_coefficient=0.25,
        depth_coefficient=0.25,
        image_size=64,
        hidden_dim=320,
        initializer_range=0.3,
        **labels,
    )
    return EfficientNetForImageClassification(config)


def timm_model(architecture, **model_args):
    def build(labels):
        config = TimmWrapperConfig(architecture=architecture, model_args=model_args, **labels)
        return TimmWrapperForImageClassification(config)

    return build


def maps(names, widths, grids=MAPS):
    return {name: f"{width} x {grid}" for name, width, grid in zip(names, widths, grids, strict=True)}


def tokens(prefix, blocks, shape):
    return {f"{prefix}.{block}": shape for block in blocks}


def numbered(prefix, numbers=range(4)):
    return [f"{prefix}{number}" for number in numbers]


DEIT = tokens("deit.layers", (1, 2, 3, 4), "16 x 4x4 + 2 tokens")
FAMILIES = {
    "vit": Family(vit(6), (32, 32), tokens("vit.layers", (1, 2, 4, 5), "16 x 4x4 + 1 tokens")),
    "vit, wide image": Family(vit(12, (16, 32)), (16, 32), tokens("vit.layers", (2, 5, 8, 11), "16 x 2x4 + 1 tokens")),
    "vit of 2": Family(vit(2), (32, 32), tokens("vit.layers", (0, 1), "16 x 4x4 + 1 tokens")),
    "deit": Family(deit(DeiTForImageClassification), (32, 32), DEIT),
    "deit, two heads": Family(deit(DeiTForImageClassificationWithTeacher), (32, 32), DEIT),
    "dinov2 with registers": Family(
        dinov2_with_registers,
        (32, 32),
        tokens("dinov2_with_registers.encoder.layer", range(4), "16 x 4x4 + 5 tokens"),
    ),
    "swin": Family(
        swin,
        (64, 64),
        # what its first three stages return is already shrunk for the next
        maps(
            [f"swin.encoder.layers.{name}" for name in ("0.blocks.0", "1.blocks.0", "2.blocks.1", 3)], [8, 16, 32, 64]
        ),
    ),
    "convnext": Family(
        convnext(ConvNextConfig, ConvNextForImageClassification),
        (32, 32),
        maps(numbered("convnext.encoder.stages."), [8, 12, 16, 20]),
    ),
    "convnextv2": Family(
        convnext(ConvNextV2Config, ConvNextV2ForImageClassification),
        (32, 32),
        maps(numbered("convnextv2.encoder.stages."), [8, 12, 16, 20]),
    ),
    "resnet": Family(resnet(), (64, 64), maps(numbered("resnet.encoder.stages."), [4, 8, 12, 16])),
    "resnet of 2": Family(resnet(2), (64, 64), maps(numbered("resnet.encoder.stages.", range(2)), [4, 8], MAPS[:2])),
    "mobilenetv2": Family(
        mobilenetv2, (64, 64), maps(numbered("mobilenet_v2.layer.", (1, 4, 11, 15)), [8, 8, 24, 80])
    ),
    "efficientnet": Family(
        efficientnet, (64, 64), maps(numbered("efficientnet.encoder.blocks.", (1, 2, 4, 6)), [8, 16, 32, 80])
    ),
    "timm resnet": Family(
        timm_model("resnet10t", channels=(8, 12, 16, 24)),
        (64, 64),
        maps(numbered("timm_model.layer", range(1, 5)), [8, 12, 16, 24]),
    ),
    "timm regnet": Family(
        timm_model("regnetx_002"),
        (64, 64),
        maps(numbered("timm_model.s", range(1, 5)), [24, 56, 152, 368]),
    ),
    "timm mobilenetv4": Family(
        timm_model("mobilenetv4_conv_small_050"),
        (64, 96),
        # not blocks.4, which widens for the head
        maps(numbered("timm_model.blocks."), [16, 32, 48, 64], ["16x24", "8x12", "4x6", "2x3"]),
    ),
    "timm efficientformer": Family(
        timm_model("efficientformerv2_s0", img_size=64, embed_dims=(8, 12, 16, 24), depths=(1, 1, 2, 2)),
        (64, 64),
        maps(numbered("timm_model.stages."), [8, 12, 16, 24]),
    ),
    "timm fastvit": Family(
        timm_model("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64)),
        (64, 64),
        maps(numbered("timm_model.stages."), [8, 16, 32, 64]),
    ),
    "timm vit": Family(
        timm_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=8),
        (64, 64),
        tokens("timm_model.blocks", (1, 3, 5, 7), "24 x 4x4 + 1 tokens"),
    ),
    "timm swin": Family(
        # (B, 16, 16, 16) in its first stage: the shape does not say which side the channels are
        timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=16, depths=(1, 1, 1, 1)),
        (64, 64),
        maps(numbered("timm_model.layers."), [16, 32, 64, 128]),
    ),
}
# what ends in maps on a grid alone, of four stages
FOUR_MAPS = [
    name
    for name, made in FAMILIES.items()
    if len(made.stages) == 4 and not any("tokens" in shape for shape in made.stages.values())
]
TOKENS = [name for name, made in FAMILIES.items() if "tokens" in next(iter(made.stages.values()))]


def build(name, labels=None, seed=0):
    """A model of a family; `labels` are arguments of its configuration, three classes by default."""
    torch.manual_seed(seed)
    return FAMILIES[name].build({"num_labels": 3} if labels is None else labels)


@cache
def example(name):
    """A model in evaluation mode, a function that runs it on an example, and the example's size."""
    model, size = build(name).eval(), FAMILIES[name].size
    pixels = torch.randn(1, 3, *size)
    return model, lambda: model(pixel_values=pixels), size


def with_batch_statistics(model, pixels):
    """The model, whose batch norms know what these images do to them, as after a training."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum, usual = 1.0, norm.momentum
    with torch.no_grad():
        model.train()(pixel_values=pixels)
    for norm in norms:
        norm.momentum = usual
    return model.eval()
