"""What checkpoints and saved students hold, and that the best one is restored with its layer losses."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, EarlyStoppingCallback

from helpers import assert_equal_weights, config, processor, resnet, trainer, views, vit, weights_of
from subdistill_hf.errors import DistillationError
from subdistill_hf.training.checkpoints import (
    ALIGNMENTS_FILE,
    INCOMPLETE_FILE,
    STATE_FILE,
    last_complete_checkpoint,
    missing_files,
    without_earlier,
)
from subdistill_hf.training.trainer import SubDistillTrainer
from trainings import BEST_IS_KEPT, Scripted

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@pytest.mark.parametrize("student", [resnet, vit])  # transformers writes a ViT's weights under other names
def test_the_best_checkpoint_is_restored_with_its_rotations(tmp_path, student):
    run = trainer(
        tmp_path,
        student(),
        train=views(16),
        max_steps=6,
        learning_rate=1e-2,
        **BEST_IS_KEPT,
        metric_for_best_model="score",
        parts={"compute_metrics": Scripted(0.1, 0.9, 0.2)},
    )
    run.train()
    best, last = tmp_path / "checkpoint-4", tmp_path / "checkpoint-6"
    assert run.state.best_model_checkpoint == str(best)
    for checkpoint, same in ((best, True), (last, False)):
        saved = AutoModelForImageClassification.from_pretrained(checkpoint).state_dict()
        rotations = load_file(checkpoint / ALIGNMENTS_FILE)
        for module, weights in ((run.model, saved), (run.distillation.alignments, rotations)):
            assert all(torch.equal(value, weights[name]) for name, value in weights_of(module).items()) == same


def test_the_best_of_a_student_with_a_head_of_its_own_is_loaded(tmp_path):
    student = resnet()
    student.classifier[1] = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(20, 3))
    run = trainer(
        tmp_path,
        student,
        max_steps=4,
        **BEST_IS_KEPT,
        metric_for_best_model="score",
        parts={"compute_metrics": Scripted(0.9, 0.1)},
    )
    run.train()
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert_equal_weights(weights_of(run.model), best)


def test_early_stopping_stops(tmp_path):
    run = trainer(
        tmp_path,
        max_steps=20,
        **BEST_IS_KEPT,
        metric_for_best_model="score",
        parts={
            "compute_metrics": Scripted(0.5, 0.4, 0.3),
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)],
        },
    )
    run.train()
    assert run.state.global_step == 6
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_nothing_is_pickled_but_the_trainers_optimizer_schedule_and_random_state(tmp_path):
    run = trainer(
        tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2, parts={"processing_class": processor()}
    )
    run.train()
    run.save_model(str(tmp_path / "student"))
    checkpoint = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert {name for name in checkpoint if "." + name.rpartition(".")[2] in PICKLES} == {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
    assert {"model.safetensors", ALIGNMENTS_FILE, "subspaces.safetensors", "preprocessor_config.json"} <= checkpoint
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert "training_args.bin" not in checkpoint


class Twice(torch.nn.Module):
    """A student whose block has two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Conv2d(8, 8, 3, 2))
        self.again, self.head = self.blocks[1], torch.nn.Linear(8, 3)

    def forward(self, pixel_values):
        return self.head(self.again(self.blocks(pixel_values)).mean(dim=(2, 3)))


def test_a_block_with_two_names_is_saved_restored_and_resumed(tmp_path):
    options = {"layers": ["resnet.encoder.stages.1=blocks.0"], "max_steps": 4} | BEST_IS_KEPT
    whole, resumed = (trainer(tmp_path / name, Twice(), **options) for name in ("whole", "resumed"))
    whole.train()
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert torch.equal(saved["again.weight"], saved["blocks.1.weight"])
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_equal_weights(weights_of(resumed.model), weights_of(whole.model))
    assert resumed.model.again is resumed.model.blocks[1]
    assert resumed.model.again.weight is resumed.model.blocks[1].weight


class KilledError(Exception):
    pass


@pytest.mark.parametrize("place", ["_save", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_in_place_of_an_earlier_runs_is_never_a_mixture_of_both(tmp_path, place):
    class Dies(SubDistillTrainer):
        pass

    def die(*given, **options):
        raise KilledError

    setattr(Dies, place, die)
    options = {"method": "kd", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(KilledError):
        trainer(tmp_path, trainer_class=Dies, learning_rate=1e-4, **options).train()
    assert (tmp_path / "checkpoint-1" / STATE_FILE).is_file()
    assert "trainer_state.json" in missing_files(tmp_path / "checkpoint-1")
    assert last_complete_checkpoint(tmp_path) is None


def test_nothing_of_an_earlier_run_stays_in_a_checkpoint(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    assert (tmp_path / "checkpoint-1" / ALIGNMENTS_FILE).is_file()
    trainer(tmp_path, method="kd", **options).train()
    assert not (tmp_path / "checkpoint-1" / ALIGNMENTS_FILE).exists()
    again = trainer(tmp_path, method="kd", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_that_transformers_calls_incomplete_is_passed_over(tmp_path):
    run = trainer(tmp_path, method="kd", max_steps=2, save_strategy="steps", save_steps=1)
    run.train()
    (tmp_path / "checkpoint-2" / INCOMPLETE_FILE).write_text("in progress")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    with pytest.raises(DistillationError, match=r"has no end of its writing \(checkpoint-is-incomplete.txt\): its"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    without_earlier(str(tmp_path), 2, run.args)  # as transformers does it, which has written its file by then
    assert [path.name for path in (tmp_path / "checkpoint-2").iterdir()] == [INCOMPLETE_FILE]


def test_a_process_takes_away_its_own_random_state_and_others_may_have_written_theirs(tmp_path):
    args = config(tmp_path)
    for name in ("trainer_state.json", "model.safetensors", "rng_state.pth", "rng_state_1.pth"):
        (tmp_path / "checkpoint-3").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-3" / name).write_text("")
    assert without_earlier(str(tmp_path), 3, args) == tmp_path / "checkpoint-3"
    assert [path.name for path in (tmp_path / "checkpoint-3").iterdir()] == ["rng_state_1.pth"]
