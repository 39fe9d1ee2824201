"""What checkpoints and saved students hold, and that the best one is restored with its layer losses."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, EarlyStoppingCallback

from helpers import assert_equal_weights, processor, resnet, trainer, views, vit, weights_of
from subdistill_hf.training.checkpoints import ALIGNMENTS_FILE
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
