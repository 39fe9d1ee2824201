"""What several test modules build: tiny models with random weights, and small datasets of glyphs."""

import atexit
import gc
import importlib.util
import io
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor

from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.models.heads import labels_of, new_classifier
from subdistill_hf.training.trainer import SubDistillTrainer

# accelerate collects garbage at each training: what the imports made need not be searched every time.
gc.freeze()
atexit.register(gc.unfreeze)

REPOSITORY = Path(__file__).parents[1]
CLASS_IDS = (10, 11, 12)  # three chess pieces
NAMES = tuple(CLASS_NAMES[class_id] for class_id in CLASS_IDS)
COLUMNS = ImageColumns("img", "fine_label", "coarse_label")
LAYER_BASELINES = [name for name, one in METHODS.items() if one.layer_loss and not one.uses_subspaces]
FEATURES = datasets.Features(
    {
        "img": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=list(CLASS_NAMES)),
        "coarse_label": datasets.ClassLabel(names=list(SUPERCLASS_NAMES)),
    }
)


# Data


@lru_cache
def glyph_rows(class_ids=CLASS_IDS, per_class=8, split="train"):
    """Glyphs of some classes in the schema of glyphs-100."""
    rows = [(class_id, index) for class_id in class_ids for index in range(per_class)]
    return datasets.Dataset.from_dict(
        {
            "img": [render(0, split, class_id, index) for class_id, index in rows],
            "fine_label": [class_id for class_id, _ in rows],
            "coarse_label": [class_id // 5 for class_id, _ in rows],
        },
        features=FEATURES,
    )


@lru_cache
def subtask_rows(per_class=8, split="train", class_ids=CLASS_IDS):
    """Glyphs with the labels 0 to C - 1 of a student."""
    rows = glyph_rows(class_ids, per_class, split)
    labels = [class_ids.index(label) for label in rows["fine_label"]]
    names = [CLASS_NAMES[class_id] for class_id in class_ids]
    return rows.select_columns(["img"]).add_column("fine_label", labels, feature=datasets.ClassLabel(names=names))


def views(per_class=8, split="train", augmentation="none", **options):
    return ViewDataset(subtask_rows(per_class, split), COLUMNS, augmentation, **options)


def write_image_folder(folder, class_ids=CLASS_IDS, train=6, test=3):
    """PNG files as `split/CLASS/NUMBER.png`."""
    for split, count in (("train", train), ("test", test)):
        for class_id in class_ids:
            place = folder / split / CLASS_NAMES[class_id]
            place.mkdir(parents=True)
            for index in range(count):
                render(0, split, class_id, index).save(place / f"{index}.png")
    return folder


COLOURS = {
    "blue": (40, 60, 200),
    "green": (50, 180, 60),
    "grey": (128, 128, 128),
    "red": (200, 50, 50),
    "purple": (140, 50, 170),
}


def write_colour_folder(folder, names, train, test):
    """PNG files as `split/CLASS/NUMBER.png`; the class of an image is its colour, under noise."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(random.normal(COLOURS[name], 25, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


def write_task(folder):
    """A teacher that reads 40 pixels and a folder of images, for `task_options`."""
    save_teacher(folder / "teacher", size=40)
    write_image_folder(folder / "images")
    return folder


def task_options(folder, **changed):
    """Options of a run on what `write_task` wrote."""
    defaults = {
        "teacher": str(folder / "teacher"),
        "dataset": str(folder / "images"),
        "classes": list(NAMES),
        "student": "resnet:widths=8-8-8,image=32",
    }
    return TaskOptions(**defaults | changed)


def whole_png():
    buffer = io.BytesIO()
    glyph_rows()[0]["img"].save(buffer, "PNG")
    return buffer.getvalue()


def damaged_png():
    """The bytes of a glyph whose second half is missing."""
    return whole_png()[: len(whole_png()) // 2]


# Models


def with_confident_head(model):
    """Random heads say almost nothing; ten times larger weights give margins worth a gradient."""
    with torch.no_grad():
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.weight.mul_(10)
    return model


def resnet(names=NAMES, widths=(8, 12, 16, 20), seed=0):
    torch.manual_seed(seed)
    return new_classifier(
        "ResNetForImageClassification",
        embedding_size=widths[0],
        hidden_sizes=list(widths),
        depths=[1] * len(widths),
        layer_type="basic",
        **labels_of(names),
    )


def vit(names=NAMES, hidden=24, layers=4, seed=0, patch=8, **options):
    torch.manual_seed(seed)
    return new_classifier(
        "ViTForImageClassification",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        image_size=32,
        patch_size=patch,
        **options,
        **labels_of(names),
    )


def convnext(names=NAMES, widths=(8, 12, 16), seed=0):
    """A student without batch norm."""
    torch.manual_seed(seed)
    return new_classifier(
        "ConvNextForImageClassification",
        hidden_sizes=list(widths),
        depths=[1] * len(widths),
        num_stages=len(widths),
        layer_scale_init_value=0.5,
        **labels_of(names),
    )


def teacher_resnet(names=CLASS_NAMES, widths=(12, 20, 28, 36), seed=1):
    """Teachers know all 100 classes."""
    return with_confident_head(resnet(names, widths, seed))


def teacher_vit(names=CLASS_NAMES, hidden=48, layers=4, seed=1, **options):
    return with_confident_head(vit(names, hidden, layers, seed, **options))


def processor(size=32, mean=0.5):
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[mean] * 3, image_std=[0.5] * 3)


def save_teacher(folder, model=None, size=32, mean=0.5):
    """A teacher's folder, as `load_teacher` reads it."""
    (teacher_resnet() if model is None else model).save_pretrained(folder)
    processor(size, mean).save_pretrained(folder)
    return folder


# Training


def config(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        "teacher_cache_dir": str(Path(folder) / "targets"),
    }
    return SubDistillConfig(**defaults | options)


def trainer(folder, student=None, teacher=None, trainer_class=SubDistillTrainer, train=None, parts=None, **options):
    """A trainer of tiny models on glyphs; `parts` are further arguments of the trainer, `options` of its config."""
    parts = {} if parts is None else parts
    if options.get("method") != "scratch" and teacher is None:
        teacher = teacher_resnet()
    arguments = {
        "model": resnet() if student is None else student,
        "args": config(folder, **options),
        "teacher": teacher,
        "teacher_class_ids": CLASS_IDS,
        "train_dataset": views() if train is None else train,
        "eval_dataset": views(4, "test"),
        "data_collator": ViewCollator(processor(), processor()),
    }
    if "model_init" in parts:
        arguments.pop("model")
    return trainer_class(**arguments | parts)


def write_checkpoint(folder, step):
    """Empty files of the names that a whole checkpoint has."""
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"")
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}', encoding="utf-8")
    return folder


def weights_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_equal_weights(first, second, tolerance=None):
    assert first.keys() == second.keys()
    for name in first:
        if tolerance is None:
            assert torch.equal(first[name], second[name]), name
        else:
            difference = float((first[name].double() - second[name].double()).abs().max())
            assert difference <= tolerance, f"{name}: {difference}"


def run_python(code, *arguments, check=True, **environment):
    """Run a program in a fresh interpreter on one thread, off line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=quiet_environment(**environment),
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def quiet_environment(**extra):
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"} | extra


def version_of(library):
    """Major and minor version."""
    return tuple(int(part) for part in library.__version__.split(".")[:2])


def load_script(path):
    """A script of the repository as a module; `path` is relative to the repository."""
    specification = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", REPOSITORY / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
