"""An interrupted run resumes exactly where it was, or is refused when it would not be the same run."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers import (
    assert_equal_weights,
    processor,
    resnet,
    teacher_resnet,
    trainer,
    views,
    vit,
    weights_of,
)
from programs import kill_when
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import DistillationError
from subdistill_hf.training.checkpoints import ALIGNMENTS_FILE, STATE_FILE, last_complete_checkpoint
from subdistill_hf.training.optimizers import initial_rate

STEPS = 24


def long_run(folder, **options):
    """Whatever could go astray on resuming: dropout, random views, an optimizer with state, a schedule, batch norm
    in the teacher, checkpoints in the middle of epochs."""
    student = vit(hidden=16, layers=2, hidden_dropout_prob=0.2)
    images = views(augmentation="pad_crop", flip=True, seed=5)
    parts = {"data_collator": ViewCollator(processor(), processor(40)), "fit_dataset": views()}
    options = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 4, "layer_weight": 0.1} | options
    return trainer(folder, student, teacher_resnet(), train=images, parts=parts | options.pop("parts", {}), **options)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


class Slowly(TrainerCallback):
    """Leaves time to be killed in."""

    def on_step_end(self, args, state, control, **given):
        time.sleep(0.1)


def test_a_run_that_is_over_stays_as_it_was_also_within_an_epoch(tmp_path):
    whole = long_run(tmp_path, max_steps=4, save_steps=2, per_device_train_batch_size=9)
    whole.train()  # 24 images: the second epoch has two more steps
    again = long_run(tmp_path, max_steps=4, save_steps=2, per_device_train_batch_size=9)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert_equal_weights(weights_of(again.model), weights_of(whole.model))


KILLED = """
import sys
from training.test_resume import Slowly, long_run
run = long_run(sys.argv[1])
run.add_callback(Slowly())
run.train()
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = long_run(tmp_path_factory.mktemp("whole"))
    run.train()
    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run whose process got SIGKILL in the middle."""
    folder = tmp_path_factory.mktemp("killed")
    printed = tmp_path_factory.mktemp("printed")
    kill_when(lambda: "checkpoint-8" in (last_complete_checkpoint(folder) or ""), KILLED, folder, printed=printed)
    return folder


def test_a_run_that_was_killed_resumes_to_the_weights_of_the_uninterrupted_run(uninterrupted, killed):
    resumed = long_run(killed)
    before = weights_of(resumed.model)
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            steps.append(state.global_step)

    resumed.add_callback(Count())
    resumed.train(resume_from_checkpoint=True)
    assert steps == list(range(9, STEPS + 1)) or steps == list(range(13, STEPS + 1))
    assert resumed.state.global_step == STEPS
    assert_equal_weights(weights_of(resumed.model), weights_of(uninterrupted.model))
    assert_equal_weights(
        weights_of(resumed.distillation.alignments), weights_of(uninterrupted.distillation.alignments)
    )
    changed = weights_of(resumed.model)
    assert any(not torch.equal(changed[name], value) for name, value in before.items())
    assert losses(resumed) == losses(uninterrupted)


@pytest.fixture
def interrupted(tmp_path, uninterrupted):
    """The checkpoints of the whole run up to step 12."""
    for step in (4, 8, 12):
        name = f"checkpoint-{step}"
        shutil.copytree(Path(uninterrupted.args.output_dir) / name, tmp_path / name)
    return tmp_path


def no_state(checkpoint):
    (checkpoint / "trainer_state.json").unlink()


def half_a_state(checkpoint):
    text = (checkpoint / "trainer_state.json").read_text(encoding="utf-8")
    (checkpoint / "trainer_state.json").write_text(text[: len(text) // 2], encoding="utf-8")


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize("cut", [no_state, half_a_state, empty])
def test_a_checkpoint_whose_writing_was_cut_short_is_passed_over(interrupted, cut):
    assert last_complete_checkpoint(interrupted) == str(interrupted / "checkpoint-12")
    cut(interrupted / "checkpoint-12")
    (interrupted / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(interrupted) == str(interrupted / "checkpoint-8")


def test_a_run_resumes_from_before_the_cut_and_still_ends_the_same(interrupted, uninterrupted):
    no_state(interrupted / "checkpoint-12")
    (interrupted / "checkpoint-12" / "model.safetensors").write_bytes(b"half a file")
    resumed = long_run(interrupted)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(weights_of(resumed.model), weights_of(uninterrupted.model))
    assert last_complete_checkpoint(interrupted) == str(interrupted / f"checkpoint-{STEPS}")


def test_a_named_checkpoint_is_the_one_that_is_resumed(interrupted, uninterrupted):
    resumed = long_run(interrupted)
    seen = []

    class First(TrainerCallback):
        def on_train_begin(self, args, state, control, **given):
            seen.append(state.global_step)

    resumed.add_callback(First())
    resumed.train(resume_from_checkpoint=str(interrupted / "checkpoint-4"))
    assert seen == [4]
    assert_equal_weights(weights_of(resumed.model), weights_of(uninterrupted.model))


def test_resuming_reads_the_subspaces_and_fits_nothing(interrupted):
    class Untouchable(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            raise AssertionError("the images were read to fit subspaces")

    resumed = long_run(interrupted, parts={"fit_dataset": Untouchable()})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == STEPS


def test_a_student_from_model_init_resumes_with_the_rotations_of_the_checkpoint(tmp_path):
    def run(name):
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
        return trainer(tmp_path / name, parts={"model_init": lambda: resnet()}, **options)

    whole = run("whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    part = run("part")
    part.train(resume_from_checkpoint=True)
    assert_equal_weights(weights_of(part.distillation), weights_of(whole.distillation))


# Refused


def another_teacher(folder):
    return trainer(folder, vit(hidden=16, layers=2), teacher_resnet(seed=9))


def the_teacher_trained_further(folder):
    teacher = teacher_resnet()
    with torch.no_grad():
        teacher.classifier[1].bias[0] += 1e-4
    return trainer(folder, vit(hidden=16, layers=2), teacher)


def variant(**options):
    return lambda folder: long_run(folder, **options)


@pytest.mark.parametrize(
    ("other", "part", "values"),
    [
        (another_teacher, "teacher", ["ResNetForImageClassification"]),
        (the_teacher_trained_further, "teacher", ["digest"]),
        (
            variant(layers=["resnet.encoder.stages.1=vit.layers.0"]),
            "layers",
            ["resnet.encoder.stages.1=vit.layers.0", "resnet.encoder.stages.3=vit.layers.1"],
        ),
        (variant(centring="mean"), "method", ["'centring': 'mean'", "'centring': 'batch_norm'"]),
        (variant(basis="pca"), "method", ["'basis': 'pca'", "'basis': 'prca'"]),
        (variant(method="kd"), "layers", ["[]"]),
        (variant(layer_weight=0.2), "weights", ["'layer': 0.2", "'layer': 0.1"]),
        (variant(parts={"teacher_class_ids": [10, 11, 13]}), "classes", ["[10, 11, 13]", "[10, 11, 12]"]),
    ],
    ids=["teacher", "teacher's weights", "layers", "centring", "basis", "method", "weights", "classes"],
)
def test_another_run_is_not_resumed(interrupted, other, part, values):
    before = sorted(path.relative_to(interrupted) for path in interrupted.rglob("*"))
    run = other(interrupted)
    with pytest.raises(DistillationError) as refused:
        run.train(resume_from_checkpoint=True)
    assert f"made with another choice of {part}: " in str(refused.value)
    assert "Resume with the same, or start a new run in another folder" in str(refused.value)
    for value in values:
        assert value in str(refused.value)
    assert sorted(path.relative_to(interrupted) for path in interrupted.rglob("*")) == before


def test_another_student_is_not_resumed(interrupted):
    run = trainer(interrupted, vit(hidden=16, layers=3), teacher_resnet(), layer_weight=0.1)
    with pytest.raises(DistillationError, match="made with another choice of student"):
        run.train(resume_from_checkpoint=True)


def test_a_folder_without_a_checkpoint_of_ours_is_not_resumed(tmp_path, interrupted):
    run = long_run(tmp_path / "nothing")
    with pytest.raises(DistillationError, match=r"there is no complete checkpoint in .*nothing"):
        run.train(resume_from_checkpoint=True)
    (interrupted / "checkpoint-12" / STATE_FILE).unlink()
    with pytest.raises(
        DistillationError, match=f"checkpoint-12 has no {STATE_FILE}: it is not a checkpoint of SubDis"
    ):
        long_run(interrupted).train(resume_from_checkpoint=True)


def test_a_checkpoint_holds_what_the_run_was(interrupted, uninterrupted):
    state = json.loads((interrupted / "checkpoint-12" / STATE_FILE).read_text(encoding="utf-8"))
    assert state["layers"] == [str(pair) for pair in uninterrupted.pairs]
    assert state["teacher"]["digest"] == uninterrupted.teacher.digest
    assert str(interrupted) not in json.dumps(state)
    saved = load_file(interrupted / "checkpoint-12" / ALIGNMENTS_FILE)
    assert saved.keys() == weights_of(uninterrupted.distillation.alignments).keys()


# In another memory format, and with other arguments


def convolutional_run(folder, channels_last, **options):
    student, teacher = resnet(widths=(16, 16, 16, 20)), teacher_resnet(widths=(16, 20, 28, 36))
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3} | options
    return trainer(folder, student, teacher, channels_last=channels_last, **options)


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_resumes_in_another_memory_format(tmp_path, before, after):
    whole = convolutional_run(tmp_path / "whole", before)
    whole.train()
    resumed = convolutional_run(tmp_path / "resumed", after)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(resumed)[-3:] == pytest.approx(losses(whole)[-3:], rel=1e-3)
    assert_equal_weights(weights_of(resumed.model), weights_of(whole.model), tolerance=1e-3)


class Stacked(torch.nn.Module):
    """A student that is no model of transformers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 3, 2))
        self.head = torch.nn.Linear(12, 3)

    def forward(self, pixel_values):
        return self.head(self.blocks(pixel_values).mean(dim=(2, 3)))


def test_a_student_that_is_no_model_of_transformers_is_saved_and_resumed(tmp_path):
    options = {"layers": ["resnet.encoder.stages.1=blocks"], "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "channels_last": True}
    teacher = teacher_resnet(widths=(16, 20, 28, 36))
    whole, resumed = (trainer(tmp_path / name, Stacked(), teacher, **options) for name in ("whole", "resumed"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_equal_weights(weights_of(resumed.model), weights_of(whole.model), tolerance=0)
    saved = load_file(Path(whole.state.best_model_checkpoint) / "model.safetensors")
    assert_equal_weights(saved, whole.model.state_dict(), tolerance=0)


def test_a_run_does_not_go_on_to_an_end_before_the_checkpoint(tmp_path):
    convolutional_run(tmp_path, None).train()  # 24 images, 3 steps an epoch
    for options, asked in (
        ({"max_steps": 5}, "max_steps=5"),
        ({"max_steps": -1, "num_train_epochs": 1}, "num_train_e"),
    ):
        run = convolutional_run(tmp_path, None, **options)
        with pytest.raises(DistillationError, match=rf"the checkpoint is of step 6, epoch 2, later than {asked}"):
            run.train(resume_from_checkpoint=True)


def test_another_learning_rate_does_not_count_and_is_said(tmp_path, recwarn):
    convolutional_run(tmp_path, None).train()
    run = convolutional_run(tmp_path, None, max_steps=7)
    run.train(resume_from_checkpoint=True)
    assert not [warning for warning in recwarn if "learning rate" in str(warning.message)]
    run = convolutional_run(tmp_path, None, max_steps=8, learning_rate=5e-3)
    with pytest.warns(
        UserWarning, match=r"the learning rate stays that of the checkpoint, which began with 0\.001: for 0\.005 start"
    ):
        run.train(resume_from_checkpoint=True)
    assert initial_rate(run.optimizer, run.args) == 1e-3


def test_of_an_optimiser_of_the_user_the_learning_rate_is_not_compared(tmp_path, recwarn):
    parts = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    convolutional_run(tmp_path, None, parts=parts).train()
    convolutional_run(tmp_path, None, parts=parts, max_steps=8).train(resume_from_checkpoint=True)
    assert not [warning for warning in recwarn if "learning rate" in str(warning.message)]
