"""Tiny models of every family that is tested, with random weights, made from their configurations."""

from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from subdistill_hf.models.heads import new_classifier

TRANSFORMER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
MAPS = ["16x16", "8x8", "4x4", "2x2"]


class Family(NamedTuple):
    """A class of transformers, its configuration, its input size, and the layers at which it splits naturally."""

    class_name: str
    configuration: dict[str, object]
    size: tuple[int, int]
    stages: dict[str, str]


def transformer(blocks, **configuration):
    return {"num_hidden_layers": blocks, "image_size": 32, "patch_size": 8, **TRANSFORMER} | configuration


def convnext(class_name, prefix):
    configuration = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "patch_size": 2}
    return Family(class_name, configuration, (32, 32), maps(numbered(f"{prefix}.encoder.stages."), [8, 12, 16, 20]))


def resnet(stages):
    configuration = {
        "embedding_size": 4,
        "hidden_sizes": [4, 8, 12, 16][:stages],
        "depths": [1, 1, 2, 1][:stages],
        "layer_type": "basic",
    }
    names = numbered("resnet.encoder.stages.", range(stages))
    return Family(
        "ResNetForImageClassification", configuration, (64, 64), maps(names, [4, 8, 12, 16][:stages], MAPS[:stages])
    )


def timm_family(architecture, stages, size=(64, 64), **model_args):
    configuration = {"architecture": architecture, "model_args": model_args}
    return Family("TimmWrapperForImageClassification", configuration, size, stages)


def maps(names, widths, grids=MAPS):
    return {name: f"{width} x {grid}" for name, width, grid in zip(names, widths, grids, strict=True)}


def tokens(prefix, blocks, shape):
    return {f"{prefix}.{block}": shape for block in blocks}


def numbered(prefix, numbers=(0, 1, 2, 3)):
    return [f"{prefix}{number}" for number in numbers]


DEIT = transformer(5), (32, 32), tokens("deit.layers", (1, 2, 3, 4), "16 x 4x4 + 2 tokens")
FAMILIES = {
    "vit": Family(
        "ViTForImageClassification",
        transformer(6),
        (32, 32),
        tokens("vit.layers", (1, 2, 4, 5), "16 x 4x4 + 1 tokens"),
    ),
    "vit, wide image": Family(
        "ViTForImageClassification",
        transformer(12, image_size=(16, 32)),
        (16, 32),
        tokens("vit.layers", (2, 5, 8, 11), "16 x 2x4 + 1 tokens"),
    ),
    "vit of 2": Family(
        "ViTForImageClassification",
        transformer(2),
        (32, 32),
        tokens("vit.layers", (0, 1), "16 x 4x4 + 1 tokens"),
    ),
    "deit": Family("DeiTForImageClassification", *DEIT),
    "deit, two heads": Family("DeiTForImageClassificationWithTeacher", *DEIT),
    "dinov2 with registers": Family(
        "Dinov2WithRegistersForImageClassification",
        {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        (32, 32),
        tokens("dinov2_with_registers.encoder.layer", range(4), "16 x 4x4 + 5 tokens"),
    ),
    "swin": Family(
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2], "window_size": 2, "image_size": 64},
        (64, 64),
        # what its first three stages return is already shrunk for the next
        maps(
            [f"swin.encoder.layers.{name}" for name in ("0.blocks.0", "1.blocks.0", "2.blocks.1", 3)], [8, 16, 32, 64]
        ),
    ),
    "convnext": convnext("ConvNextForImageClassification", "convnext"),
    "convnextv2": convnext("ConvNextV2ForImageClassification", "convnextv2"),
    "resnet": resnet(4),
    "resnet of 2": resnet(2),
    "mobilenetv2": Family(
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.25, "image_size": 64},
        (64, 64),
        maps(numbered("mobilenet_v2.layer.", (1, 4, 11, 15)), [8, 8, 24, 80]),
    ),
    "efficientnet": Family(
        "EfficientNetForImageClassification",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "image_size": 64,
            "hidden_dim": 320,
            # with its usual small random weights, a deep layer's activations would be too small for float32
            "initializer_range": 0.3,
        },
        (64, 64),
        maps(numbered("efficientnet.encoder.blocks.", (1, 2, 4, 6)), [8, 16, 32, 80]),
    ),
    # where the last norm of a residual branch is zero, as timm makes it, nothing of the branch gets a gradient
    "timm resnet": timm_family(
        "resnet10t",
        maps(numbered("timm_model.layer", range(1, 5)), [8, 12, 16, 24]),
        channels=(8, 12, 16, 24),
        zero_init_last=False,
    ),
    "timm regnet": timm_family(
        "regnetx_002", maps(numbered("timm_model.s", range(1, 5)), [24, 56, 152, 368]), zero_init_last=False
    ),
    "timm mobilenetv4": timm_family(
        "mobilenetv4_conv_small_050",
        # not blocks.4, which widens for the head
        maps(numbered("timm_model.blocks."), [16, 32, 48, 64], ["16x24", "8x12", "4x6", "2x3"]),
        (64, 96),
    ),
    "timm efficientformer": timm_family(
        "efficientformerv2_s0",
        maps(numbered("timm_model.stages."), [8, 12, 16, 24]),
        img_size=64,
        embed_dims=(8, 12, 16, 24),
        depths=(1, 1, 2, 2),
    ),
    "timm fastvit": timm_family(
        "fastvit_t8",
        maps(numbered("timm_model.stages."), [8, 16, 32, 64]),
        layers=(1, 1, 1, 1),
        embed_dims=(8, 16, 32, 64),
    ),
    "timm vit": timm_family(
        "vit_tiny_patch16_224",
        tokens("timm_model.blocks", (1, 3, 5, 7), "24 x 4x4 + 1 tokens"),
        img_size=64,
        embed_dim=24,
        depth=8,
    ),
    # (B, 16, 16, 16) in its first stage: the shape does not say which side the channels are
    "timm swin": timm_family(
        "swin_tiny_patch4_window7_224",
        maps(numbered("timm_model.layers."), [16, 32, 64, 128]),
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(1, 1, 1, 1),
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
    family, labels = FAMILIES[name], {"num_labels": 3} if labels is None else labels
    return new_classifier(family.class_name, **family.configuration, **labels)


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
