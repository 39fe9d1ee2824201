"""Teachers are loaded whole or refused; models are identified, measured and counted."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor

from helpers import NAMES, processor, resnet, save_teacher, teacher_resnet, vit
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.heads import new_classifier
from subdistill_hf.models.loading import (
    check_teacher_is_there,
    count_parameters,
    input_size_of,
    load_student,
    load_teacher,
    weights_digest,
)
from subdistill_hf.models.students import build_student


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
    assert input_size_of(teacher.processor) == (32, 32)


def test_the_license_of_a_teacher_is_that_of_its_card(teacher_folder, tmp_path):
    assert load_teacher("glyphs-resnet").license == "apache-2.0"
    assert load_teacher(str(teacher_folder)).license is None
    licensed = shutil.copytree(teacher_folder, tmp_path / "licensed")
    (licensed / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert load_teacher(str(licensed)).license == "mit"


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
        assert input_size_of(AutoImageProcessor.from_pretrained(tmp_path)) == expected
    with pytest.raises(ModelError, match="does not say the size"):
        input_size_of(object())


def test_parameters_are_counted_once_each():
    assert count_parameters(vit(hidden=24, layers=1)) == sum(
        tensor.numel() for tensor in vit(hidden=24, layers=1).state_dict().values()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_read_as_float32(tmp_path, dtype):
    folder = save_teacher(tmp_path, teacher_resnet().to(dtype))
    for model in (load_teacher(str(folder)).model, build_student(str(folder), NAMES, processor()).model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "make",
    [
        lambda: new_classifier("ResNetForImageClassification", num_channels=1, hidden_sizes=[8, 8], depths=[1, 1]),
        lambda: new_classifier(
            "TimmWrapperForImageClassification", architecture="resnet10t", model_args={"in_chans": 1}, num_labels=3
        ),
    ],
    ids=["transformers", "timm"],
)
def test_models_of_other_images_than_rgb_are_refused(tmp_path, make):
    make().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="takes images of 1 channels: expected 3, since images are read as RGB"):
        load_teacher(str(tmp_path))
    with pytest.raises(ModelError, match=r"^student .* takes images of 1 channels: expected 3"):
        build_student(str(tmp_path), ["a", "b"], processor())


# What a configuration may say wrongly


def with_labels(folder, labels):
    path = folder / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"id2label": labels, "label2id": {}}))
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "a", "2": "c"}, r"names its outputs 2 \(id2label .*expected the numbers from 0 to 1, one for"),
        ({"LABEL_0": "a", "LABEL_1": "b"}, r"cannot be loaded: invalid literal for int"),
        (
            {"0": "a", "1": "b"},
            r"weights of other shapes than its config.json says: classifier.* Its id2label names",
        ),
    ],
    ids=["gap", "no numbers", "fewer than outputs"],
)
def test_names_of_outputs_that_do_not_fit_are_refused(tmp_path, labels, message):
    folder = save_teacher(tmp_path / "teacher", resnet(["a", "b", "c"]))
    with pytest.raises(ModelError, match=message):
        load_teacher(with_labels(folder, labels))


def test_a_folder_of_students_is_refused_with_the_name_of_one(tmp_path):
    for name in ("b", "a"):
        resnet(["x", "y"]).save_pretrained(tmp_path / "family" / name)
    with pytest.raises(ModelError, match=r"holds no student: .* Folders in it do: give one of them, .*family/a$"):
        load_student(tmp_path / "family")


def test_a_folder_that_timm_saved_is_a_teacher_and_a_student(tmp_path):
    """timm writes the arguments that the model was made with, the number of classes among them."""
    made = timm.create_model("test_resnet", num_classes=3)
    timm.models._hub.save_for_hf(made, tmp_path, model_config={"label_names": ["cat", "dog", "cow"]})
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_args"]["num_classes"] == 3
    teacher = load_teacher(str(tmp_path))
    assert teacher.labels == {0: "cat", 1: "dog", 2: "cow"}
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(teacher.model(images).logits, made.eval()(images))
    assert build_student(str(tmp_path), ["a", "b"], processor()).model(images).logits.shape == (2, 2)
    check_teacher_is_there(str(tmp_path))


def test_a_timm_teacher_is_loaded_without_a_word(tmp_path, capfd):
    student = build_student("timm/test_resnet:image=64", NAMES, processor())
    student.model.save_pretrained(tmp_path)
    capfd.readouterr()
    assert load_teacher(str(tmp_path)).labels == dict(enumerate(NAMES))
    assert "backend is not available" not in capfd.readouterr().err
    weights = load_file(tmp_path / "model.safetensors")
    headless = {name: tensor for name, tensor in weights.items() if ".fc." not in name}
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no trained weights for timm_model.fc.bias, .*a random head would teach"):
        load_teacher(str(tmp_path))
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_folder_with_the_name_of_an_embedded_teacher_is_said_not_to_be_read(tmp_path, monkeypatch, caplog):
    save_teacher(tmp_path / "glyphs-resnet")
    monkeypatch.chdir(tmp_path)
    embedded = load_teacher("glyphs-resnet")
    assert "glyphs-resnet is the embedded teacher: for the folder, give ./glyphs-resnet" in caplog.text
    assert weights_digest(embedded.model) != weights_digest(load_teacher("./glyphs-resnet").model)


@pytest.mark.parametrize("name", ["./gone", "/gone/for/ever", "glyphs-resnet/"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(ModelError, match=r"cannot be loaded: there is no such folder or file. Expected an embedded"):
        load_teacher(name)
    with pytest.raises(ModelError, match=r"cannot be built: there is no such folder or file. Expected a recipe"):
        build_student(name, ["a", "b"], None)
