"""Teachers are loaded whole or refused; students are built with one output per class."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from helpers import NAMES, glyph_rows, processor, resnet, save_teacher, vit
from subdistill_hf.glyphs import CLASS_NAMES
from subdistill_hf.models import (
    ModelError,
    build_student,
    count_parameters,
    image_size_of,
    load_teacher,
    weights_digest,
)
from subdistill_hf.views import process


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("models") / "my-teacher")


# Teachers


def test_a_teacher_is_loaded_frozen_in_evaluation_mode_with_its_labels(teacher_folder):
    teacher = load_teacher(str(teacher_folder))
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.labels == dict(enumerate(CLASS_NAMES))
    assert (teacher.name, teacher.hub_id) == ("my-teacher", None)
    assert image_size_of(teacher.processor) == (32, 32)


def cut_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def cut_config(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")


def no_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def no_head(folder):
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def another_head(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.1.weight"] = weights["classifier.1.weight"][:7].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "cannot be loaded"),
        (cut_config, "cannot be loaded"),
        (no_processor, "cannot be loaded"),
        (another_head, "cannot be loaded"),
        (no_head, "no trained weights for classifier.1.bias, classifier.1.weight"),
    ],
)
def test_a_damaged_or_headless_teacher_is_refused(teacher_folder, tmp_path, damage, message):
    folder = shutil.copytree(teacher_folder, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ModelError, match=message) as refused:
        load_teacher(str(folder))
    assert "damaged" in str(refused.value)


# Students


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("resnet:widths=8-12-16", 32),
        ("resnet:widths=8-8-8-8,depth=2,image=48", 48),
        ("vit:hidden=24,layers=3,heads=2", 32),
        ("vit:hidden=48,layers=2,patch=16,image=64", 64),
        ("timm/test_resnet", 160),
    ],
)
def test_a_recipe_gives_a_student_with_named_outputs_that_is_reloaded_with_its_processor(recipe, size, tmp_path):
    student = build_student(recipe, NAMES, processor())
    assert image_size_of(student.processor) == (size, size)
    student.model.eval()
    pixels = process(student.processor, [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)])
    with torch.no_grad():
        logits = student.model(pixel_values=pixels).logits
    assert logits.shape == (1, 3)
    student.model.save_pretrained(tmp_path)
    student.processor.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.id2label == dict(enumerate(NAMES))
    image = glyph_rows()[0]["img"]
    own = student.processor(images=[image], return_tensors="pt")["pixel_values"]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own, theirs, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(pixel_values=pixels).logits, logits, rtol=0, atol=1e-6)


def test_keys_of_recipes_shape_the_student():
    small = build_student("resnet:widths=8-12-16", NAMES, processor()).model
    assert small.config.hidden_sizes == [8, 12, 16]
    assert count_parameters(build_student("resnet:widths=8-12-16,depth=2", NAMES, processor()).model) > (
        count_parameters(small)
    )
    transformer = build_student("vit:hidden=24,layers=3,heads=2,patch=4", NAMES, processor()).model
    assert (transformer.config.num_hidden_layers, transformer.config.patch_size) == (3, 4)


def test_a_recipe_takes_the_teachers_size_and_normalisation():
    student = build_student("resnet:widths=8-8", NAMES, processor(48, mean=0.25))
    assert image_size_of(student.processor) == (48, 48)
    assert tuple(student.processor.image_mean) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("resnet:width=8", "unknown key 'width': expected widths, depth, image"),
        ("vit:depth=8", "unknown key 'depth': expected hidden, layers, heads, patch, image"),
        ("resnet:widths", "expected key=value, found 'widths'"),
        ("resnet:widths=8-x", "at least 1 for widths, found 'x'"),
        ("resnet:widths=0-8", "at least 1 for widths, found '0'"),
        ("resnet:image=big", "at least 1 for image, found 'big'"),
        ("vit:heads=0", "at least 1 for heads, found '0'"),
        ("vit:patch=0", "at least 1 for patch, found '0'"),
        ("vit:hidden=20,heads=3", "hidden=20 is not divisible by heads=3"),
        ("timm/no_such_architecture", "cannot be built"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_with_the_reason(recipe, message):
    with pytest.raises(ModelError) as refused:
        build_student(recipe, NAMES, processor())
    assert message in str(refused.value)
    assert repr(recipe) in str(refused.value)


def test_a_local_student_keeps_its_body_and_gets_a_head_for_the_classes(teacher_folder):
    before = load_file(teacher_folder / "model.safetensors")
    student = build_student(str(teacher_folder), NAMES, processor())
    after = student.model.state_dict()
    assert after["classifier.1.weight"].shape[0] == 3
    body = [name for name in before if not name.startswith("classifier")]
    assert len(body) > 20
    for name in body:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in student.model.parameters())


# Identity


def test_the_digest_changes_with_any_weight_or_buffer_and_with_nothing_else():
    model = resnet()
    digest = weights_digest(model)
    assert weights_digest(resnet()) == digest
    model.train()
    model.requires_grad_(False)
    assert weights_digest(model) == digest
    statistics = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    statistics.num_batches_tracked += 1
    counted = weights_digest(model)
    assert counted != digest
    statistics.num_batches_tracked -= 1
    with torch.no_grad():
        model.classifier[1].bias[2] += 1e-6
    assert weights_digest(model) not in (digest, counted)


def test_the_digest_tells_types_and_names_apart():
    one, other = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
    other[0].load_state_dict(one.state_dict())
    assert weights_digest(one) != weights_digest(other)
    whole = weights_digest(one)
    assert weights_digest(one.to(torch.bfloat16)) != whole


def test_the_size_of_a_processors_images_is_read_in_each_of_its_spellings(tmp_path):
    settings = [
        ({"size": {"height": 24, "width": 40}, "do_center_crop": False}, (24, 40)),
        ({"size": {"shortest_edge": 48}, "do_center_crop": False}, (48, 48)),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 56, "width": 56}}, (56, 56)),
    ]
    for setting, expected in settings:
        described = {"image_processor_type": "CLIPImageProcessor", **setting}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(described), encoding="utf-8")
        assert image_size_of(AutoImageProcessor.from_pretrained(tmp_path)) == expected
    with pytest.raises(ModelError, match="does not say the size"):
        image_size_of(object())


def test_parameters_are_counted_once_each():
    assert count_parameters(vit(hidden=24, layers=1)) == sum(
        tensor.numel() for tensor in vit(hidden=24, layers=1).state_dict().values()
    )
