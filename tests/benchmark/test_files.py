"""The benchmark files that come with the package: every option exists, and each runs on a few images of its schema."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from helpers import REPOSITORY, resnet, save_teacher, with_confident_head
from subdistill_hf.benchmark.config import read_benchmark
from subdistill_hf.benchmark.jobs import untuned_jobs
from subdistill_hf.benchmark.training import config_of, train_job
from subdistill_hf.config.methods import METHODS
from subdistill_hf.data.class_names import IMAGENET_SUBTASKS
from subdistill_hf.data.embedded.glyph_classes import SUPERCLASS_NAMES
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.models.students import build_student

FILES = sorted((REPOSITORY / "benchmarks" / "configs").glob("*.yaml"))
CIFAR_SUPERCLASSES = 20


def classes_of(grid):
    chosen = [*grid.subtasks.values(), *(grid.tuning.subtasks.values() if grid.tuning else ())]
    return [one for classes in chosen for one in classes]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_option_of_a_file_exists(path):
    grid = read_benchmark(path)
    seen = set()
    for job in untuned_jobs(grid):
        options = tuple(sorted((name, str(value)) for name, value in job.training.items()))
        if options not in seen:
            seen.add(options)
            assert config_of(job, "unused").method == grid.kind(job.method)
    assert {grid.kind(method) for method in grid.methods} <= METHODS.keys()
    known = {f"superclass:{name}" for name in SUPERCLASS_NAMES} | {f"subtask:{name}" for name in IMAGENET_SUBTASKS}
    if grid.task["dataset"] in ("glyphs-100", "ILSVRC/imagenet-1k"):
        assert set(classes_of(grid)) <= known
    if grid.tuning is not None:
        assert not set(grid.subtasks) & set(grid.tuning.subtasks)


def test_the_table_names_every_file_and_no_other():
    text = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    section = text.partition("## The configs\n")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] if line.startswith("| `") else line for line in section.splitlines()]
    named = {name for line in firsts for name in re.findall(r"`(\w+)`", line)}
    assert named - {"configs"} == {path.stem for path in FILES}


def test_all_methods_are_compared_where_all_are_announced():
    for name in ("glyphs", "glyphs_vit", "digits", "cifar100", "imagenet_resnet101", "imagenet_vit"):
        grid = read_benchmark(REPOSITORY / "benchmarks" / "configs" / f"{name}.yaml")
        assert {grid.kind(method) for method in grid.methods} == METHODS.keys()


@pytest.mark.parametrize("name", ["cifar100", "imagenet_resnet101", "imagenet_vit"])
def test_every_student_of_the_papers_experiments_is_built(name):
    grid = read_benchmark(REPOSITORY / "benchmarks" / "configs" / f"{name}.yaml")
    template = load_teacher("glyphs-resnet").processor
    template.size = {"height": 224, "width": 224}
    for recipe in grid.students:
        assert build_student(recipe, list("abcde"), template).model.num_labels == 5
    assert grid.tuning.student in grid.students
    assert grid.tuning.train_images in grid.train_images
    assert len(grid.subtasks) == (CIFAR_SUPERCLASSES if name == "cifar100" else len(IMAGENET_SUBTASKS))


def noise(count, size):
    generator = np.random.default_rng(count)
    return [Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def write_cifar(folder):
    """CIFAR-100's schema, the classes of one superclass filled."""
    fine = [f"class_{number}" for number in range(95)] + ["beaver", "dolphin", "otter", "seal", "whale"]
    coarse = ["fish", "aquatic_mammals", *(f"superclass_{number}" for number in range(18))]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=fine),
            "coarse_label": datasets.ClassLabel(names=coarse),
        }
    )
    for split, each in (("train", 10), ("test", 2)):
        labels = [95 + number % 5 for number in range(5 * each)]
        rows = {"img": noise(len(labels), 32), "fine_label": labels, "coarse_label": [1] * len(labels)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return fine


def write_imagenet(folder):
    """ImageNet-1k's schema, the classes of one subtask filled; its test labels are hidden."""
    names = ImageNetInfo().label_descriptions()
    names = [f"{name} (2)" if name in names[:number] else name for number, name in enumerate(names)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split, each in (("train", 10), ("validation", 2), ("test", 1)):
        labels = [IMAGENET_SUBTASKS["box"][number % 5] for number in range(5 * each)]
        rows = {"image": noise(len(labels), 40), "label": [-1] * len(labels) if split == "test" else labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return names


@pytest.mark.parametrize(
    ("name", "subtask", "write"),
    [("cifar100", "aquatic_mammals", write_cifar), ("imagenet_vit", "box", write_imagenet)],
)
def test_the_papers_experiments_run_on_a_few_images_of_their_schema(datasets_cache, tmp_path, name, subtask, write):
    grid = read_benchmark(Path(REPOSITORY, "benchmarks", "configs", f"{name}.yaml"))
    (tmp_path / "data").mkdir()
    names = write(tmp_path / "data")
    save_teacher(tmp_path / "teacher", with_confident_head(resnet(names)))
    few = {"num_train_epochs": 1, "use_cpu": True, "per_device_train_batch_size": 16, "positions": None}
    few |= {"dataloader_num_workers": 0}
    jobs = {job.method: job for job in untuned_jobs(grid) if job.subtask == subtask and job.train_images == 0.8}
    for method in ("scratch", "fitnet", "subdistill"):
        job = jobs[method]
        job.task.update(
            dataset=str(tmp_path / "data"), teacher=str(tmp_path / "teacher"), student="resnet:widths=8-8-8"
        )
        job.training.update(few)
        row = train_job(job)
        assert (row["images"], row["method"], row["steps"]) == (5 * 6, method, 2)
        assert 0 <= row["test"] <= 1
