"""What SubDistill costs: steps and their phases, the fit, and how both grow.

    python benchmarks/speed.py                 # all measurements on the embedded pair
    python benchmarks/speed.py --pair cifar    # the paper's ResNet-18 teacher (random weights) and narrowest student
    python benchmarks/speed.py --pair vit-b    # ViT-B/16 teacher at 224 px (random weights), MobileNetV4-small student
    python benchmarks/speed.py --only step --trace trace.json    # a trace of five steps, for chrome://tracing
    python benchmarks/speed.py --only threads --busy 2    # torch's threads and ours, beside two other busy processes
    python benchmarks/speed.py --only pixels       # photographs, with the pixels of their views kept and made anew
    python benchmarks/speed.py --pair vit-b --batch-size 64 --bf16    # as one would train on a GPU

All sides of a ratio are timed in turn, round by round, in one process: a busy machine is busy for all. A ratio is the
median of the rounds' ratios, with its quartiles. Where tensors come to lie in memory differs from process to process,
and steps with it, so steps are timed in several processes, and the rounds of all are taken together. On an accelerator
a round is ten steps that are waited for once, as a training waits for none.
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from timed_training import timed_training
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTImageProcessor, logging, set_seed

from subdistill_hf.acceleration.freed_memory import keep_freed_memory
from subdistill_hf.config.options import DataOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.bases import leading_eigenvectors
from subdistill_hf.core.distributed import close_process_group
from subdistill_hf.core.layers import stage_outputs
from subdistill_hf.core.moments import collect_moments
from subdistill_hf.core.relevance import activations_and_contexts, subtask_margin
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.losses.rotations import Rotation
from subdistill_hf.models.heads import new_classifier
from subdistill_hf.models.loading import freeze, load_teacher
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline.auto import resolve_threads
from subdistill_hf.pipeline.evaluation import processor_name
from subdistill_hf.training import loaders
from subdistill_hf.training.trainer import SubDistillTrainer

CLASSES = 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS_OF_A_ROUND = 10 if DEVICE.type == "cuda" else 1
SPAWN = multiprocessing.get_context("spawn")
Pair = tuple[Any, Any, int, int]


def glyphs_pair() -> Pair:
    """The embedded convolutional teacher and the demo's student; image size and batch size."""
    teacher = load_teacher("glyphs-resnet")
    student = build_student("resnet:widths=16-24-32-48", [str(i) for i in range(CLASSES)], teacher.processor)
    return teacher.model, student.model, 64, 64


def cifar_pair() -> Pair:
    """The pair of `configs/cifar100.yaml`: a ResNet-18 with the paper's map sizes, random weights, and its student."""
    processor = ViTImageProcessor(size={"height": 128, "width": 128})
    names = [str(i) for i in range(100)]
    teacher = build_student("resnet:widths=64-128-256-512,depth=2", names, processor)
    student = build_student("resnet:widths=32-24-16-8", names[:CLASSES], processor)
    return freeze(teacher.model), student.model, 128, 64


def vit_b_pair() -> Pair:
    """ViT-B/16 at 224 px with random weights, and MobileNetV4-conv-small."""
    teacher = freeze(new_classifier("ViTForImageClassification", num_labels=1000))
    student = new_classifier(
        "TimmWrapperForImageClassification", architecture="mobilenetv4_conv_small", num_labels=CLASSES
    )
    return teacher, student, 224, 16


def student_pair(architecture: str) -> Pair:
    """A student of timm, at 128 px, and a teacher that is not used."""
    student = new_classifier("TimmWrapperForImageClassification", architecture=architecture, num_labels=CLASSES)
    return load_teacher("glyphs-resnet").model, student, 128, 16


STUDENTS = (
    "resnet18",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "regnety_002",
    "convnext_atto",
)
PAIRS = {"glyphs": glyphs_pair, "cifar": cifar_pair, "vit-b": vit_b_pair}


@dataclass(frozen=True)
class Setting:
    """A pair and how it is trained.

    Attributes:
        name: of the pair.
        batch_size: images of a step; `None` takes the pair's.
        bf16: bfloat16 autocast.
        processes: over which rounds of steps are spread, one after the other.
    """

    name: str
    batch_size: int | None = None
    bf16: bool = False
    processes: int = 5

    def __call__(self) -> Pair:
        """The pair, made anew."""
        teacher, student, size, batch = PAIRS[self.name]()
        return teacher, student, size, self.batch_size or batch

    @property
    def options(self) -> dict[str, Any]:
        """Options of the configuration."""
        return {"bf16": self.bf16}


def images(count: int, size: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Batches of random images, made as they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, batch):
        shape = (min(batch, count - start), 3, size, size)
        yield {"pixel_values": torch.randn(shape, generator=generator)}


def in_turn(functions: Mapping[str, Callable[[], Any]], rounds: int, unused: int = 3) -> dict[str, list[float]]:
    """Seconds of each function, called in turn; the first, unused rounds, which allocate, are left out."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + unused):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if index >= unused:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """The median and the quartiles of the rounds' ratios."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times[over], times[under], strict=True)], n=4)
    return {"median": middle, "quartile_1": low, "quartile_3": high}


class Steps:
    """One training, step by step, on a batch that stays the same.

    Args:
        pair: teacher, student, image size and batch size.
        cached: let the targets come with the batch, as with a teacher cache.
        compiled: compile the student.
        options: of the configuration.
    """

    def __init__(self, pair: Callable[[], Pair], cached: bool = False, compiled: bool = False, **options: Any) -> None:
        teacher, student, size, batch = pair()
        classes = student.config.num_labels
        (examples,) = images(batch, size, batch)
        examples |= {"labels": torch.arange(batch) % classes, "index": torch.arange(batch)}
        examples["view"] = torch.zeros(batch, dtype=torch.long)
        rows = Rows({name: value[index] for name, value in examples.items()} for index in range(batch))
        with tempfile.TemporaryDirectory() as folder:
            self.trainer = SubDistillTrainer(
                student,
                SubDistillConfig(
                    output_dir=folder,
                    use_cpu=not torch.cuda.is_available(),
                    report_to="none",
                    per_device_train_batch_size=batch,
                    disable_tqdm=True,
                    teacher_cache="1" if cached else "off",
                    teacher_cache_dir=f"{folder}/targets",
                    **options,
                ),
                teacher=teacher,
                teacher_class_ids=list(range(classes)),
                train_dataset=rows,
            )
            self.module = self.trainer.prepare_distillation()
            (collated,) = self.trainer.get_train_dataloader()
        self.batch = self.trainer._prepare_inputs(collated)
        self.trainer.model = self.module  # what `train` gives the optimiser
        self.optimizer = self.trainer.create_optimizer()
        self.trainer.model = self.module.student
        self.trainer.current_gradient_accumulation_steps = 1
        self.prepared = self.trainer.accelerator.prepare_model(self.module)  # wrapped, with several processes
        if compiled:
            self.prepared.compile()
        self.module.train()

    def __call__(self) -> None:
        """The steps of a round, waited for once."""
        for _ in range(STEPS_OF_A_ROUND):
            self.step()
        _finish()

    def step(self) -> None:
        """A step of the Trainer: teacher, student, losses, backward pass, clipping, optimiser."""
        self.trainer.training_step(self.prepared, dict(self.batch))
        self.trainer.accelerator.clip_grad_norm_(self.module.parameters(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def kernels(self) -> dict[str, float]:
        """What a step asks of an accelerator: kernels and their milliseconds, and launches by the host."""
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            for _ in range(5):
                self.step()
            _finish()
        events = list(profile.events())
        kernels = [event for event in events if event.device_type.name == "CUDA"]
        launches = ("cudaLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
        return {
            "kernels": len(kernels) / 5,
            "ms": sum(event.device_time for event in kernels) / 5e3,
            "launches": sum(event.name.startswith(launches) for event in events) / 5,
        }

    def phases(self) -> dict[str, float]:
        """Seconds of the parts of one step."""
        trainer, batch = self.trainer, self.batch
        student = {"pixel_values": batch["pixel_values"]}
        marks = [("", time.perf_counter())]

        def mark(name: str) -> None:
            _finish()
            marks.append((name, time.perf_counter()))

        with torch.no_grad():
            self.module.student(**student)
        mark("student, forward")
        logits, targets = (None, {}) if trainer.targets is None else trainer.targets.of(batch)
        mark("teacher and its projections")
        outputs = self.module(targets=targets, **student)
        loss = torch.stack(list(trainer.loss_terms(outputs, logits, batch["labels"]).values())).sum()
        mark("student and losses, forward")
        loss.backward()
        mark("student and losses, backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark("optimiser")
        spent = {name: end - start for (_, start), (name, end) in itertools.pairwise(marks)}
        spent["losses, forward"] = spent.pop("student and losses, forward") - spent["student, forward"]
        return spent


class Rows(list[Any]):
    """Examples that name their one view, as a teacher cache needs it."""

    views, fingerprint = 1, "random images"

    def set_epoch(self, epoch: int) -> None:
        """There is one view."""


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


ARMS: dict[str, dict[str, Any]] = {
    "plain": {"method": "scratch"},
    "kd": {"method": "kd"},
    "subdistill": {"method": "subdistill"},
    "kd, cached": {"method": "kd", "cached": True},
    "subdistill, cached": {"method": "subdistill", "cached": True},
}
if DEVICE.type == "cuda":
    ARMS |= {f"{name}, all as graphs": {**options, "cuda_graphs": "all"} for name, options in ARMS.items()}


RATIOS = {
    "SubDistill over logit KD": ("subdistill", "kd"),
    "cached SubDistill over plain training": ("subdistill, cached", "plain"),
    "SubDistill over cached SubDistill": ("subdistill", "subdistill, cached"),
    "SubDistill, all as graphs, over logit KD": ("subdistill, all as graphs", "kd"),
    "cached SubDistill, all as graphs, over plain training": ("subdistill, cached, all as graphs", "plain"),
    "both as graphs: SubDistill over logit KD": ("subdistill, all as graphs", "kd, all as graphs"),
    "both as graphs: cached SubDistill over plain training": (
        "subdistill, cached, all as graphs",
        "plain, all as graphs",
    ),
}


def _times(setting: Setting, arms: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, list[float]]:
    logging.set_verbosity_error()
    keep_freed_memory()
    steps = {name: Steps(setting, **setting.options, **options) for name, options in arms.items()}
    return {name: [value / STEPS_OF_A_ROUND for value in values] for name, values in in_turn(steps, rounds).items()}


def steps_in_turn(
    setting: Setting, arms: Mapping[str, Mapping[str, Any]], rounds: int, processes: int | None = None
) -> dict[str, list[float]]:
    """Seconds of the steps of each arm, round by round, `rounds` in all over several processes one after the other."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    processes = processes or setting.processes
    for _ in range(processes):
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            part = pool.submit(_times, setting, arms, max(2, rounds // processes)).result()
        for name, values in part.items():
            times[name] += values
    return times


def step(setting: Setting, rounds: int) -> dict[str, Any]:
    """Steps of all kinds in turn: plain training of the student, logit KD and SubDistill, without and with cache."""
    times = steps_in_turn(setting, ARMS, rounds)
    middle = {name: statistics.median(values) for name, values in times.items()}
    one = Steps(setting, **setting.options)
    one()
    parts = [one.phases() for _ in range(max(5, rounds // 5))]
    batch = one.trainer.args.per_device_train_batch_size
    return {
        "batch_size": batch,
        "bf16": setting.bf16,
        "rounds": len(times["plain"]),
        "ms": {name: 1e3 * value for name, value in middle.items()},
        "steps_per_second": {name: 1 / value for name, value in middle.items()},
        "images_per_second": {name: batch / value for name, value in middle.items()},
        "ratios": {
            name: ratio(times, over, under) for name, (over, under) in RATIOS.items() if {over, under} <= times.keys()
        },
        "phases of a SubDistill step, ms": {
            name: 1e3 * statistics.median(part[name] for part in parts) for name in parts[0]
        },
        **({"kernels of a step": _kernels(setting)} if DEVICE.type == "cuda" else {}),
    }


def _kernels(setting: Setting) -> dict[str, dict[str, float]]:
    """Kernels of a step of each kind, and their milliseconds."""
    found = {}
    for name, options in ARMS.items():
        one = Steps(setting, **setting.options, **options)
        one()  # what is recorded is recorded now
        found[name] = one.kernels()
    return found


def memory_format(setting: Setting, rounds: int) -> dict[str, Any]:
    """SubDistill steps with convolutions in channels-last memory and without, and plain steps of other students."""
    formats = {"channels last": {"channels_last": True}, "contiguous": {"channels_last": False}}
    found: dict[str, Any] = {}
    for name, cached in {"": False, ", cached": True}.items():
        arms: dict[str, dict[str, Any]] = {
            layout: {"cached": cached, **options} for layout, options in formats.items()
        }
        times = steps_in_turn(setting, arms, rounds)
        found[f"SubDistill{name}: channels last over contiguous"] = ratio(times, "channels last", "contiguous")
    for name in STUDENTS:
        students = {
            layout: Steps(partial(student_pair, name), method="scratch", **options, **setting.options)
            for layout, options in formats.items()
        }
        times = in_turn(students, max(5, rounds // 8))
        found[f"plain {name}: channels last over contiguous"] = ratio(times, "channels last", "contiguous")
    return found


def closed_form(setting: Setting, rounds: int) -> dict[str, Any]:
    """Cached SubDistill steps with the rotation in closed form and with the learned one."""
    arms: dict[str, dict[str, Any]] = {
        "closed form": {"cached": True, "rotation": "procrustes"},
        "learned": {"cached": True},
    }
    return {"closed form over learned": ratio(steps_in_turn(setting, arms, rounds), "closed form", "learned")}


def inference_mode(setting: Setting, rounds: int) -> dict[str, Any]:
    """The teacher's pass under torch's inference mode and without gradients, as the trainer runs it."""
    teacher, _, size, batch = setting()
    teacher.to(DEVICE)
    (inputs,) = _on_device(images(batch, size, batch))

    def run(context: Callable[[], Any]) -> None:
        with context(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=setting.bf16):
            for _ in range(STEPS_OF_A_ROUND):
                teacher(**inputs)
        _finish()

    modes = {"inference mode": torch.inference_mode, "no gradients": torch.no_grad}
    times = in_turn({name: partial(run, context) for name, context in modes.items()}, rounds)
    return {"inference mode over no gradients": ratio(times, *modes)}


def compiled(setting: Setting, rounds: int) -> dict[str, Any]:
    """Cached SubDistill steps and plain steps with a compiled student and without."""
    ratios = {}
    kinds: dict[str, dict[str, Any]] = {"plain": {"method": "scratch"}, "cached SubDistill": {"cached": True}}
    for name, options in kinds.items():
        arms = {"eager": options, "compiled": {**options, "compiled": True}}
        ratios[f"{name}: compiled over eager"] = ratio(
            steps_in_turn(setting, arms, rounds, processes=1), "compiled", "eager"
        )
    return ratios


def _times_of_process(rank: int, count: int, port: int, setting: Setting, rounds: int) -> dict[str, list[float]]:
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    times = _times(setting, {name: {"method": name} for name in ("scratch", "kd", "subdistill")}, rounds)
    if count > 1:
        torch.distributed.barrier()
    close_process_group()
    return times


def processes(setting: Setting, rounds: int) -> dict[str, Any]:
    """Steps of one process and of two, each with one thread and as many images."""
    results: dict[str, Any] = {}
    for count in (1, 2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with ProcessPoolExecutor(count, mp_context=SPAWN) as pool:
            ranks = [pool.submit(_times_of_process, rank, count, port, setting, rounds) for rank in range(count)]
            times, *_ = [rank.result() for rank in ranks]
        results[f"{count} process{'es' if count > 1 else ''}"] = {
            "ms": {name: 1e3 * statistics.median(values) for name, values in times.items()},
            "SubDistill over logit KD": ratio(times, "subdistill", "kd"),
        }
    return results


def _whole_run(setting: Setting, views: str, epochs: int, images: int, graphs: str) -> float:
    """Seconds of `train()`, fit and writing of the cache included."""
    logging.set_verbosity_error()
    teacher, student, size, batch = setting()
    processor = ViTImageProcessor(size={"height": size, "width": size})
    data = load_subtask(
        DataOptions(classes=["superclass:dice"], train_images_per_class=images + 1, validation_fraction=0.01), 0
    )
    _, seconds = timed_training(
        data,
        (student, teacher),
        (processor, processor),
        list(range(CLASSES)),
        views,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        cuda_graphs=graphs,
        **setting.options,
    )
    return seconds


def whole_run(setting: Setting, epochs: int = 60) -> dict[str, Any]:
    """Whole trainings of 60 epochs, with the teacher in every step and with caches, one after the other.

    On 100 images of each of five classes, three rounds; with the large teacher on a CPU once, on 3 images. With a GPU
    also with everything as graphs.
    """
    small = setting.name == "vit-b" and DEVICE.type == "cpu"
    images, rounds = (3, 1) if small else (100, 3)
    ways = ["losses"] if DEVICE.type == "cpu" else ["off", "all"]
    seconds: dict[str, list[float]] = {}
    for _, views, graphs in itertools.product(range(rounds), ("8", "6", "4", "off"), ways):
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            spent = pool.submit(_whole_run, setting, views, epochs, images, graphs).result()
        seconds.setdefault(f"{views}, all as graphs" if graphs == "all" else views, []).append(spent)
    return {
        "images": images * CLASSES,
        "seconds": {name: statistics.median(spent) for name, spent in seconds.items()},
        "off over cached": {
            name: [off / one for off, one in zip(seconds["off"], spent, strict=True)]
            for name, spent in seconds.items()
            if name != "off"
        },
    }


def growth(setting: Setting, rounds: int) -> dict[str, Any]:
    """How a SubDistill step grows with layers, student widths, classes and images, over a logit-KD step alike."""

    def wider(factor: int, classes: int = CLASSES, batch: int | None = None) -> Callable[[], Pair]:
        def make() -> Pair:
            teacher, _, size, usual = setting()
            widths = "-".join(str(factor * width) for width in (16, 24, 32, 48))
            loaded = load_teacher("glyphs-resnet")
            student = build_student(
                f"resnet:widths={widths},image={size}", [str(i) for i in range(classes)], loaded.processor
            )
            return teacher, student.model, size, batch or usual

        return make

    cases: dict[str, tuple[Callable[[], Pair], dict[str, Any]]] = {
        **{f"{count} layers": (wider(1), {"layer_pairs": count}) for count in (1, 2, 4)},
        **{f"widths x {factor}": (wider(factor), {}) for factor in (1, 2, 4)},
        **{f"{classes} classes": (wider(1, classes), {}) for classes in (2, 5, 20)},
        **{f"{batch} images": (wider(1, batch=batch), {}) for batch in (16, 64, 256)},
    }
    grown = {}
    for name, (make, options) in cases.items():
        options |= setting.options
        arms = {"kd": Steps(make, method="kd", **setting.options), "subdistill": Steps(make, **options)}
        times = in_turn(arms, rounds)
        grown[name] = {
            "ms": 1e3 * statistics.median(times["subdistill"]) / STEPS_OF_A_ROUND,
            **ratio(times, "subdistill", "kd"),
        }
    return grown


def write_trace(setting: Setting, path: Path) -> None:
    """A trace of five SubDistill steps."""
    one = Steps(setting, **setting.options)
    one()
    with torch.profiler.profile() as profile:
        for _ in range(5):
            one.step()
        _finish()
    profile.export_chrome_trace(str(path))


def _on_device(batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        yield {name: value.to(DEVICE) for name, value in batch.items()}


def fit(setting: Setting, rounds: int, count: int) -> dict[str, Any]:
    """The fit of four layers against one forward pass and one backward pass to the same activations."""
    teacher, _, size, batch = setting()
    teacher.to(DEVICE)
    example = next(_on_device(images(2, size, 2)))["pixel_values"]
    kept = list(_on_device(images(count, size, batch))) if DEVICE.type == "cuda" else None

    def batches() -> Iterator[dict[str, Tensor]]:
        """The same images each time; where an accelerator would wait for them, they are made before."""
        return images(count, size, batch) if kept is None else iter(kept)

    layers = stage_outputs(teacher, lambda: teacher(pixel_values=example), (size, size))

    def logits(inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=setting.bf16):
            found: Tensor = teacher(**inputs).logits[:, :CLASSES]
            return found

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
        for inputs in batches():
            outputs.clear()
            torch.autograd.grad(subtask_margin(logits(inputs).float()).sum(), outputs)
        for handle in handles:
            handle.remove()
        _finish()

    def whole_fit() -> None:
        collect_moments(activations_and_contexts(logits, teacher, layers, batches()))
        _finish()

    times = in_turn({"passes": passes, "fit": whole_fit}, rounds)
    return {
        "images": count,
        "images_per_second": count / statistics.median(times["fit"]),
        "fit over one forward and backward pass": ratio(times, "fit", "passes"),
    }


def _peak_memory(setting: Setting, count: int) -> float:
    teacher, _, size, batch = setting()
    teacher.to(DEVICE)
    example = next(_on_device(images(2, size, 2)))["pixel_values"]
    layers = stage_outputs(teacher, lambda: teacher(pixel_values=example), (size, size))
    collect_moments(
        activations_and_contexts(
            lambda inputs: teacher(**inputs).logits[:, :CLASSES],
            teacher,
            layers,
            _on_device(images(count, size, batch)),
        )
    )
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage would count the parent's peak too
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory(setting: Setting, counts: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory (MiB) of a fit of four layers against the number of images: the process's, or the accelerator's."""
    peaks = {}
    for count in counts:
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            peaks[str(count)] = round(pool.submit(_peak_memory, setting, count).result(), 1)
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


def eigenvectors() -> dict[str, Any]:
    """Seconds for the leading K eigenvectors of d by d matrices with eigenvalues 1/i, in part and as a whole."""
    seconds = {}
    for width, count in ((2048, 64), (4096, 64), (4096, 256)):
        generator = torch.Generator().manual_seed(0)
        vectors = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
        matrix = (vectors / torch.arange(1, width + 1)) @ vectors.T
        matrix = (matrix + matrix.T) / 2
        times = in_turn(
            {
                "part": partial(leading_eigenvectors, matrix, count),
                "whole": partial(torch.linalg.eigh, matrix),
            },
            rounds=2,
            unused=0,
        )
        seconds[f"{count} of {width}"] = {name: min(values) for name, values in times.items()}
    return seconds


WAITING = {"default": None, "chosen": "PASSIVE"}


def _spin() -> None:
    while True:
        pass


def _steps_with_threads(setting: Setting, way: str, seconds: float) -> tuple[int, float]:
    """How many threads there are, and seconds of a cached SubDistill step."""
    logging.set_verbosity_error()
    if way == "chosen":
        teacher, student, size, batch = setting()
        networks = [(network, _operations(network, size)) for network in (teacher, student)]
        arguments = SubDistillConfig(per_device_train_batch_size=batch, use_cpu=True)
        torch.set_num_threads(resolve_threads(arguments, networks).count)
    one = Steps(setting, cached=True, **setting.options)
    one()
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < seconds:
        one()
        count += 1
    return torch.get_num_threads(), (time.perf_counter() - start) / count


def _operations(network: nn.Module, size: int) -> int:
    """Of one image's forward pass."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(pixel_values=torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def threads(setting: Setting, rounds: int, busy: int) -> dict[str, Any]:
    """Cached SubDistill steps with torch's threads and with those of the command line, alone and with busy neighbours.

    Each round is four processes, one after the other: what threads do while they wait is decided when torch is loaded.

    Args:
        setting: the pair.
        rounds: how many.
        busy: number of other processes that spin meanwhile.
    """
    found: dict[str, Any] = {}
    times: dict[tuple[int, str], list[float]] = {}
    before = {name: os.environ.pop(name, None) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    for _, neighbours, (way, policy) in itertools.product(range(rounds), (0, busy), WAITING.items()):
        os.environ.update({} if policy is None else {"OMP_WAIT_POLICY": policy})
        others = [SPAWN.Process(target=_spin, daemon=True) for _ in range(neighbours)]
        for other in others:
            other.start()
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            count, spent = pool.submit(_steps_with_threads, setting, way, 5.0).result()
        for other in others:
            other.terminate()
        os.environ.pop("OMP_WAIT_POLICY", None)
        times.setdefault((neighbours, way), []).append(spent)
        found[f"threads, {way}"] = count
    os.environ.update({name: value for name, value in before.items() if value is not None})
    for neighbours in (0, busy):
        by_way = {way: times[neighbours, way] for way in WAITING}
        found[f"{neighbours} busy neighbours"] = {
            "ms": {way: 1e3 * statistics.median(values) for way, values in by_way.items()},
            "default over chosen": ratio(by_way, "default", "chosen"),
        }
    return found


VIEWS = 8


def photographs(count: int) -> datasets.Dataset:
    """Noise of 300 x 400 pixels as JPEG, in two classes."""
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((400, 300)).save(file, "JPEG")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["label"].append(index % 2)
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict(rows, features=kinds)


def _training_of_photographs(kept: bool, count: int, epochs: int) -> dict[str, float]:
    """Seconds of a training on labels, of one epoch of its loader once all views were seen, and its last loss."""
    logging.set_verbosity_error()
    if not kept:
        patched: Any = loaders
        patched.keep_pixels = lambda dataset, collate, *rest: (dataset, collate, None)
    set_seed(0)
    student = new_classifier("TimmWrapperForImageClassification", architecture="mobilenetv4_conv_small", num_labels=2)
    processor = build_student("timm/mobilenetv4_conv_small", ["a", "b"], None).processor
    columns = ImageColumns("image", "label", None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SubDistillTrainer(
            student,
            SubDistillConfig(
                output_dir=folder,
                use_cpu=True,
                method="scratch",
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                num_train_epochs=epochs,
                per_device_train_batch_size=32,
                teacher_cache=str(VIEWS),
                teacher_cache_dir=folder,
            ),
            train_dataset=ViewDataset(photographs(count), columns, "resized_crop", True, (224, 224), views=VIEWS),
            data_collator=ViewCollator(processor),
        )
        start = time.perf_counter()
        trainer.train()
        spent = time.perf_counter() - start
        loader = trainer.callback_handler.train_dataloader
        start = time.perf_counter()
        for view in range(VIEWS):
            loader.dataset.set_epoch(view)
            for _ in loader:
                pass
        epoch = (time.perf_counter() - start) / VIEWS
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"training": spent, "loader": epoch, "last loss": losses[-1]}


def pixels(rounds: int, count: int = 68, epochs: int = 12) -> dict[str, Any]:
    """Trainings on photographs of 300 x 400 pixels, with the pixels of 8 views kept and made in each epoch.

    A MobileNetV4-small at 224 pixels learns labels alone. Of each training a process of its own, in turn. The losses
    of both are to be equal, bit for bit.
    """
    runs: dict[str, list[dict[str, float]]] = {"kept": [], "made": []}
    for _, way in itertools.product(range(rounds), runs):
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            runs[way].append(pool.submit(_training_of_photographs, way == "kept", count, epochs).result())
    found: dict[str, Any] = {"images": count, "views": VIEWS, "epochs": epochs, "rounds": rounds}
    for name in ("training", "loader"):
        times = {way: [run[name] for run in each] for way, each in runs.items()}
        found[f"{name}, s"] = {way: statistics.median(values) for way, values in times.items()}
        found[f"{name}: made over kept"] = ratio(times, "made", "kept")
    found["equal losses"] = len({run["last loss"] for each in runs.values() for run in each}) == 1
    return found


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=tuple(PAIRS), default="glyphs")
    parser.add_argument("--batch-size", type=int, help="images of a step; by default 64, and 16 for vit-b")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--processes", type=int, default=5, help="over which the rounds are spread")
    parser.add_argument("--fit-images", type=int, default=512)
    parser.add_argument("--memory-images", type=int, nargs="*", default=[500, 10000])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*", help="measure these alone; other results are kept as they are")
    parser.add_argument("--busy", type=int, default=1, help="other processes that spin beside `threads`")
    parser.add_argument("--trace", type=Path, help="write a trace of five steps there")
    options = parser.parse_args()
    setting = Setting(options.pair, options.batch_size, options.bf16, options.processes)
    logging.set_verbosity_error()
    keep_freed_memory()
    if options.trace:
        write_trace(setting, options.trace)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    machine = f"{processor_name()}, {device}, torch {torch.__version__.split('+')[0]}"
    kind = "_cuda" * (DEVICE.type == "cuda") + "_bf16" * options.bf16
    path = options.results / f"speed_{options.pair}{kind}.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if options.only and path.is_file() else {}
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: step(setting, options.rounds),
        "memory format": lambda: memory_format(setting, options.rounds),
        "closed form": lambda: closed_form(setting, options.rounds),
        "teacher's pass": lambda: inference_mode(setting, options.rounds // 2),
        "fit": lambda: fit(setting, max(5, options.rounds // 12), options.fit_images),
        "memory of the fit": lambda: memory(setting, tuple(options.memory_images)),
        "compiled": lambda: compiled(setting, options.rounds // 2),
        "processes": lambda: processes(setting, max(10, options.rounds // 4)),
        "threads": lambda: threads(setting, max(2, options.rounds // 20), options.busy),
        "pixels": lambda: pixels(max(2, options.rounds // 30)),
        "whole run": lambda: whole_run(setting),
        "growth": lambda: growth(setting, max(5, options.rounds // 12)),
        "rotation, forward and backward, ms": lambda: rotation(5),
        "leading eigenvectors, s": eigenvectors,
    }
    for name, measure in measurements.items():
        if options.only and name not in options.only:
            continue
        results[name] = {**measure(), "date": datetime.date.today().isoformat(), "machine": machine}
        print(name, json.dumps(results[name], indent=1), flush=True)
        options.results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
