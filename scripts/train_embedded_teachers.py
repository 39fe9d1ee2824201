"""Train the embedded glyphs-100 teachers and write them, with their cards, into the package.

python scripts/train_embedded_teachers.py --architecture resnet
python scripts/train_embedded_teachers.py --architecture vit
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from subdistill_hf.core.moments import collect_moments
from subdistill_hf.core.pairing import pair_layers
from subdistill_hf.core.relevance import activations_and_contexts
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.data.embedded.glyph_dataset import load_glyphs
from subdistill_hf.data.embedded.glyphs import GENERATOR_VERSION, IMAGE_SIZE
from subdistill_hf.losses import SubspaceAlignment, logit_distillation
from subdistill_hf.models.heads import labels_of, new_classifier
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.teacher.targets import ComputedTargets
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.module import StudentWithAlignments

PACKAGE_TEACHERS = Path(__file__).resolve().parents[1] / "src" / "subdistill_hf" / "models" / "embedded_teachers"
MODEL_FILE_LIMIT = 4 * 1024 * 1024
TEMPERATURE = 2.0
LAYER_WEIGHT = 3.0
FIT_IMAGES = 5000


class Recipe(NamedTuple):
    """What differs between the two architectures."""

    input_size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    description: str


RECIPES = {
    "resnet": Recipe(64, 16, 4e-3, 0.05, "A small ResNet (basic blocks, depths 2-2-2-2)"),
    "vit": Recipe(32, 10, 1.5e-3, 0.05, "A small vision transformer (patch 4, 6 layers, width 96)"),
}


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(RECIPES), required=True)
    parser.add_argument("--epochs", type=int, help="passes over the training split (default: the recipe's)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, help="highest rate (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the batches")
    parser.add_argument(
        "--distill",
        action="store_true",
        help="learn from the logits and the layers of the saved convolutional teacher as well (SubDistill)",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/embedded_teachers"), help="checkpoints")
    parser.add_argument("--output-dir", type=Path, default=PACKAGE_TEACHERS, help="parent of the teachers' folders")
    return parser


def build_model(architecture: str) -> nn.Module:
    """Make the untrained model."""
    labels = labels_of(CLASS_NAMES)
    if architecture == "resnet":
        return new_classifier(
            "ResNetForImageClassification",
            embedding_size=40,
            hidden_sizes=[40, 80, 128, 176],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            downsample_in_first_stage=False,
            **labels,
        )
    return new_classifier(
        "ViTForImageClassification",
        image_size=IMAGE_SIZE,
        patch_size=4,
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=384,
        qkv_bias=True,
        **labels,
    )


def build_processor(input_size: int) -> Any:
    """Make the image processor that fits `to_input`."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        do_resize=True,
        size={"height": input_size, "width": input_size},
        resample=2,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def to_arrays(split: Any) -> tuple[Tensor, Tensor]:
    """Decode a split to images `(n, 3, 32, 32)` uint8 and labels `(n,)`."""
    images = np.stack([np.asarray(image) for image in split["img"]])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(split["fine_label"][:])


def to_input(images: Tensor, input_size: int) -> Tensor:
    """Resize and normalise images `(n, 3, 32, 32)` of 0 to 255 as the image processor does."""
    values = images.float() / 127.5 - 1
    if input_size != values.shape[-1]:
        values = F.interpolate(values, size=input_size, mode="bilinear", antialias=True)
    return values.contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop after padding by 4, permute the colour channels and invert half the images; nothing is flipped."""
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(0, 9, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    cropped = padded[torch.arange(count)[:, None, None], rows, columns]
    order = torch.rand(count, 3, generator=generator).argsort(1)
    permuted = cropped.gather(3, order[:, None, None, :].expand_as(cropped)).permute(0, 3, 1, 2)
    inverted = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(inverted, 255 - permuted, permuted)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, input_size: int) -> float:
    """Measure the accuracy over all 100 classes, quickly: in bfloat16 and without the image processor."""
    model.eval()
    hits = 0
    for batch, targets in zip(images.split(500), labels.split(500), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            hits += int((model(pixel_values=to_input(batch, input_size)).logits.argmax(1) == targets).sum())
    return hits / len(labels)


def align(model: nn.Module, teacher: Teacher, images: Tensor, size: int) -> StudentWithAlignments:
    """Pair the model's layers with the convolutional teacher's, in the subspaces that all 100 classes need."""
    teacher_size = RECIPES["resnet"].input_size
    few = images[:2]
    with torch.no_grad():
        pairs = pair_layers(
            teacher.model,
            model,
            ["auto"],
            lambda: teacher.logits(to_input(few, teacher_size)),
            lambda: model(pixel_values=to_input(few, size)).logits,
            (teacher_size, teacher_size),
            (size, size),
        )
    names = [pair.teacher.name for pair in pairs]
    batches = ({"pixel_values": to_input(batch, teacher_size)} for batch in images.split(250))
    stream = activations_and_contexts(
        lambda batch: teacher.logits(batch["pixel_values"]), teacher.model, names, batches
    )
    moments = collect_moments(stream)
    alignments = [
        SubspaceAlignment(
            Subspace.fit(moments[pair.teacher.name], pair.dimensions), pair.student.width, centring="batch_norm"
        )
        for pair in pairs
    ]
    return StudentWithAlignments(model, pairs, alignments)


def loss_of(learner: nn.Module, teacher: ComputedTargets | None, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """Compute cross entropy, averaged with the losses of SubDistill where there is a teacher."""
    with torch.autocast("cpu", torch.bfloat16):
        if teacher is None:
            return F.cross_entropy(learner(pixel_values=to_input(images, size)).logits.float(), labels)
        assert isinstance(learner, StudentWithAlignments)
        pixels = to_input(images, RECIPES["resnet"].input_size)
        teacher_logits, targets = teacher.of_pixels(pixels)
        outputs = learner(targets=targets, pixel_values=to_input(images, size))
    soft = logit_distillation(outputs["logits"], teacher_logits, TEMPERATURE)
    layers = outputs["layer_losses"].sum()
    return 0.5 * F.cross_entropy(outputs["logits"].float(), labels) + 0.5 * soft + LAYER_WEIGHT * layers


def train(arguments: argparse.Namespace, recipe: Recipe, dataset: Any) -> tuple[nn.Module, float]:
    """Train the model, from its newest checkpoint where there is one.

    Returns:
        The trained model and the seconds that all its epochs took.
    """
    torch.manual_seed(arguments.seed)
    model = build_model(arguments.architecture).to(memory_format=torch.channels_last)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    images, labels = to_arrays(dataset["train"])
    test_images, test_labels = to_arrays(dataset["test"])
    steps = len(images) // arguments.batch_size
    learner: nn.Module = model
    teacher_targets = None
    if arguments.distill:
        loaded = load_teacher(str(arguments.output_dir / "glyphs-resnet")).model
        teacher = Teacher(loaded.to(memory_format=torch.channels_last), precision=torch.bfloat16)
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed))[:FIT_IMAGES]
        learner = align(model, teacher, images[chosen], recipe.input_size)
        teacher_targets = ComputedTargets(teacher, learner.pairs, list(learner.alignments))

    # The rotations are not decayed: that would pull them to where they started.
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    kept = {id(weight) for weight in decayed}
    others = [weight for weight in learner.parameters() if id(weight) not in kept]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = arguments.learning_rate
    optimizer = torch.optim.AdamW(groups, lr=rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, arguments.epochs * steps, pct_start=0.15)

    checkpoint = arguments.work_dir / f"{arguments.architecture}.pt"
    done, seconds = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["plan"] != plan_of(arguments):
            raise SystemExit(f"{checkpoint} is of another run: expected {plan_of(arguments)}, found {state['plan']}")
        learner.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        done, seconds = state["epoch"], state["seconds"]
        print(f"resumed after epoch {done}")
    for epoch in range(done, arguments.epochs):
        start = time.monotonic()
        learner.train()
        generator = torch.Generator().manual_seed(1000 * arguments.seed + epoch)
        order = torch.randperm(len(images), generator=generator)[: steps * arguments.batch_size]
        losses = []
        batches = order.split(arguments.batch_size)
        for rows in tqdm(batches, desc=f"epoch {epoch + 1}/{arguments.epochs}", mininterval=20):
            loss = loss_of(learner, teacher_targets, augment(images[rows], generator), labels[rows], recipe.input_size)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        seconds += time.monotonic() - start
        save_checkpoint(checkpoint, arguments, learner, optimizer, scheduler, epoch + 1, seconds)
        score = accuracy(model, test_images, test_labels, recipe.input_size)
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, test accuracy {score:.4f}, {seconds:.0f} s",
            flush=True,
        )
    return model.eval(), seconds


def plan_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name the arguments that a resumed run must share with its checkpoint."""
    names = ("architecture", "epochs", "batch_size", "learning_rate", "seed", "distill")
    losses = {"temperature": TEMPERATURE, "layer_weight": LAYER_WEIGHT, "fit_images": FIT_IMAGES}
    return {"data": GENERATOR_VERSION} | losses | {name: getattr(arguments, name) for name in names}


def save_checkpoint(
    path: Path,
    arguments: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    seconds: float,
) -> None:
    """Write the checkpoint in one step, so that a killed run leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "plan": plan_of(arguments),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": epoch,
        "seconds": seconds,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def save(model: nn.Module, recipe: Recipe, folder: Path) -> None:
    """Write weights in float16, a configuration that loads them as float32, and the image processor."""
    model = model.to(memory_format=torch.contiguous_format).half()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    build_processor(recipe.input_size).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    size = (folder / "model.safetensors").stat().st_size
    if size >= MODEL_FILE_LIMIT:
        raise SystemExit(f"expected model.safetensors below {MODEL_FILE_LIMIT} bytes, found {size}")


@torch.no_grad()
def measure(folder: Path, test: Any) -> Tensor:
    """Reload a saved teacher and compute its test logits `(n, 100)` with its own image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    outputs = []
    for start in tqdm(range(0, len(test), 500), desc="measure", mininterval=20):
        batch = processor(test[start : start + 500]["img"], return_tensors="pt")
        outputs.append(model(pixel_values=batch["pixel_values"]).logits)
    return torch.cat(outputs)


def table_of(logits: Tensor, labels: Tensor) -> tuple[float, float, list[tuple[str, float, float]]]:
    """Compute accuracies from test logits `(n, 100)` and labels `(n,)`.

    Returns:
        The accuracy over 100 classes, the mean accuracy among the five classes of a superclass, and both
        for each superclass.
    """
    rows = []
    for superclass_id, name in enumerate(SUPERCLASS_NAMES):
        members = labels // 5 == superclass_id
        own, targets = logits[members], labels[members]
        first = 5 * superclass_id
        whole = (own.argmax(1) == targets).double().mean().item()
        among = (own[:, first : first + 5].argmax(1) + first == targets).double().mean().item()
        rows.append((name, whole, among))
    overall = (logits.argmax(1) == labels).double().mean().item()
    return overall, float(np.mean([among for _, _, among in rows])), rows


def card_of(
    arguments: argparse.Namespace,
    recipe: Recipe,
    seconds: float,
    parameters: int,
    logits: Tensor,
    labels: Tensor,
) -> str:
    """Write the model card; every figure in it comes from the arguments."""
    overall, among, rows = table_of(logits, labels)
    name = f"glyphs-{arguments.architecture}"
    command = f"python scripts/train_embedded_teachers.py --architecture {arguments.architecture}"
    command += f" --epochs {arguments.epochs} --batch-size {arguments.batch_size}"
    command += f" --learning-rate {arguments.learning_rate} --seed {arguments.seed}"
    how = "with cross entropy"
    if arguments.distill:
        command += " --distill"
        how = (
            f"with the mean of cross entropy and the soft-label loss (temperature {TEMPERATURE:g}) against "
            f"`glyphs-resnet`, the embedded convolutional teacher, and {LAYER_WEIGHT:g} times SubDistill's losses of "
            f"four layers (subspaces of all 100 classes, fitted on {FIT_IMAGES:,} images)"
        )
    size = f"{recipe.input_size}x{recipe.input_size}"
    table = "\n".join(f"| {row} | {whole:.4f} | {inside:.4f} |" for row, whole, inside in rows)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
tags:
- image-classification
- knowledge-distillation
- subdistill-hf
- glyphs-100
metrics:
- accuracy
model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      name: glyphs-100
      type: glyphs-100
      split: test
    metrics:
    - type: accuracy
      value: {overall:.4f}
---

# {name}

{recipe.description}, {parameters:,} parameters, that tells the 100 classes of
glyphs-100 apart. It is an embedded teacher of subdistill-hf: a real, trained classifier for trying the whole
path offline.

Weights are stored in float16 and load in float32. The image processor brings images to {size}, rescales
them to 0 to 1 and normalises with mean and standard deviation 0.5.

## How it was made

`{command}`

{arguments.epochs} epochs over the training split of glyphs-100 (generator version {GENERATOR_VERSION},
seed 0, 50,000 images of 32x32, rendered by `subdistill_hf.data.embedded.glyphs`) in {seconds:.0f} seconds on
{arguments.threads} CPU threads, {how}; AdamW with one cycle, bfloat16 arithmetic; random crops after padding
by 4, random order and inversion of the colour channels, no flips. No other data and no pretrained weights
were used. The test split chose no weights, they are those after the last epoch; but the difficulty of
the images was set after a look at the test accuracy of an earlier, discarded teacher.

## Accuracy

Measured with these saved weights on the test split (10,000 images): **{overall:.4f}** over all 100 classes,
and {among:.4f} on average when only the five classes of the image's superclass can be answered.

| superclass | among 100 classes | among its 5 classes |
|---|---|---|
{table}

## Limits

The images are synthetic: symbols of the DejaVu fonts on noisy, cluttered backgrounds. Expect nothing of it
on photographs, scans or other fonts.
"""


def main() -> None:
    """Train, save, measure the saved teacher and write its card."""
    arguments = make_parser().parse_args()
    recipe = RECIPES[arguments.architecture]
    arguments.epochs = arguments.epochs or recipe.epochs
    arguments.learning_rate = arguments.learning_rate or recipe.learning_rate
    torch.set_num_threads(arguments.threads)
    dataset = load_glyphs(num_proc=arguments.threads)
    model, seconds = train(arguments, recipe, dataset)
    folder = arguments.output_dir / f"glyphs-{arguments.architecture}"
    save(model, recipe, folder)
    logits = measure(folder, dataset["test"])
    labels = torch.tensor(dataset["test"]["fine_label"][:])
    parameters = sum(weight.numel() for weight in model.parameters())
    card = card_of(arguments, recipe, seconds, parameters, logits, labels)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"saved {folder.name}: test accuracy {table_of(logits, labels)[0]:.4f}")


if __name__ == "__main__":
    main()
