"""Write docs/layer_pairs.md: which layers are paired by default between common architectures.

    python scripts/layer_pairs.py

The architectures are made from their configurations and run on torch's meta device, which computes shapes alone: no
weights are downloaded or drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from subdistill_hf.core.layers import LayerShape, block_chain, choose_stages
from subdistill_hf.core.pairing import LayerPair, pair_chains
from subdistill_hf.models.heads import new_classifier

DOCUMENT = Path(__file__).parents[1] / "docs" / "layer_pairs.md"
SIZE = (224, 224)


TIMM = (
    "resnet18",
    "regnety_002",
    "mobilenetv4_conv_small",
    "efficientformer_l1",
    "fastvit_t8",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-B/16": ("ViTForImageClassification", {}),
    "DeiT-B/16, distilled": ("DeiTForImageClassificationWithTeacher", {}),
    "DINOv2-B/14, registers": (
        "Dinov2WithRegistersForImageClassification",
        {"image_size": 518, "patch_size": 14},
    ),
    "Swin-T": ("SwinForImageClassification", {}),
    "ConvNeXt-T": ("ConvNextForImageClassification", {}),
    "ConvNeXtV2-T": ("ConvNextV2ForImageClassification", {}),
    "ResNet-50": ("ResNetForImageClassification", {}),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {}),
    "EfficientNet-B0": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280},
    ),
} | {f"timm {name}": ("TimmWrapperForImageClassification", {"architecture": name}) for name in TIMM}
"""Name to class and configuration."""

INTRODUCTION = """\
# Layer pairs by default

What `--layers auto` pairs at 224 x 224 pixels, for every combination of these architectures; made by
`scripts/layer_pairs.py`. `subdistill distill` shows the pairs of your models before it trains, and
`--layers TEACHER_LAYER=STUDENT_LAYER ...` sets others. Names are without the model's first part (`timm_model.`,
`resnet.`), which they need on the command line.

- A model that shrinks its maps in stages offers the last block at each of its last four resolutions. A stage that
  ends by shrinking the map for the next one (Swin) stands for its last block before that; a last block that only
  widens for the head (MobileNet) is left out.
- A transformer that keeps its tokens offers four blocks at equal relative depths. The convolutions that make its
  tokens are no blocks.
- Hiera keeps its tokens in the order in which it pools them, and not row by row, until its last stage. So its last
  stage alone can be compared, and `--layers` with a layer of another stage is refused.
- The last is paired with the last, and so on towards the input; the side with fewer stages decides how many pairs
  there are.
- Class, distillation and register tokens are compared where both sides have as many of them. Elsewhere the patch
  tokens alone are compared, on their grid, and the teacher's last block is passed over: after it, in most
  transformers, only the class token reaches the logits, so that the patch tokens have no context. A last block can
  still be named with `--layers`, as for heads that average the patches.
- The larger of two grids is averaged down to the smaller. The subspace has as many dimensions as the student's layer
  has channels, at most the teacher's.
"""


def chain(name: str) -> list[LayerShape]:
    """An architecture's blocks, found on the meta device."""
    class_name, configuration = ARCHITECTURES[name]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisations that need values
        model = new_classifier(class_name, **configuration).eval()
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
    chains = {name: chain(name) for name in ARCHITECTURES}
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
