"""Students of timm's architectures: their width and size are in their configuration."""

import pytest
import torch
from safetensors.torch import load_file

from helpers import NAMES, processor
from subdistill_hf.models.adapters import replace_head
from subdistill_hf.models.loading import input_size_of, load_teacher
from subdistill_hf.models.students import build_student


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("timm/mobilenetv4_conv_small:width=0.5", {"architecture": "mobilenetv4_conv_small_050"}),
        ("timm/mobilenetv2_140:width=0.25", {"architecture": "mobilenetv2_035"}),
        ("timm/mobilenetv3_small_050:width=2", {"architecture": "mobilenetv3_small_100"}),
        ("timm/resnet18:width=0.25,image=64", {"model_args": {"channels": [16, 32, 64, 128]}}),
        ("timm/test_convnext:width=0.5,image=64", {"model_args": {"dims": [16, 16, 24, 32]}}),
        (
            "timm/test_vit:width=0.5,image=64",
            {"model_args": {"embed_dim": 32, "num_heads": 1, "img_size": 64}},
        ),
    ],
)
def test_the_width_of_a_timm_student_is_in_its_configuration(recipe, expected):
    config = build_student(recipe, NAMES, processor()).model.config
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_timm_student_of_another_size_sees_the_whole_image():
    usual = build_student("timm/test_resnet", NAMES, processor()).processor
    smaller = build_student("timm/test_resnet:image=64", NAMES, processor()).processor
    assert (usual.data_config["input_size"], usual.data_config["crop_pct"]) == ((3, 160, 160), 0.95)
    assert (smaller.data_config["input_size"], smaller.data_config["crop_pct"]) == ((3, 64, 64), 1.0)


def test_a_timm_student_can_teach(tmp_path):
    build_student("timm/test_resnet:image=64", NAMES, processor()).model.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    assert teacher.labels == dict(enumerate(NAMES))
    assert input_size_of(teacher.processor) == (64, 64)


def test_a_trained_timm_student_comes_from_the_hub_with_its_tag(hub, tmp_path):
    names = [f"class {number}" for number in range(7)]
    trained = build_student("timm/test_resnet:image=64", names, processor()).model
    trained.save_pretrained(tmp_path / "trained")
    hub.put("timm/test_resnet.mine", tmp_path / "trained")
    answer = hub.answer(
        """
        import json, sys
        from subdistill_hf import build_student

        student = build_student("timm/test_resnet.mine", ["a", "b", "c"], None)
        student.model.save_pretrained(sys.argv[1])
        print(json.dumps({"labels": student.labels, "from": [student.hub_id, student.revision],
                          "size": student.processor.data_config["input_size"]}))
        """,
        tmp_path / "student",
    )
    assert answer["labels"] == {"0": "a", "1": "b", "2": "c"}
    assert answer["from"] == ["timm/test_resnet.mine", hub.commits("timm/test_resnet.mine")[-1].oid]
    assert answer["size"] == [3, 64, 64]
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("trained", "student"))
    different = {name for name in before if before[name].shape != after[name].shape}
    assert len(different) == 2  # weight and bias of the head
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - different)


def test_a_timm_model_that_was_saved_gets_the_names_of_its_new_classes(tmp_path):
    """Its file has its names under two keys, of which transformers reads the one that it does not change."""
    build_student("timm/test_vit:width=0.5,image=64", ["old", "older"], processor()).model.save_pretrained(
        tmp_path / "1"
    )
    for step, names in enumerate((NAMES, ["one", "other"], ["new", "newer"]), 1):  # some are as many as before
        build_student(str(tmp_path / str(step)), names, processor()).model.save_pretrained(tmp_path / str(step + 1))
        assert load_teacher(str(tmp_path / str(step + 1))).labels == dict(enumerate(names))
    model = load_teacher(str(tmp_path / "1")).model
    replace_head(model, NAMES)
    model.save_pretrained(tmp_path / "replaced")
    assert load_teacher(str(tmp_path / "replaced")).labels == dict(enumerate(NAMES))
