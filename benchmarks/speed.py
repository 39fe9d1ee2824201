"""What SubDistill costs: a step against a logit-KD step, the fit against one pass, memory against images.

    python benchmarks/speed.py                 # all measurements on the embedded pair
    python benchmarks/speed.py --pair vit-b    # ViT-B/16 teacher at 224 px (random weights), MobileNetV4-small student

Both sides of a ratio are timed in turn, pair by pair, in one process: a busy machine is busy for both. A ratio is the
median of the pairs' ratios, with its quartiles.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    logging,
)

from subdistill_hf.config import SubDistillConfig
from subdistill_hf.evaluation import processor_name
from subdistill_hf.models import freeze, load_teacher
from subdistill_hf.relevance import activations_and_contexts, subtask_margin
from subdistill_hf.rotations import Rotation
from subdistill_hf.stages import stage_outputs
from subdistill_hf.students import build_student
from subdistill_hf.subspaces import collect_moments
from subdistill_hf.trainer import SubDistillTrainer

CLASSES = 5


def glyphs_pair() -> tuple[nn.Module, nn.Module, int, int]:
    """The embedded convolutional teacher and the demo's student; image size and batch size."""
    teacher = load_teacher("glyphs-resnet")
    student = build_student("resnet:widths=16-24-32-48", [str(i) for i in range(CLASSES)], teacher.processor)
    return teacher.model, student.model, 64, 64


def vit_b_pair() -> tuple[nn.Module, nn.Module, int, int]:
    """ViT-B/16 at 224 px with random weights, and MobileNetV4-conv-small."""
    teacher = freeze(ViTForImageClassification(ViTConfig(num_labels=1000)))
    student = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="mobilenetv4_conv_small", num_labels=CLASSES)
    )
    return teacher, student, 224, 16


PAIRS = {"glyphs": glyphs_pair, "vit-b": vit_b_pair}


def images(count: int, size: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Batches of random images, made as they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, batch):
        shape = (min(batch, count - start), 3, size, size)
        yield {"pixel_values": torch.randn(shape, generator=generator)}


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Time two functions in turn; seconds of each (median) and the ratio second/first (median and quartiles)."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 2):
        for function, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            if index >= 2:  # the first rounds allocate
                kept.append(time.perf_counter() - start)
    low, ratio, high = statistics.quantiles([b / a for a, b in zip(*times, strict=True)], n=4)
    return {
        "first_s": statistics.median(times[0]),
        "second_s": statistics.median(times[1]),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "pairs": rounds,
    }


def step(pair: str, rounds: int) -> dict[str, Any]:
    """A SubDistill step against a logit-KD step: teacher, student, loss, backward pass, optimiser."""
    steps = []
    for method in ("kd", "subdistill"):
        teacher, student, size, batch = PAIRS[pair]()
        (examples,) = images(batch, size, batch)
        examples["labels"] = torch.arange(batch) % CLASSES
        with tempfile.TemporaryDirectory() as folder:
            trainer = SubDistillTrainer(
                student,
                SubDistillConfig(
                    output_dir=folder, method=method, use_cpu=not torch.cuda.is_available(), report_to="none"
                ),
                teacher=teacher,
                teacher_class_ids=list(range(CLASSES)),
                train_dataset=[{name: value[index] for name, value in examples.items()} for index in range(batch)],
            )
            module = trainer.prepare_distillation()
        examples = trainer._prepare_inputs(examples)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        module.train()
        steps.append(_stepper(trainer, module, optimizer, examples))
    return paired(steps[0], steps[1], rounds)


def _stepper(
    trainer: SubDistillTrainer, module: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]
) -> Callable[[], None]:
    def one_step() -> None:
        trainer.compute_loss(module, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return one_step


def fit(pair: str, rounds: int, count: int) -> dict[str, Any]:
    """The fit of four layers against one forward pass and one backward pass to the same activations."""
    teacher, _, size, batch = PAIRS[pair]()
    example = next(images(2, size, 2))["pixel_values"]
    layers = stage_outputs(teacher, lambda: teacher(pixel_values=example), (size, size))

    def logits(inputs: dict[str, Tensor]) -> Tensor:
        return teacher(**inputs).logits[:, :CLASSES]

    def passes() -> None:
        """Only the passes, written without this package."""
        outputs: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            tensor = output if isinstance(output, Tensor) else output[0]
            if not outputs:
                tensor = tensor.detach().requires_grad_()
            outputs.append(tensor)
            return tensor if isinstance(output, Tensor) else (tensor, *output[1:])

        handles = [teacher.get_submodule(name).register_forward_hook(hook) for name in layers]
        for inputs in images(count, size, batch):
            outputs.clear()
            torch.autograd.grad(subtask_margin(logits(inputs)).sum(), outputs)
        for handle in handles:
            handle.remove()

    def whole_fit() -> None:
        collect_moments(activations_and_contexts(logits, teacher, layers, images(count, size, batch)))

    return {"images": count, **paired(passes, whole_fit, rounds)}


def _peak_memory(pair: str, count: int, queue: Any) -> None:
    teacher, _, size, batch = PAIRS[pair]()
    example = next(images(2, size, 2))["pixel_values"]
    layers = stage_outputs(teacher, lambda: teacher(pixel_values=example), (size, size))
    collect_moments(
        activations_and_contexts(
            lambda inputs: teacher(**inputs).logits[:, :CLASSES], teacher, layers, images(count, size, batch)
        )
    )
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage would count the parent's peak too
    queue.put(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def memory(pair: str, counts: tuple[int, ...]) -> dict[str, Any]:
    """Peak resident memory (MiB) of a process that fits four layers, against the number of images."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for count in counts:
        queue = context.Queue()
        process = context.Process(target=_peak_memory, args=(pair, count, queue))
        process.start()
        peaks[str(count)] = round(queue.get(), 1)
        process.join()
    values = list(peaks.values())
    return {"peak_mib": peaks, "largest_over_smallest": max(values) / min(values)}


def rotation(rounds: int) -> dict[str, Any]:
    """Forward and backward pass of our map and of torch's, by width, in milliseconds on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    for width in (48, 128, 512, 768):
        results[str(width)] = {}
        for name in ("ours", "cayley", "matrix_exp", "householder"):
            own, layer = Rotation(width, width), nn.Linear(width, width, bias=False)
            if name != "ours":
                nn.utils.parametrizations.orthogonal(layer, orthogonal_map=name)
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                (own.matrix if name == "ours" else layer.weight).square().sum().backward()
                times.append(1e3 * (time.perf_counter() - start))
            results[str(width)][name] = statistics.median(times)
    torch.set_num_threads(threads)
    return results


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=tuple(PAIRS), default="glyphs")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--fit-images", type=int, default=512)
    parser.add_argument("--memory-images", type=int, nargs="*", default=[500, 5000])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    logging.set_verbosity_error()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}",
        "pair": options.pair,
    }
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "step: SubDistill over logit KD": lambda: step(options.pair, options.rounds),
        "fit: four layers over one forward and backward pass": lambda: fit(
            options.pair, max(5, options.rounds // 3), options.fit_images
        ),
        "memory of the fit": lambda: memory(options.pair, tuple(options.memory_images)),
        "rotation, forward and backward, ms": lambda: rotation(5),
    }
    for name, measure in measurements.items():
        results[name] = measure()
        print(name, json.dumps(results[name], indent=1), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"speed_{options.pair}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
