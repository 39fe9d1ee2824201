"""What a push may hold: the student's own files, and nothing of this machine."""

import json
from pathlib import Path

import pytest

from subdistill_hf.hub.files import UncleanError, check_clean, student_files

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


@pytest.mark.parametrize("name", ["README.md", "config.json", "modeling_mine.py"])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token = hf_" + "abcDEF0123" * 3, "an access token"),
        ("read from {folder}/model.safetensors", "a path of this machine"),
        ("read from {folder}", "a path of this machine"),
        ("read from {home}/data", "a path of this machine"),
        ("HF_TOKEN was 'my own secret'", "an access token"),
    ],
)
def test_texts_with_tokens_or_paths_of_this_machine_are_refused(tmp_path, monkeypatch, name, text, what):
    monkeypatch.setenv("HF_TOKEN", "my own secret")
    content = text.format(folder=tmp_path, home=Path.home()).encode()
    with pytest.raises(UncleanError, match=f"{name} holds {what}.*: take it out"):
        check_clean({"fine.md": b"nothing", name: content}, tmp_path)


def test_an_adapter_needs_a_base_that_others_have(tmp_path):
    (tmp_path / "base").mkdir()
    local, remote = (json.dumps({"base_model_name_or_path": base}).encode() for base in (f"{tmp_path}/base", "a/b"))
    with pytest.raises(
        UncleanError, match=r"a folder of this machine, .*base, which nobody else has: save the student"
    ):
        check_clean({"adapter_config.json": local}, tmp_path)
    check_clean({"adapter_config.json": remote}, tmp_path)


def test_what_only_looks_like_a_secret_is_fine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my own secret")
    monkeypatch.chdir("/")
    texts = ["hf_hub_download", f"{tmp_path}-other", "/usr/share/x", "from the model of user/name"]
    check_clean({"README.md": "\n".join(texts).encode(), "model.safetensors": b"my own secret"}, tmp_path)
