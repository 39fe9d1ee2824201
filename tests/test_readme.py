"""The README's code runs as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification, TrainerCallback

from helpers import NAMES, processor, resnet, save_teacher, subtask_rows
from subdistill_hf.benchmark.config import read_benchmark
from subdistill_hf.benchmark.jobs import untuned_jobs
from subdistill_hf.benchmark.training import config_of
from subdistill_hf.cli import COMMANDS
from subdistill_hf.config.defaults import DATASET_OF_HUB_TEACHERS, STUDENT_OF_HUB_TEACHERS
from subdistill_hf.models.students import build_student
from subdistill_hf.training.trainer import SubDistillTrainer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def code_after(marker: str, language: str = "python") -> str:
    """The first block of a language after a marker."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README[README.index(marker) :], flags=re.DOTALL)
    return blocks[0]


def tiny_resnet(classes: int, widths: list[int]) -> ResNetForImageClassification:
    config = ResNetConfig(
        embedding_size=widths[0], hidden_sizes=widths, depths=[1, 1, 1, 1], layer_type="basic", num_labels=classes
    )
    return ResNetForImageClassification(config)


class CountSteps(TrainerCallback):
    """A user's callback."""

    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def surroundings() -> dict[str, object]:
    """What the README says is the user's own: two models, a dataset, a collator, a callback."""
    torch.manual_seed(0)
    images = torch.rand(12, 3, 32, 32)

    def collate(rows):
        pixels = torch.stack([row["picture"] for row in rows])
        return {
            "pixel_values": pixels * 2 - 1,
            "teacher_pixel_values": torch.nn.functional.interpolate(pixels, (64, 64)),
            "labels": torch.tensor([row["kind"] for row in rows]),
        }

    return {
        "student": tiny_resnet(3, [4, 4, 8, 8]),
        "teacher": tiny_resnet(12, [8, 8, 12, 16]),
        "dataset": [{"picture": image, "kind": index % 3} for index, image in enumerate(images)],
        "collate": collate,
        "callback": CountSteps(),
    }


def test_ten_lines_distil_between_the_users_own_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = surroundings()
    before = {name: value.clone() for name, value in names["student"].state_dict().items()}

    exec(code_after("<!-- example: start -->"), names)

    assert names["callback"].steps == 20
    assert len(names["trainer"].pairs) == 4
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "expert" / "student").state_dict()
    assert not torch.equal(saved["classifier.1.weight"], before["classifier.1.weight"])
    for name, value in names["student"].state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


def test_overriding_loss_terms_adds_a_logged_term(tmp_path):
    names = {"SubDistillTrainer": SubDistillTrainer}
    exec(code_after("To add a loss of your own"), names)
    mine = surroundings()
    from subdistill_hf import SubDistillConfig

    trainer = names["WithEntropy"](
        model=mine["student"],
        teacher=mine["teacher"],
        teacher_class_ids=[3, 7, 11],
        args=SubDistillConfig(output_dir=str(tmp_path), max_steps=2, logging_steps=1, report_to="none", use_cpu=True),
        train_dataset=mine["dataset"],
        data_collator=mine["collate"],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in logged:
        parts = [value for name, value in entry.items() if name.startswith("loss_")]
        assert entry["loss_entropy"] < 0  # minus an entropy
        assert len(parts) == 6
        assert sum(parts) == pytest.approx(entry["loss"], rel=1e-3)
    assert len(logged) == 2


def test_the_metrics_measure_a_students_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_teacher(tmp_path / "dice-expert", resnet(NAMES))
    images = subtask_rows(4, "test").rename_columns({"img": "image", "fine_label": "label"})
    names = {"images": images}
    exec(code_after("<!-- metrics: start -->"), names)
    assert list(names["measured"]["per_class_accuracy"]) == list(NAMES)
    assert 0 <= names["measured"]["expected_calibration_error"] <= 1
    assert NAMES[0] in capsys.readouterr().out


def test_the_recipes_of_the_readme_can_be_built():
    section = README[README.index("### Teachers and students") : README.index("Tested as teachers")]
    new = [recipe for line in section.splitlines() if "| a new" in line for recipe in re.findall(r"`([^`]+)`", line)]
    recipes = [recipe for recipe in new if ":" in recipe or recipe.startswith("timm/")]
    assert len(recipes) == 6
    for recipe in recipes:
        assert build_student(recipe, NAMES, processor()).labels == dict(enumerate(NAMES))


def test_the_benchmark_of_the_readme_is_one(tmp_path):
    path = tmp_path / "dice.yaml"
    path.write_text(code_after("### Compare methods on your own classes", "yaml"), encoding="utf-8")
    jobs = untuned_jobs(read_benchmark(path))
    assert {config_of(job, str(tmp_path)).method for job in jobs} == {"kd", "fitnet", "subdistill"}


def test_the_commands_of_the_readme_are_understood():
    """Every `subdistill distill`, `inspect`, `analyse` and `push` line parses, with its continuation lines."""
    commands = re.findall(
        r"^subdistill (distill|inspect|analyse|push) (.*?)(?<!\\)$", README, flags=re.MULTILINE | re.DOTALL
    )
    assert {command for command, _ in commands} == {"distill", "inspect", "analyse", "push"}
    for command, text in commands:
        options = shlex.split(text.replace("\\\n", " "))
        given = COMMANDS[command].parse(options)
        if command == "push":
            assert (given["repo"], given["folder"]) == ("dice-expert", "dice-expert")
            continue
        assert f"--classes {given['classes'][0]}" in text


def test_the_choices_for_a_teacher_of_the_hub_are_those_of_the_readme():
    table = README.partition("### A teacher of the Hub")[2].partition("###")[0]
    for name, (value, reason) in (DATASET_OF_HUB_TEACHERS | STUDENT_OF_HUB_TEACHERS).items():
        value = " ".join(value) if isinstance(value, tuple) else value
        row = next(line for line in table.splitlines() if line.startswith(f"| `--{name}` |"))
        assert row.split("|")[2].strip().strip("`") == str(value)
        assert reason in row
