"""Students are built with one output per class, and are whole in their folder."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from families import FAMILIES, build
from helpers import NAMES, glyph_rows, processor, resnet, save_teacher, vit
from subdistill_hf.data.preprocessing import process
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.heads import labels_of
from subdistill_hf.models.loading import input_size_of
from subdistill_hf.models.students import build_student


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("models") / "my-teacher")


# Recipes


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("resnet:widths=8-12-16", 32),
        ("resnet:widths=8-8-8-8,depth=2,image=48", 48),
        ("vit:hidden=24,layers=3,heads=2", 32),
        ("vit:hidden=48,layers=2,patch=16,image=64", 64),
        ("convnext:widths=8-12-16", 32),
        ("mobilenetv2:width=0.1,image=64", 64),
        ("timm/test_resnet", 160),
        ("timm/test_resnet:width=0.5,image=64", 64),
        ("timm/mobilenetv4_conv_small:width=0.35,image=32", 32),
        ("timm/vit_tiny_patch16_224:width=0.34,image=48", 48),
    ],
)
def test_a_recipe_gives_a_student_with_named_outputs_that_is_reloaded_with_its_processor(recipe, size, tmp_path):
    student = build_student(recipe, NAMES, processor())
    assert input_size_of(student.processor) == (size, size)
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


def test_images_of_a_student_are_as_large_as_the_longer_side_of_those_of_its_teacher():
    wide = processor()
    wide.size = {"height": 24, "width": 48}
    assert input_size_of(build_student("resnet:widths=4-4", NAMES, wide).processor) == (48, 48)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("resnet:wide=8", "unknown key 'wide': expected widths, width, depth, image"),
        ("resnet:width=8", "a factor above 0 and at most 4 for width, found '8'"),
        ("mobilenetv2:width=small", "a factor above 0 and at most 4 for width, found 'small'"),
        ("convnext:layers=3", "unknown key 'layers': expected widths, width, depth, patch, image"),
        ("vit:depth=8", "unknown key 'depth': expected hidden, layers, heads, patch, image"),
        ("resnet:widths", "expected key=value, found 'widths'"),
        ("resnet:widths=8-x", "at least 1 for widths, found 'x'"),
        ("resnet:widths=0-8", "at least 1 for widths, found '0'"),
        ("resnet:image=big", "at least 1 for image, found 'big'"),
        ("vit:heads=0", "at least 1 for heads, found '0'"),
        ("vit:patch=0", "at least 1 for patch, found '0'"),
        ("vit:hidden=20,heads=3", "hidden=20 is not divisible by heads=3"),
        ("timm/no_such_architecture", "has no architecture 'no_such_architecture'"),
        ("timm/resnet19", "has no architecture 'resnet19'; it has "),
        ("timm/test_resnet:depth=2", "unknown key 'depth': expected width, image"),
        (
            "timm/mobilenetv4_conv_small:width=0.25",
            "no mobilenetv4_conv_small of width 0.25 (it has 0.35, 0.5, 1) that transformers could build again; "
            "mobilenetv2:width=0.25 takes any factor",
        ),
        ("timm/test_vit:image=50", "cannot take images of 50x50 pixels"),
        ("timm/resnet18.a1_in1k:width=0.5", "cannot be built"),  # trained weights cannot be narrowed
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_with_the_reason(recipe, message):
    with pytest.raises(ModelError) as refused:
        build_student(recipe, NAMES, processor())
    assert message in str(refused.value)
    assert repr(recipe) in str(refused.value)


# Folders


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


@pytest.mark.parametrize("name", ["deit, two heads", "efficientnet", "timm vit"])
def test_a_local_student_of_any_family_gets_the_classes_and_their_names(name, tmp_path):
    model = build(name, labels_of([f"class {number}" for number in range(7)]))
    folder = save_teacher(tmp_path / "pretrained", model)
    student = build_student(str(folder), NAMES, processor())
    assert type(student.model) is type(model)
    assert student.labels == dict(enumerate(NAMES))
    assert student.model.config.label2id == {label: output for output, label in enumerate(NAMES)}
    logits = student.model.eval()(pixel_values=torch.zeros(1, 3, *FAMILIES[name].size)).logits
    assert logits.shape == (1, 3)


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_teacher(tmp_path / "vit", vit())
    described = json.loads((tmp_path / "vit" / "config.json").read_text(encoding="utf-8"))
    folder = save_teacher(tmp_path / "resnet")
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ModelError, match=r"no trained weights for .*more than half of ViTForImageClassification"):
        build_student(str(folder), NAMES, processor())


@pytest.mark.parametrize("names", [NAMES, NAMES[:2]], ids=["head kept", "new head"])
def test_a_student_learns_one_class_an_image_whatever_it_was_trained_for_before(tmp_path, names):
    model = vit(names=NAMES, layers=1)
    model.config.problem_type = "multi_label_classification"
    student = build_student(str(save_teacher(tmp_path, model)), names, processor())
    assert student.model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("kept", [NAMES, ("a", "b", "c", "d")], ids=["head kept", "new head"])
@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "vit",
            {"intermediate_size": 128},
            r"fc1\.bias is \(48,\), expected \(128,\); so are 5 more \(vit.*, \.\.\.\)",
        ),
        (
            "vit",
            {"image_size": 64},
            r"vit\.embeddings\.position_embeddings is \(1, 17, 24\), expected \(1, 65, 24\)\. Give",
        ),
        ("timm vit", {"model_args": {"img_size": 48, "mlp_ratio": 2}}, r"is \(\d+,\), expected \(\d+,\); so are"),
    ],
    ids=["wider", "other positions", "timm"],
)
def test_weights_that_do_not_fit_the_config_are_refused_and_not_left_random(tmp_path, name, changed, message, kept):
    model = vit(layers=2, names=NAMES) if name == "vit" else build(name, labels_of(NAMES))
    folder = save_teacher(tmp_path, model)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(described | changed), encoding="utf-8")
    with pytest.raises(
        ModelError, match=rf"student .* has weights of other shapes than its config\.json says: .*{message}"
    ):
        build_student(str(folder), kept, processor())


@pytest.mark.parametrize(
    "recipe", ["vit:hidden=24,layers=1", "mobilenetv2:width=0.1,image=64", "timm/test_resnet:width=0.5,image=64"]
)
def test_a_pipeline_needs_the_folder_alone(recipe, tmp_path):
    image = glyph_rows()[0]["img"].convert("RGB")
    student = build_student(recipe, NAMES, processor())
    student.model.save_pretrained(tmp_path)
    student.processor.save_pretrained(tmp_path)
    pixels = student.processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scores = student.model.eval()(pixel_values=pixels).logits.softmax(dim=1)[0]
    answers = pipeline("image-classification", model=str(tmp_path))(image)
    found = {answer["label"]: answer["score"] for answer in answers}
    assert found == pytest.approx(dict(zip(NAMES, scores.tolist(), strict=True)), abs=1e-6)


def test_a_head_of_as_many_other_classes_is_not_kept(tmp_path):
    folder = save_teacher(tmp_path, resnet(["x", "y", "z"]))
    before = load_file(folder / "model.safetensors")
    same = build_student(str(folder), ["x", "y", "z"], processor()).model.state_dict()
    other = build_student(str(folder), ["y", "x", "z"], processor())
    assert other.model.config.id2label == {0: "y", 1: "x", 2: "z"}
    for name, weight in other.model.state_dict().items():
        assert torch.equal(same[name], before[name])
        assert torch.equal(weight, before[name]) == (not name.startswith("classifier")), name
