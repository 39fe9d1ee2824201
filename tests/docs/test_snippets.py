"""Every Python and YAML block of the pages runs as it is written, on tiny data; a block that does not says why."""

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
)

from helpers import NAMES, glyph_rows, resnet, save_teacher, subtask_rows, write_image_folder
from pages import FRAGMENT, NOT_RUN, blocks
from subdistill_hf import SubDistillConfig, SubDistillTrainer
from subdistill_hf.benchmark.config import read_benchmark
from subdistill_hf.benchmark.jobs import untuned_jobs
from subdistill_hf.benchmark.training import config_of
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.family.subtasks import experts_of

START, LOOP, METRICS = "docs/start.md", "docs/how_to/training_loop.md", "docs/how_to/metrics.md"


def tiny_resnet(classes, widths):
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=widths[0], hidden_sizes=widths, depths=[1, 1, 1, 1], layer_type="basic", num_labels=classes
        )
    )


class CountSteps(TrainerCallback):
    """A user's callback."""

    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def two_models():
    return {"student": tiny_resnet(3, [4, 4, 8, 8]), "teacher": tiny_resnet(12, [8, 8, 12, 16])}


def own_data():
    """What the pages say is the user's own: a dataset and a collator."""
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
        "dataset": [{"picture": image, "kind": index % 3} for index, image in enumerate(images)],
        "collate": collate,
    }


def trainer_of(kind, folder, **options):
    mine = two_models() | own_data()
    return kind(
        model=mine["student"],
        teacher=mine["teacher"],
        teacher_class_ids=[3, 7, 11],
        args=SubDistillConfig(output_dir=str(folder), report_to="none", use_cpu=True, **options),
        train_dataset=mine["dataset"],
        data_collator=mine["collate"],
    )


def for_the_start(folder):
    save_teacher(folder / "dice-expert", resnet(NAMES))
    glyph_rows()[0]["img"].save(folder / "dice-expert" / "example.png")
    return two_models() | own_data() | {"callback": CountSteps()}


def for_own_images(folder):
    write_image_folder(folder / "my-images")
    return {}


def for_the_loop(_folder):
    batches = [{"pixel_values": torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))}] * 8
    models = two_models()
    models["teacher"].eval()
    models["student"].train()
    return models | {"batches": batches}


def for_metrics(folder):
    save_teacher(folder / "dice-expert", resnet(NAMES))
    return {"images": subtask_rows(4, "test").rename_columns({"img": "image", "fine_label": "label"})}


def for_several_processes(_folder):
    return {"trainer": object()}


class StopAtOnce(TrainerCallback):
    """Ends a training after its first step, as an interruption does."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def for_resuming(folder):
    interrupted = trainer_of(SubDistillTrainer, folder, max_steps=2, save_steps=1)
    interrupted.add_callback(StopAtOnce())
    interrupted.train()
    assert interrupted.state.global_step == 1
    return {"trainer": trainer_of(SubDistillTrainer, folder, max_steps=2, save_steps=1)}


SURROUNDINGS = {
    "README.md": for_the_start,
    START: for_the_start,
    "docs/how_to/own_images.md": for_own_images,
    LOOP: for_the_loop,
    METRICS: for_metrics,
    "docs/how_to/several_processes.md": for_several_processes,
    "docs/how_to/resume.md": for_resuming,
}
"""What a reader of a page has already, by page."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the Python blocks of a page in one namespace, which is returned."""
    monkeypatch.chdir(tmp_path)

    def run_blocks(page):
        names = SURROUNDINGS[page](tmp_path)
        for block in blocks("python", page):
            if not block.note.startswith(NOT_RUN):
                exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
        return names

    return run_blocks


TESTED_BELOW = {START, LOOP, METRICS}


@pytest.mark.parametrize("page", sorted(set(SURROUNDINGS) - TESTED_BELOW))
def test_the_python_of_a_page_runs(page, run):
    run(page)


def test_no_page_with_python_is_left_out():
    pages = {block.page for block in blocks("python") if not block.note.startswith(NOT_RUN)}
    assert pages == {*SURROUNDINGS, "CONTRIBUTING.md"}  # the latter is run in test_contributing.py


def test_a_block_that_is_not_run_says_why():
    for block in blocks():
        if block.note:
            assert block.note.startswith((NOT_RUN, FRAGMENT)), str(block)
            assert len(block.note.partition(": ")[2]) > 10, str(block)


def test_ten_lines_distil_between_the_users_own_models(run, tmp_path, capsys):
    before = two_models()["student"].state_dict()
    names = run(START)
    assert NAMES[0] in capsys.readouterr().out  # the pipeline's answer
    assert names["callback"].steps == 20
    assert len(names["trainer"].pairs) == 4
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "expert" / "student").state_dict()
    assert not torch.equal(saved["classifier.1.weight"], before["classifier.1.weight"])
    for name, value in names["student"].state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


def test_overriding_loss_terms_adds_a_logged_term_and_a_loop_without_the_trainer_learns(run, tmp_path):
    names = run(LOOP)
    trainer = trainer_of(names["WithEntropy"], tmp_path, max_steps=2, logging_steps=1)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in logged:
        parts = [value for name, value in entry.items() if name.startswith("loss_")]
        assert entry["loss_entropy"] < 0  # minus an entropy
        assert len(parts) == 6
        assert sum(parts) == pytest.approx(entry["loss"], rel=1e-3)
    assert len(logged) == 2

    assert names["subspace"].dimensions == 8
    untrained = SURROUNDINGS[LOOP](tmp_path)["student"]
    for (name, trained), before in zip(names["student"].named_parameters(), untrained.parameters(), strict=True):
        assert not torch.equal(trained, before), name


def test_the_metrics_measure_a_students_folder(run, capsys):
    names = run(METRICS)
    assert list(names["measured"]["per_class_accuracy"]) == list(NAMES)
    assert 0 <= names["measured"]["expected_calibration_error"] <= 1
    assert NAMES[0] in capsys.readouterr().out


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in blocks("yaml")])
def test_a_benchmark_of_a_page_is_one(block, tmp_path):
    code = block.code
    if block.note.startswith(FRAGMENT):  # the rest of the file is of no matter here
        code += "name: part\nmethods: {kd: }\nsubtasks: [superclass:dice]\nstudents: [vit]\n"
        code += "train_images: [5]\nvalidation_images: 5\nseeds: [0]\ntraining: {max_steps: 1}\n"
    path = tmp_path / "dice.yaml"
    path.write_text(code, encoding="utf-8")
    if code.startswith("# experts.yaml"):
        experts = experts_of(TaskOptions(teacher="glyphs-resnet", dataset="glyphs-100"), [str(path)])
        assert [expert.name for expert in experts] == ["dice", "my-two"]
        return
    jobs = untuned_jobs(read_benchmark(path))
    methods = {config_of(job, str(tmp_path)).method for job in jobs}
    assert methods == ({"kd"} if block.note else {"kd", "fitnet", "subdistill"})


def test_the_pages_have_no_other_language():
    assert {block.language for block in blocks()} <= {"python", "bash", "yaml", "diff", "js"}
    assert all(block.note.startswith(NOT_RUN) for block in blocks("js"))
