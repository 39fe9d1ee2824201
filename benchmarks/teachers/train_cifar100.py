"""Train a teacher of CIFAR-100's 100 classes on a CPU, and write it as a folder that `--teacher` takes.

    python benchmarks/teachers/train_cifar100.py --output_dir cifar100-resnet --work_dir runs/cifar100-resnet
    python benchmarks/teachers/train_cifar100.py --widths 64-128-256-512 --epochs 100 ...   # the paper's ResNet-18

A ResNet of basic blocks whose images are enlarged to 128 pixels: the ResNet of transformers shrinks images four times
before its first stage, so its stages have maps of 32, 16, 8 and 4 positions a side, as behind the usual stem for
CIFAR, a 3x3 convolution without stride and pooling. The images are decoded once. A run that ends early (SIGTERM,
Ctrl-C, power) continues from its newest checkpoint when the same command is given again.

The test images choose nothing: the number of epochs is fixed beforehand, and the weights are those of the last step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from half_precision import save_in_half
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from subdistill_hf.models.heads import labels_of, new_classifier

MEAN, DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Of the training images' channels, from 0 to 1."""
IMAGE, LABEL, SUPERCLASS = "img", "fine_label", "coarse_label"
HOME = "https://huggingface.co/datasets/uoft-cs/cifar100"


@dataclass(frozen=True)
class Plan:
    """What determines a run; a checkpoint belongs to one.

    Attributes:
        widths: channels of the stages.
        depth: basic blocks of a stage.
        image: side in pixels to which the images are enlarged.
        epochs: passes over the training images.
        batch: images of a step.
        rate: highest learning rate of the cycle.
        decay: weight decay, of matrices and kernels alone.
        cutout: side of the square of pixels that is blanked in each image.
        seed: of weights, order and augmentation.
    """

    widths: tuple[int, ...]
    depth: int
    image: int
    epochs: int
    batch: int
    rate: float
    decay: float
    cutout: int
    seed: int


@dataclass(frozen=True)
class Images:
    """The images of one split, decoded.

    Attributes:
        pixels: `(n, 3, 32, 32)`, uint8.
        labels: `(n,)`.
    """

    pixels: Tensor
    labels: Tensor


class StoppedError(Exception):
    """The run received a signal to end."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="uoft-cs/cifar100", help="id on the Hub, or a folder of parquet files")
    parser.add_argument("--output_dir", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--work_dir", type=Path, required=True, help="the checkpoint and the record of the epochs")
    parser.add_argument("--widths", default="32-64-128-256", help="channels of the stages")
    parser.add_argument("--depth", type=int, default=2, help="basic blocks of a stage")
    parser.add_argument("--image", type=int, default=128, help="side in pixels to which the images are enlarged")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=0.2)
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--cutout", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, help="stop there, as a signal would: for trying the script")
    return parser


def decode(split: Any) -> Images:
    """Decode all images of a split."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in split[IMAGE]])
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(split[LABEL][:]))


def normalised(pixels: Tensor, size: int) -> Tensor:
    """Images `(n, 3, h, w)` of 0 to 255, enlarged and normalised as the image processor does it."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    values = (pixels.float() / 255 - mean) / deviation
    values = F.interpolate(values.contiguous(memory_format=torch.channels_last), size=size, mode="bilinear")
    return values.contiguous(memory_format=torch.channels_last)


def augmented(pixels: Tensor, cutout: int, generator: torch.Generator) -> Tensor:
    """Crop after padding by 4, mirror half of the images, and set a square of each to the mean colour.

    Args:
        pixels: `(n, 3, h, w)`, uint8.
        cutout: side of the square; its centre is anywhere, so a part may lie outside.
        generator: of the chances.
    """
    count, _, height, width = pixels.shape
    padded = F.pad(pixels.float(), (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(0, 9, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, -1)
    columns = left[:, None] + torch.where(mirrored[:, None], columns.flip(1), columns)
    images = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, 3)
    row = torch.randint(0, height, (count, 1), generator=generator)
    column = torch.randint(0, width, (count, 1), generator=generator)
    first = cutout // 2
    in_rows = (torch.arange(height) >= row - first) & (torch.arange(height) < row - first + cutout)
    in_columns = (torch.arange(width) >= column - first) & (torch.arange(width) < column - first + cutout)
    blank = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
    return torch.where(blank, 255 * torch.tensor(MEAN), images).permute(0, 3, 1, 2)


def one_cycle(step: int, steps: int, warm_up: float = 0.2) -> float:
    """The factor on the rate: up in a line, then down to 0 as a cosine."""
    progress = step / steps
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


class Run:
    """One training, which can be left at any step and continued.

    Args:
        plan: determines it.
        names: of the classes.
        folder: of the checkpoint.
    """

    def __init__(self, plan: Plan, names: list[str], folder: Path) -> None:
        self.plan, self.folder = plan, folder
        torch.manual_seed(plan.seed)
        self.model = new_classifier(
            "ResNetForImageClassification",
            embedding_size=plan.widths[0],
            hidden_sizes=list(plan.widths),
            depths=[plan.depth] * len(plan.widths),
            layer_type="basic",
            downsample_in_first_stage=False,
            **labels_of(names),
        ).to(memory_format=torch.channels_last)
        decayed = [weight for weight in self.model.parameters() if weight.ndim > 1]
        others = [weight for weight in self.model.parameters() if weight.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
        self.step, self.seconds = 0, 0.0
        self.record: list[dict[str, float]] = []

    def train_step(self, images: Images, order: Tensor, steps: int) -> float:
        """Make one step; its images and chances depend on the plan and the step alone. Returns the loss."""
        self.model.train()
        generator = torch.Generator().manual_seed(1_000_003 * self.plan.seed + self.step)
        first = self.step % (len(images.labels) // self.plan.batch) * self.plan.batch
        rows = order[first : first + self.plan.batch]
        pixels = normalised(augmented(images.pixels[rows], self.plan.cutout, generator), self.plan.image)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(pixel_values=pixels).logits
        loss = F.cross_entropy(logits.float(), images.labels[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * one_cycle(self.step, steps)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def accuracy(self, images: Images) -> float:
        """The share of images whose class has the largest logit, in bfloat16."""
        self.model.eval()
        hits = 0
        for pixels, labels in zip(images.pixels.split(250), images.labels.split(250), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                hits += int(
                    (self.model(pixel_values=normalised(pixels, self.plan.image)).logits.argmax(1) == labels).sum()
                )
        return hits / len(images.labels)

    def save(self) -> None:
        """Write the checkpoint in one step, so that a killed run leaves the one before."""
        tensors = {f"model.{name}": value.contiguous() for name, value in self.model.state_dict().items()}
        for name, weight in self.model.named_parameters():
            if "momentum_buffer" in self.optimizer.state.get(weight, {}):
                tensors[f"momentum.{name}"] = self.optimizer.state[weight]["momentum_buffer"].contiguous()
        state = {"plan": asdict(self.plan), "step": self.step, "seconds": self.seconds, "record": self.record}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "checkpoint.part"
        save_file(tensors, part, metadata={"state": json.dumps(state)})
        part.replace(self.folder / "checkpoint.safetensors")

    def restore(self) -> None:
        """Continue from the checkpoint, where there is one.

        Raises:
            SystemExit: if it is of another plan.
        """
        path = self.folder / "checkpoint.safetensors"
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if (planned := json.loads(json.dumps(asdict(self.plan)))) != state["plan"]:
            raise SystemExit(f"{path} is of another run: expected {planned}, found {state['plan']}")
        prefix = "model."
        self.model.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        for name, weight in self.model.named_parameters():
            if f"momentum.{name}" in tensors:
                layout = tensors[f"momentum.{name}"]
                if weight.ndim == 4:
                    layout = layout.contiguous(memory_format=torch.channels_last)
                self.optimizer.state[weight]["momentum_buffer"] = layout
        self.step, self.seconds, self.record = state["step"], state["seconds"], state["record"]
        print(f"continues after step {self.step}", flush=True)


def train(run: Run, training: Images, test: Images, max_steps: int | None) -> None:
    """Train to the last step, with a checkpoint after each epoch and at a signal to end.

    Raises:
        StoppedError: when it received a signal to end, after the checkpoint is written.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: signals.append(signum))
    per_epoch = len(training.labels) // run.plan.batch
    steps = run.plan.epochs * per_epoch
    while run.step < steps:
        epoch = run.step // per_epoch
        generator = torch.Generator().manual_seed(1_000_003 * run.plan.seed + epoch)
        order = torch.randperm(len(training.labels), generator=generator)
        losses, first = [], run.step
        start, work = time.monotonic(), time.process_time()
        while run.step < (epoch + 1) * per_epoch and not signals:
            losses.append(run.train_step(training, order, steps))
            if run.step == max_steps:
                signals.append(0)
        run.seconds += time.process_time() - work
        speed = (run.step - first) * run.plan.batch / (time.monotonic() - start)
        if run.step == (epoch + 1) * per_epoch:
            score = run.accuracy(test)
            run.record.append({"epoch": epoch + 1, "loss": float(np.mean(losses)), "test_accuracy": score})
            print(
                f"epoch {epoch + 1}/{run.plan.epochs}: loss {np.mean(losses):.3f}, test accuracy {100 * score:.2f} %, "
                f"{speed:.0f} images/s, {run.seconds / 3600:.2f} CPU hours",
                flush=True,
            )
        run.save()
        if signals and run.step < steps:
            print(
                f"left after step {run.step} of {steps}, {speed:.0f} images/s; the same command continues", flush=True
            )
            raise StoppedError


def save_teacher(run: Run, folder: Path) -> None:
    """Write the teacher in half precision, and its image processor."""
    save_in_half(run.model, folder)
    size = {"height": run.plan.image, "width": run.plan.image}
    ViTImageProcessor(size=size, resample=2, image_mean=list(MEAN), image_std=list(DEVIATION)).save_pretrained(folder)


@torch.no_grad()
def test_logits(folder: Path, test: Any) -> Tensor:
    """Load the saved teacher and compute the logits `(n, 100)` of the test images with its own image processor."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    outputs = []
    for start in range(0, len(test), 250):
        images = [image.convert("RGB") for image in test[start : start + 250][IMAGE]]
        outputs.append(model(**processor(images, return_tensors="pt")).logits)
    return torch.cat(outputs)


def among_its_superclass(logits: Tensor, labels: Tensor, superclass_of: Tensor) -> Tensor:
    """For each image, whether its class has the largest logit among those of its superclass."""
    others = superclass_of[None, :] != superclass_of[labels][:, None]
    return logits.masked_fill(others, -torch.inf).argmax(1) == labels


def processor_of_this_machine() -> str:
    """The name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def card_of(run: Run, logits: Tensor, test: Any) -> str:
    """The model card; every figure in it comes from the run and from the logits."""
    plan, labels, parents = run.plan, torch.tensor(test[LABEL][:]), torch.tensor(test[SUPERCLASS][:])
    superclass_of = torch.zeros(logits.shape[1], dtype=torch.long)
    superclass_of[labels] = parents
    hits, among = logits.argmax(1) == labels, among_its_superclass(logits, labels, superclass_of)
    accuracy, inside = hits.double().mean().item(), among.double().mean().item()
    rows = []
    for index, name in enumerate(test.features[SUPERCLASS].names):
        own = parents == index
        rows.append(f"| {name} | {100 * hits[own].double().mean():.1f} | {100 * among[own].double().mean():.1f} |")
    table = "\n".join(rows)
    widths = "-".join(str(width) for width in plan.widths)
    parameters = sum(weight.numel() for weight in run.model.parameters())
    command = (
        f"python benchmarks/teachers/train_cifar100.py --widths {widths} --depth {plan.depth} --image {plan.image} "
        f"--epochs {plan.epochs} --batch_size {plan.batch} --learning_rate {plan.rate} --weight_decay {plan.decay} "
        f"--cutout {plan.cutout} --seed {plan.seed}"
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
datasets:
- uoft-cs/cifar100
tags:
- image-classification
- knowledge-distillation
- subdistill-hf
metrics:
- accuracy
model-index:
- name: cifar100-resnet
  results:
  - task:
      type: image-classification
    dataset:
      name: CIFAR-100
      type: uoft-cs/cifar100
      split: test
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---

# cifar100-resnet

A ResNet of basic blocks (widths {widths}, {plan.depth} blocks a stage, {parameters:,} parameters) that tells the 100
classes of CIFAR-100 apart. It is a teacher for the benchmarks of subdistill-hf.

Weights are stored in float16 and load in float32. The image processor enlarges images to {plan.image} pixels
(bilinear) and normalises with the mean and the standard deviation of CIFAR-100's training images. At that size the
stages have maps of 32, 16, 8 and 4 positions a side, as behind a stem for CIFAR, a 3x3 convolution without stride.

## How it was made

`{command}`

{plan.epochs} epochs over the 50,000 training images of [CIFAR-100]({HOME}) (Krizhevsky, *Learning Multiple Layers of
Features from Tiny Images*, 2009), from random weights; cross entropy with the labels, which are not smoothed (smoothed
labels make worse teachers: Müller, Kornblith and Hinton, *When Does Label Smoothing Help?*, 2019); SGD with Nesterov
momentum and one cycle of the learning rate; bfloat16 arithmetic; random crops after padding by 4, mirrored images,
a blank square of {plan.cutout} pixels. It took {run.seconds / 3600:.1f} hours of one core's time
({processor_of_this_machine()}). Finished on {datetime.date.today().isoformat()} with torch
{torch.__version__.partition("+")[0]}.

The test images chose nothing: the weights are those of the last step.

## Accuracy

Measured with these saved weights on the 10,000 test images: **{100 * accuracy:.2f} %** over all 100 classes, and
{100 * inside:.2f} % when only the five classes of the image's superclass can be answered.

| superclass | among 100 classes | among its 5 classes |
|---|---|---|
{table}

## Limits

Photographs of 32 x 32 pixels, some of them mislabelled. Expect nothing of it on larger photographs or other classes.
"""


def main() -> None:
    """Train, save, measure the saved teacher and write its card."""
    options = make_parser().parse_args()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    plan = Plan(
        widths=tuple(int(width) for width in options.widths.split("-")),
        depth=options.depth,
        image=options.image,
        epochs=options.epochs,
        batch=options.batch_size,
        rate=options.learning_rate,
        decay=options.weight_decay,
        cutout=options.cutout,
        seed=options.seed,
    )
    dataset = load_dataset(options.data)
    run = Run(plan, dataset["train"].features[LABEL].names, options.work_dir)
    run.restore()
    print(f"{sum(weight.numel() for weight in run.model.parameters()):,} parameters", flush=True)
    try:
        train(run, decode(dataset["train"]), decode(dataset["test"]), options.max_steps)
    except StoppedError:
        raise SystemExit(3) from None
    save_teacher(run, options.output_dir)
    logits = test_logits(options.output_dir, dataset["test"])
    (options.output_dir / "README.md").write_text(card_of(run, logits, dataset["test"]), encoding="utf-8")
    accuracy = (logits.argmax(1) == torch.tensor(dataset["test"][LABEL][:])).double().mean().item()
    print(f"saved {options.output_dir.name}: test accuracy {100 * accuracy:.2f} %", flush=True)


if __name__ == "__main__":
    main()
