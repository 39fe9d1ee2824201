"""What a push may hold: the student's own files, and nothing of this machine."""

import json

import pytest

from subdistill_hf.hub.files import (
    CARD_FILE,
    CARD_PICTURES,
    PLOT_FILES,
    stale_files,
    student_files,
    weights_identity,
)
from subdistill_hf.reporting.plots import PLOTS

STUDENT = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "example.png", "confusion.png")


@pytest.fixture
def folder(tmp_path):
    """A student among everything that a run, a trainer and a user may leave beside it."""
    for name in (
        *STUDENT,
        "alignments.safetensors",
        "subspaces.safetensors",
        "subspaces.json",
        "subdistill.json",
        "trainer_state.json",
        "report.json",
        "optimizer.pt",
        "training_args.bin",
        "holiday.png",
        "modeling_mine.py",
        "notes.json",
        "teacher.safetensors",
        "runs/kd/model.safetensors",
        "checkpoint-3/model.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "README.md").write_text("# Card\n\n![Confusion matrix](confusion.png)\n", encoding="utf-8")
    return tmp_path


def test_only_the_students_files_are_taken(folder):
    assert set(student_files(folder)) == set(STUDENT)
    assert student_files(folder)["README.md"] == (folder / "README.md").read_bytes()


def test_images_are_those_that_the_card_shows(folder):
    (folder / "README.md").unlink()
    assert set(student_files(folder)) == set(STUDENT) - {"README.md", "confusion.png"}


def test_code_goes_along_with_a_model_that_brings_its_own(folder):
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_mine.Mine"}}))
    assert set(student_files(folder)) == {*STUDENT, "modeling_mine.py"}


def test_weights_in_parts_and_of_adapters_are_weights(tmp_path):
    names = {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    for name in {*names, "model.safetensors.json", "my_model.safetensors", "model-1.safetensors"}:
        (tmp_path / name).write_bytes(b"")
    assert set(student_files(tmp_path)) == names


def write_exports(folder):
    """Folders for devices and another one; returns the names of each."""
    of_onnx = ("onnx/export.json", "onnx/model.onnx", "onnx/transformers_js/onnx/model.onnx")
    of_executorch = ("executorch/export.json", "executorch/model.pte", "executorch/run_executorch.py")
    for name in (*of_onnx, *of_executorch, "other/model.onnx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith("export.json") else name)
    (folder / "onnx" / "notes.txt").touch()
    return of_onnx, of_executorch


def test_folders_for_devices_go_along_and_others_stay(tmp_path):
    of_onnx, of_executorch = write_exports(tmp_path)
    found = student_files(tmp_path)
    assert set(found) == {*of_onnx, *of_executorch}
    assert found["onnx/model.onnx"] == b"onnx/model.onnx"
    (tmp_path / "onnx" / "export.json").unlink()
    assert set(student_files(tmp_path)) == set(of_executorch)


def test_weights_under_another_name_are_others(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"same")
    before = weights_identity(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert weights_identity(tmp_path) != before


@pytest.mark.parametrize("weights", ["model.safetensors", "adapter_model.safetensors"])
def test_a_folder_for_devices_of_other_weights_stays(tmp_path, weights):
    (tmp_path / weights).write_bytes(b"first")
    of_onnx, of_executorch = write_exports(tmp_path)
    for folder in ("onnx", "executorch"):
        (tmp_path / folder / "export.json").write_text(json.dumps({"weights": weights_identity(tmp_path)}))
    assert set(student_files(tmp_path)) == {weights, *of_onnx, *of_executorch}
    (tmp_path / weights).write_bytes(b"second")
    (tmp_path / "executorch" / "export.json").write_text(json.dumps({"weights": weights_identity(tmp_path)}))
    with pytest.warns(UserWarning, match=r"onnx was exported from other weights .* --format onnx again"):
        assert set(student_files(tmp_path)) == {weights, *of_executorch}


# What an earlier push has left

OF_THE_USER = {".gitattributes", "LICENSE", "holiday.png", "modeling_mine.py", "notes.json", "teacher.safetensors"}
OF_THE_USER |= {"mine/model.onnx", "runs/kd/model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"}
MERGED = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
ADAPTER = MERGED - {"model.safetensors"} | {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("there", "pushed", "stale"),
    [
        (ADAPTER, MERGED, ADAPTER - MERGED),
        (MERGED, ADAPTER, MERGED - ADAPTER),
        ({"model-00001-of-00002.safetensors", "model.safetensors.index.json"}, MERGED, None),
        ({"onnx/model_quantized.onnx", "onnx/transformers_js/config.json"}, MERGED | {"onnx/model.onnx"}, None),
        ({"executorch/model.pte", "onnx/export.json"}, MERGED, None),
        ({"processor_config.json"}, MERGED, None),
        ({"preprocessor_config.json"}, {"model.safetensors"}, set()),  # which the student there may be used with
        ({*CARD_PICTURES}, MERGED | {"confusion.png"}, {*CARD_PICTURES} - {"confusion.png"}),
        ({CARD_FILE, *CARD_PICTURES}, MERGED - {CARD_FILE}, set()),  # a checkpoint: the card there stays whole
        (MERGED, set(), set()),
        (
            {"model.onnx", "examples/000-teacher.png", "examples/012.png"},
            {"student.json", "model_quantized.onnx"},
            None,
        ),
        ({"examples/mine.png", "model.safetensors", "onnx/a.onnx"}, {"student.json"}, set()),
    ],
)
def test_files_of_an_earlier_student_are_stale_and_the_users_are_not(there, pushed, stale):
    """`None` stands for all that was there."""
    assert set(stale_files(there | OF_THE_USER, pushed)) == (there if stale is None else stale)


def test_a_folder_that_is_replaced_holds_what_is_pushed_alone():
    there = {"last-checkpoint/adapter_config.json", "last-checkpoint/model.safetensors", "last-checkpoints.txt"}
    pushed = {"model.safetensors", "last-checkpoint/model.safetensors"}
    assert stale_files(there, pushed, "last-checkpoint") == ["last-checkpoint/adapter_config.json"]
    assert stale_files(there, pushed) == []


def test_the_pictures_of_a_card_are_those_that_are_drawn():
    assert list(PLOT_FILES) == list(PLOTS)
