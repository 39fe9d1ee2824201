"""Write docs/layer_pairs.md: which layers are paired by default between common architectures.

    python scripts/layer_pairs.py

The architectures are made from their configurations and run on torch's meta device, which computes shapes alone: no
weights are downloaded or drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
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

from subdistill_hf.layers import LayerPair, pair_chains
from subdistill_hf.stages import LayerShape, block_chain, choose_stages

DOCUMENT = Path(__file__).parents[1] / "docs" / "layer_pairs.md"
SIZE = (224, 224)


def timm_model(architecture: str) -> Callable[[], nn.Module]:
    """A timm architecture as transformers loads it."""
    return lambda: TimmWrapperForImageClassification(TimmWrapperConfig(architecture=architecture))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "ViT-B/16": lambda: ViTForImageClassification(ViTConfig()),
    "DeiT-B/16, distilled": lambda: DeiTForImageClassificationWithTeacher(DeiTConfig()),
    "DINOv2-B/14, registers": lambda: Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(image_size=518, patch_size=14)
    ),
    "Swin-T": lambda: SwinForImageClassification(SwinConfig()),
    "ConvNeXt-T": lambda: ConvNextForImageClassification(ConvNextConfig()),
    "ConvNeXtV2-T": lambda: ConvNextV2ForImageClassification(ConvNextV2Config()),
    "ResNet-50": lambda: ResNetForImageClassification(ResNetConfig()),
    "MobileNetV2": lambda: MobileNetV2ForImageClassification(MobileNetV2Config()),
    "EfficientNet-B0": lambda: EfficientNetForImageClassification(
        EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280)
    ),
    "timm resnet18": timm_model("resnet18"),
    "timm regnety_002": timm_model("regnety_002"),
    "timm mobilenetv4_conv_small": timm_model("mobilenetv4_conv_small"),
    "timm efficientformer_l1": timm_model("efficientformer_l1"),
    "timm fastvit_t8": timm_model("fastvit_t8"),
    "timm vit_tiny_patch16_224": timm_model("vit_tiny_patch16_224"),
    "timm swin_tiny_patch4_window7_224": timm_model("swin_tiny_patch4_window7_224"),
}

INTRODUCTION = """\
# Layer pairs by default

What `--layers auto` pairs at 224 x 224 pixels, for every combination of these architectures; made by
`scripts/layer_pairs.py`. `subdistill distill` shows the pairs of your models before it trains, and
`--layers TEACHER_LAYER=STUDENT_LAYER ...` sets others. Names are without the model's first part (`timm_model.`,
`resnet.`), which they need on the command line.

- A model that shrinks its maps in stages offers the last block at each of its last four resolutions. A stage that
  ends by shrinking the map for the next one (Swin) stands for its last block before that; a last block that only
  widens for the head (MobileNet) is left out.
- A transformer that keeps its tokens offers four blocks at equal relative depths.
- The last is paired with the last, and so on towards the input; the side with fewer stages decides how many pairs
  there are.
- Class, distillation and register tokens are compared where both sides have as many of them. Elsewhere the patch
  tokens alone are compared, on their grid, and the teacher's last block is passed over: after it, in most
  transformers, only the class token reaches the logits, so that the patch tokens have no context. A last block can
  still be named with `--layers`, as for heads that average the patches.
- The larger of two grids is averaged down to the smaller. The subspace has as many dimensions as the student's layer
  has channels, at most the teacher's.
"""


def chain(make: Callable[[], nn.Module]) -> list[LayerShape]:
    """An architecture's blocks, found on the meta device."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisations that need values
        model = make().eval()
        pixels = torch.empty(1, 3, *SIZE)
    return block_chain(model, lambda: model(pixel_values=pixels), SIZE)


def short(name: str) -> str:
    """A layer's name without the model's first part."""
    return name.partition(".")[2]


def positions(pairs: list[LayerPair]) -> str:
    """Which positions are compared."""
    if not any(pair.teacher.prefix or pair.student.prefix for pair in pairs):
        return "all"
    return "patches" if pairs[-1].drops_prefix else "all tokens"


def document() -> str:
    """The whole page."""
    chains = {name: chain(make) for name, make in ARCHITECTURES.items()}
    return "\n".join([INTRODUCTION, *stage_lines(chains), "", *pair_lines(chains)]) + "\n"


def stage_lines(chains: dict[str, list[LayerShape]]) -> Iterator[str]:
    """What each architecture offers."""
    yield "## Stages\n"
    yield "| architecture | channels x grid | | | |"
    yield "|---|---|---|---|---|"
    for name, blocks in chains.items():
        cells = [f"`{short(shape.name)}` {shape}" for shape in choose_stages(blocks)]
        yield f"| {name} | {' | '.join(cells)} |"


def pair_lines(chains: dict[str, list[LayerShape]]) -> Iterator[str]:
    """A table for each teacher."""
    yield "## Pairs"
    for teacher, teacher_blocks in chains.items():
        yield f"\n### {teacher} teaches\n"
        yield "| student | teacher layer → student layer | | | | positions |"
        yield "|---|---|---|---|---|---|"
        for student, student_blocks in chains.items():
            pairs = pair_chains(teacher_blocks, student_blocks)
            cells = [f"{short(pair.teacher.name)} → {short(pair.student.name)}" for pair in pairs]
            cells += [""] * (4 - len(cells))
            yield f"| {student} | {' | '.join(cells)} | {positions(pairs)} |"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"wrote {DOCUMENT}")
