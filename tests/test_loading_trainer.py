"""Batches whose pixels are made on the device are the batches that the loader makes."""

import pytest
import torch

from helpers import processor, trainer, views
from subdistill_hf import batches, loading_trainer
from subdistill_hf.views import ViewCollator

GPU = torch.cuda.is_available()


def divide(monkeypatch, always):
    """Leave the work to whatever device there is, or never."""
    how = batches.divided
    for module in (batches, loading_trainer):
        monkeypatch.setattr(
            module, "divided", lambda collate, device: how(collate, torch.device("cuda" if always else "cpu"))
        )


def trained(folder, monkeypatch, always, cached, teacher_size):
    seen = []
    divide(monkeypatch, always)
    unfinished = ViewCollator.finish
    monkeypatch.setattr(ViewCollator, "finish", lambda self, batch: seen.append(set(batch)) or unfinished(self, batch))
    run = trainer(
        folder,
        train=views(augmentation="pad_crop", views=2 if cached else None),
        parts={"data_collator": ViewCollator(processor(), processor(teacher_size, 0.4))},
        use_cpu=not GPU,
        teacher_cache="2" if cached else "off",
        teacher_cache_dir=str(folder / "targets"),
        max_steps=4,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=4,
    )
    run.train()
    return [entry for entry in run.state.log_history if "loss" in entry or "eval_loss" in entry], seen


@pytest.mark.parametrize("cached", [False, True], ids=["teacher in every step", "cached"])
@pytest.mark.parametrize("teacher_size", [32, 40])
def test_a_training_whose_pixels_are_made_on_the_device_is_the_training(tmp_path, monkeypatch, cached, teacher_size):
    with monkeypatch.context() as patch:
        expected, none = trained(tmp_path / "loader", patch, False, cached, teacher_size)
    with monkeypatch.context() as patch:
        found, seen = trained(tmp_path / "device", patch, True, cached, teacher_size)
    assert not none
    assert seen
    assert all("images" in names and "pixel_values" not in names for names in seen)
    if GPU:  # rounds a resized pixel's byte the other way now and then, which may turn a direction of a subspace round
        assert found[0]["loss_kd"] == pytest.approx(expected[0]["loss_kd"], rel=2e-2)
        return
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            if name.startswith(("loss", "eval_loss", "eval_accuracy")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_an_evaluation_needs_no_pixels_of_the_teachers(tmp_path):
    run = trainer(tmp_path, parts={"data_collator": ViewCollator(processor(), processor(40))}, use_cpu=not GPU)
    batch = next(iter(run.get_eval_dataloader()))
    assert "teacher_pixel_values" not in batch
    assert run.evaluate()["eval_loss"] > 0


def test_batches_wait_for_no_step_on_a_gpu_and_users_can_say_otherwise(tmp_path):
    run = trainer(tmp_path, use_cpu=not GPU)
    assert run.args.accelerator_config.non_blocking == GPU
    chosen = trainer(tmp_path, use_cpu=not GPU, accelerator_config={"non_blocking": False})
    assert not chosen.args.accelerator_config.non_blocking


def test_an_evaluation_uses_the_users_collator(tmp_path):
    class Sevens(ViewCollator):
        def __call__(self, examples):
            batch = super().__call__(examples)
            return {**batch, "pixel_values": torch.full_like(batch["pixel_values"], 7)}

    run = trainer(tmp_path, parts={"data_collator": Sevens(processor(), processor(40))}, use_cpu=not GPU)
    for loader in (run.get_train_dataloader(), run.get_eval_dataloader()):
        assert float(next(iter(loader))["pixel_values"].mean()) == 7


def test_loaders_outside_a_training_and_collators_with_a_call_of_their_own_give_pixels(tmp_path, monkeypatch):
    class Own(ViewCollator):
        def __call__(self, examples):
            return {**super().__call__(examples), "mean": super().__call__(examples)["pixel_values"].mean()}

    divide(monkeypatch, True)
    run = trainer(tmp_path, use_cpu=not GPU)
    assert "pixel_values" in next(iter(run.get_train_dataloader()))
    examples = views().__getitems__([0, 1])
    assert "images" not in Own(processor()).unfinished()(examples)
    assert "images" in ViewCollator(processor()).unfinished()(examples)
