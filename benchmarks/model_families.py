"""A short run for pairs of teacher and student families; each student is loaded again without this package.

    python benchmarks/model_families.py                          # all pairs
    python benchmarks/model_families.py --pairs vit-mobilenetv4  # some; the others' results stay

For each pair a small teacher of the family is trained on scikit-learn's ten digits and saved to a folder; `distill`
makes a student for the five even ones; and a fresh process, in which `import subdistill_hf` fails, loads the student
with `pipeline` and classifies the test images. It must answer as the student did at the end of the run: the two
confusion matrices must be equal.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTImageProcessor

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.activations import logits_of
from subdistill_hf.data.embedded.digits import DIGIT_NAMES, DIGIT_SUPERCLASSES, load_digits_dataset
from subdistill_hf.models.heads import labels_of, new_classifier
from subdistill_hf.pipeline.evaluation import processor_name
from subdistill_hf.pipeline.run import distill
from subdistill_hf.reporting.report import RunReport

RESULTS = Path(__file__).parent / "results" / "families.json"
SUBTASK = "even"
STUDENT_IMAGES = 60  # of each class
TEACHER_STEPS = 150
STEPS = 100
BATCH = 32


class Teacher(NamedTuple):
    """A class of transformers, its configuration, and the size of its images."""

    class_name: str
    configuration: dict[str, Any]
    size: int = 32


TRANSFORMER = {
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 4,
}
SWIN = {
    "embed_dim": 32,
    "depths": [1, 1, 2, 1],
    "num_heads": [2, 4, 4, 8],
    "window_size": 2,
    "image_size": 32,
    "patch_size": 2,
}
RESNET = {
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 96, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}


def timm_teacher(architecture: str, **model_args: Any) -> Teacher:
    """A timm architecture as transformers loads it, for 64 pixels."""
    return Teacher("TimmWrapperForImageClassification", {"architecture": architecture, "model_args": model_args}, 64)


TEACHERS = {
    "vit": Teacher("ViTForImageClassification", {**TRANSFORMER, "intermediate_size": 192}),
    "resnet": Teacher("ResNetForImageClassification", RESNET, 64),
    "swin": Teacher("SwinForImageClassification", SWIN),
    "convnextv2": Teacher(
        "ConvNextV2ForImageClassification",
        {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "patch_size": 2},
    ),
    "dinov2": Teacher(
        "Dinov2WithRegistersForImageClassification", {**TRANSFORMER, "mlp_ratio": 2, "layerscale_value": 0.1}
    ),
    "deit": Teacher("DeiTForImageClassificationWithTeacher", {**TRANSFORMER, "intermediate_size": 192}),
    "fastvit": timm_teacher("fastvit_t8", layers=(1, 1, 2, 1), embed_dims=(32, 64, 128, 256)),
    "efficientformer": timm_teacher(
        "efficientformerv2_s0", img_size=64, embed_dims=(24, 32, 64, 96), depths=(1, 1, 2, 2)
    ),
}
STUDENTS = {
    "vit-mobilenetv4": "timm/mobilenetv4_conv_small:width=0.35,image=64",
    "resnet-vit": "vit:hidden=48,layers=4,image=32",
    "swin-resnet": "resnet:widths=16-24-32-48,image=64",
    "convnextv2-timm-resnet": "timm/resnet18:width=0.25,image=64",
    "dinov2-vit": "vit:hidden=48,layers=4",
    "deit-efficientnet": "timm/test_efficientnet:image=64",
    "fastvit-mobilenetv2": "mobilenetv2:width=0.25",
    "efficientformer-convnext": "convnext:widths=16-24-32-48",
}
"""The recipe of each pair's student; a pair is named after its teacher first."""


def teacher_of(pair: str) -> str:
    """The name of a pair's teacher."""
    return pair.partition("-")[0]


# Teachers


def tensors(rows: Any) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, 32, 32)` between -1 and 1, and their labels."""
    pixels = torch.tensor(np.stack(rows.with_format("numpy")["img"]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor(rows["fine_label"])


def train_teacher(
    teacher: Teacher, names: Sequence[str], images: tuple[Tensor, Tensor], steps: int, folder: Path
) -> nn.Module:
    """Train a teacher on images and their labels, and save it with its processor."""
    torch.manual_seed(0)
    model = new_classifier(teacher.class_name, **teacher.configuration, **labels_of(names)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(1, steps))
    pixels, targets = images
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,))
        shift = torch.randint(-2, 3, (2,)).tolist()
        inputs = F.interpolate(pixels[chosen].roll(shift, (2, 3)), teacher.size, mode="bilinear")
        loss = F.cross_entropy(logits_of(model(pixel_values=inputs)), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    trained: Any = model.eval()
    trained.save_pretrained(folder)
    size = {"height": teacher.size, "width": teacher.size}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return model


# Students

IN_A_FRESH_PROCESS = """
import json, sys
sys.modules["subdistill_hf"] = None  # importing it fails
from datasets import load_from_disk
from transformers import pipeline

images = load_from_disk(sys.argv[1])
image, label = images.column_names
pictures = [picture.convert("RGB") for picture in images[image]]
for folder in sys.argv[2:]:
    classify = pipeline("image-classification", model=folder, device="cpu")
    answers = classify(pictures, top_k=1, batch_size=64)
    confusion = [[0] * classify.model.config.num_labels for _ in range(classify.model.config.num_labels)]
    for truth, answer in zip(images[label], answers):
        confusion[truth][classify.model.config.label2id[answer[0]["label"]]] += 1
    print(json.dumps(confusion))
"""


def run_pair(
    pair: str, teacher: Path, folder: Path, steps: int, images: int, dataset: str, classes: Sequence[str]
) -> RunReport:
    """Distil the pair's student from a teacher's folder; the report of the run."""
    options = TaskOptions(
        teacher=str(teacher),
        student=STUDENTS[pair],
        dataset=dataset,
        classes=list(classes),
        train_images_per_class=images,
    )
    config = SubDistillConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        eval_strategy="steps",
        eval_steps=0.25,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    report = distill(options, config)
    assert report is not None  # one process
    return report


def confusions_in_a_fresh_process(students: Sequence[Path], test_images: Any) -> list[list[list[int]]]:
    """Images of each true class in each predicted class, for each student, from a process with transformers alone."""
    with tempfile.TemporaryDirectory() as folder:
        test_images.save_to_disk(folder)
        command = [sys.executable, "-c", IN_A_FRESH_PROCESS, folder, *map(str, students)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


# The table

HEADER = (
    "| teacher | parameters | accuracy, % | student | parameters | accuracy, % | layer pairs | distilled in, s | "
    "the same answers in a fresh process |\n|---|---|---|---|---|---|---|---|---|"
)


def result_of(pair: str, report: RunReport, fresh: list[list[int]]) -> dict[str, Any]:
    """What is kept of a run."""
    results = {result.method: result for result in report.results}
    figures = {
        who: {"accuracy": results[method].accuracy, "parameters": results[method].parameters}
        for who, method in (("teacher", "teacher"), ("student", "subdistill"))
    }
    return {
        **figures,
        "teacher_class": report.teacher.model_class,
        "recipe": STUDENTS[pair],
        "layers": [[subspace.teacher_layer, subspace.student_layer] for subspace in report.subspaces],
        "seconds": results["subdistill"].training_seconds,
        "test_images": sum(map(sum, fresh)),
        "same_in_a_fresh_process": tuple(map(tuple, fresh)) == results["subdistill"].confusion,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor_name()}, {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}",
    }


def row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    teacher, student = result["teacher"], result["student"]
    same = f"yes, {result['test_images']} images" if result["same_in_a_fresh_process"] else "**no**"
    pairs = ", ".join(f"{_end(ours)} → {_end(theirs)}" for ours, theirs in result["layers"])
    return (
        f"| {result['teacher_class']} ({teacher_of(name)}) | {teacher['parameters']:,} "
        f"| {100 * teacher['accuracy']:.1f} | `{result['recipe']}` | {student['parameters']:,} "
        f"| {100 * student['accuracy']:.1f} | {pairs} | {result['seconds']:.0f} | {same} |"
    )


def _end(name: str) -> str:
    """A layer's name without the model's first part."""
    return name.partition(".")[2]


def document(results: dict[str, Any]) -> str:
    """The page of results."""
    made = "; ".join(sorted({f"{result['date']}, {result['machine']}" for result in results.values()}))
    rows = [row(name, results[name]) for name in STUDENTS if name in results]
    return f"""# Pairs of teacher and student families

Made by `benchmarks/model_families.py`: {made}.

Each teacher is a small model of its family, trained on scikit-learn's digits for {TEACHER_STEPS} steps; each student
was distilled for the five even digits, from {STUDENT_IMAGES} images of each (a fifth of them for validation), in
{STEPS} steps, {BATCH} images a step. The accuracies are on the test images of the five. The runs are short: they show
that the families work together, not how well they can; transformers learn little from scratch in so few steps. "The
same answers" compares the confusion matrix at the end of the run with that of a `pipeline` in a fresh process that
cannot import this package. The machine was busy with other work: the times are no measurement of speed.

{HEADER}
{chr(10).join(rows)}
"""


def main() -> None:
    """Run the chosen pairs, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    chosen = parser.parse_args().pairs
    splits = load_digits_dataset()
    images = tensors(splits["train"])
    for name in chosen:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            train_teacher(TEACHERS[teacher_of(name)], DIGIT_NAMES, images, TEACHER_STEPS, folder / "teacher")
            print(f"{name}: teacher trained in {time.perf_counter() - start:.0f} s", flush=True)
            classes = [f"superclass:{SUBTASK}"]
            report = run_pair(name, folder / "teacher", folder / "student", STEPS, STUDENT_IMAGES, "digits", classes)
            (fresh,) = confusions_in_a_fresh_process([folder / "student"], subtask_images(splits["test"]))
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        results[name] = result_of(name, report, fresh)
        print(row(name, results[name]), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(document(results), encoding="utf-8")


def subtask_images(rows: Any) -> Any:
    """The images of the subtask, and the student's output for each one's class."""
    classes = [DIGIT_NAMES.index(name) for name in DIGIT_SUPERCLASSES[SUBTASK]]
    chosen = rows.filter(lambda label: label in classes, input_columns="fine_label")
    outputs = [classes.index(label) for label in chosen["fine_label"]]
    return chosen.select_columns(["img"]).add_column("output", outputs)


if __name__ == "__main__":
    main()
