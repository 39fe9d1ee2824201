"""`accelerate launch examples/run_subdistill.py --teacher google/vit-base-patch16-224`, as a user types it.

The Hub is on loopback. The teacher has the depth, the images and the classes of the real one, and a quarter of its
width, which makes it 15 times quicker; the student is timm's. Both have random weights. The dataset has CIFAR-100's
schema and a few images.
"""

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from helpers import REPOSITORY
from loopback_hub import LoopbackHub
from subdistill_hf.data.class_names import imagenet_name

COMMAND = "accelerate launch examples/run_subdistill.py --teacher google/vit-base-patch16-224"
# Few steps, and a place that the test can look at.
LIMITS = "--max_steps 2 --adapt_epochs 1 --teacher_cache 1 --per_device_train_batch_size 5 --use_cpu --report_to none"
CARNIVORES = ["bear", "lion", "wolf"]  # three of the five, for a teacher of this size takes its time
TEACHER = "google/vit-base-patch16-224"
STUDENT = "timm/mobilenetv4_conv_small.e2400_r224_in1k"


def teacher_files():
    """The real model's configuration, 12 layers of patches of 16 at 224, but for its width."""
    names = timm.data.ImageNetInfo()
    labels = {index: imagenet_name(names.index_to_label_name(index)) for index in range(1000)}
    config = ViTConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
        dtype="float32",
    )
    config.architectures = ["ViTForImageClassification"]
    with torch.device("meta"):
        model = ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in model.state_dict().items():
        norm = "layernorm" in name
        weights[name] = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).mul_(0.02).half()
        if norm and name.endswith("weight"):
            weights[name] = torch.ones(tensor.shape, dtype=torch.float16)
    return {
        "config.json": config.to_json_string().encode(),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "preprocessor_config.json": ViTImageProcessor().to_json_string().encode(),
        "README.md": b"---\nlicense: apache-2.0\n---\n# Vision transformer\n",
    }


def student_files():
    """A model of timm as it lies on the Hub."""
    model = timm.create_model(STUDENT.removeprefix("timm/").partition(".")[0])
    described = {
        "architecture": "mobilenetv4_conv_small",
        "num_classes": 1000,
        "num_features": model.num_features,
        "pretrained_cfg": model.pretrained_cfg | {"tag": "e2400_r224_in1k", "hf_hub_id": STUDENT},
    }
    return {
        "config.json": json.dumps(described).encode(),
        "model.safetensors": save(model.state_dict(), metadata={"format": "pt"}),
        "README.md": b"---\nlicense: apache-2.0\n---\n# MobileNetV4\n",
    }


def cifar_files():
    """Two training images and a test image of each class."""
    names = [*CARNIVORES, "trout"]
    classes = len(names)
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=names),
            "coarse_label": datasets.ClassLabel(names=["fish", "large_carnivores"]),
        }
    )
    files = {}
    for split, each in (("train", 2), ("test", 1)):
        pixels = np.random.default_rng(each).integers(0, 256, (classes * each, 32, 32, 3), dtype=np.uint8)
        fine = [label for label in range(classes) for _ in range(each)]
        coarse = [int(label < len(CARNIVORES)) for label in fine]
        rows = {"img": list(pixels), "fine_label": fine, "coarse_label": coarse}
        content = io.BytesIO()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(content)
        files[f"cifar100/{split}-00000-of-00001.parquet"] = content.getvalue()
    return files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder that the command left, and what it printed."""
    with LoopbackHub(tmp_path_factory.mktemp("literal")) as hub:
        hub.put(TEACHER, teacher_files())
        hub.put(STUDENT, student_files())
        hub.put("uoft-cs/cifar100", cifar_files(), kind="dataset")
        words = shlex.split(f"{COMMAND} {LIMITS}")
        words[0] = str(Path(sys.executable).with_name("accelerate"))
        done = subprocess.run(
            [*words, "--output_dir", str(hub.folder / "out")],
            cwd=REPOSITORY,
            env=hub.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        yield hub, hub.folder / "out", done.stdout
    assert not hub.errors, "\n".join(hub.errors)


def test_the_choices_are_printed_before_anything_starts(finished):
    _, _, printed = finished
    choices = [line.strip() for line in printed.partition("\n\n")[0].splitlines()]
    assert choices[0].startswith("chosen for this teacher")
    for name, value in (
        ("dataset", "uoft-cs/cifar100"),
        ("classes", "superclass:large_carnivores"),
        ("train_images_per_class", "100"),
        ("adapt_teacher", "lora"),
        ("student", STUDENT),
    ):
        assert [line for line in choices if line.startswith(f"--{name} {value}: ")]


def test_the_teacher_is_that_of_the_hub_and_was_adapted(finished):
    hub, folder, _ = finished
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    teacher = report["teacher"]
    assert (teacher["hub_id"], teacher["license"]) == (TEACHER, "apache-2.0")
    assert teacher["revision"] == hub.commits(TEACHER)[-1].oid
    assert teacher["adaptation"]["method"] == "lora"
    assert 5.5e6 < teacher["parameters"] < 6e6
    assert report["classes"] == CARNIVORES
    assert (report["student"]["hub_id"], report["student"]["license"]) == (STUDENT, "apache-2.0")
    assert len(report["subspaces"]) == 4
    by_method = {result["method"]: result for result in report["results"]}
    assert by_method["teacher"]["operations"] == pytest.approx(2.5e9, rel=0.02)
    assert by_method["subdistill"]["operations"] == pytest.approx(0.37e9, rel=0.02)


def test_the_card_names_its_origins_and_the_student_classified_the_example(finished):
    _, folder, _ = finished
    card = (folder / "README.md").read_text(encoding="utf-8")
    for line in (
        f"base_model:\n- {TEACHER}\n- {STUDENT}\n",
        "license: apache-2.0",
        "datasets:\n- uoft-cs/cifar100\n",
        f"[{TEACHER}](https://huggingface.co/{TEACHER}) (fitted to this dataset first)",
    ):
        assert line in card
    said = card.partition("```text\n")[2].partition("```")[0].splitlines()
    assert sorted(line.partition(": ")[0] for line in said) == CARNIVORES
