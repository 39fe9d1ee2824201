"""What loaders give, whose pixels are in their batches, and that it does not matter who makes the pixels."""

import pytest
import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback, default_data_collator

from helpers import processor, trainer, views
from subdistill_hf.data import collate as batches
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.training import loaders
from subdistill_hf.training.trainer import SubDistillTrainer
from trainings import STAGES

GPU = torch.cuda.is_available()


def divide(monkeypatch, always):
    """Leave the work to whatever device there is, or never."""
    how = batches.divided
    for module in (batches, loaders):
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


def test_what_is_kept_of_the_same_views_is_said_once(tmp_path, capsys):
    loaders._say_once.cache_clear()
    for method in ("kd", "fitnet"):
        training = {"teacher_cache": "2", "teacher_cache_dir": str(tmp_path / "targets"), "disable_tqdm": False}
        run = trainer(tmp_path / method, train=views(views=2), method=method, max_steps=1, **training)
        run.train()
    assert capsys.readouterr().out.count("pixels   of") == 1


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


def test_removing_unused_columns_leaves_what_the_teacher_reads(tmp_path):
    seen = []
    for remove in (False, True):
        rows = [{**views()[index], "teacher_pixel_values": torch.full((3, 32, 32), 5.0)} for index in range(8)]
        examples = [
            {"pixel_values": row["image"].float() / 255, "label": row["labels"], "noise": 1.0}
            | {"teacher_pixel_values": row["teacher_pixel_values"]}
            for row in rows
        ]
        run = trainer(
            tmp_path / str(remove),
            train=examples,
            parts={"data_collator": default_data_collator, "eval_dataset": None},
            method="kd",
            max_steps=1,
            remove_unused_columns=remove,
        )
        run.teacher.model.register_forward_pre_hook(
            lambda module, args, given: seen.append(given["pixel_values"].mean().item()), with_kwargs=True
        )
        run.train()
    assert seen == [5.0, 5.0]


def test_a_streamed_dataset_trains(tmp_path, datasets_cache):
    rows = [views()[index] for index in range(24)]
    for row in rows:
        row["image"] = row["image"].numpy()

    def collate(examples):
        examples = [example | {"image": torch.as_tensor(example["image"], dtype=torch.uint8)} for example in examples]
        return ViewCollator(processor(), processor(40))(examples)

    streamed = IterableDataset.from_generator(lambda: iter(rows))
    run = trainer(tmp_path, train=streamed, max_steps=5, parts={"data_collator": collate, "eval_dataset": None})
    run.train()
    assert run.state.global_step == 5
    assert run.subspaces[STAGES[0]].count == 24 * 100  # the teacher reads 40 pixels: maps of 10 by 10
    listed = trainer(tmp_path, train=views(), parts={"data_collator": ViewCollator(processor(), processor(40))})
    for name, subspace in listed.fit_subspaces().items():
        torch.testing.assert_close(run.subspaces[name].basis, subspace.basis, rtol=0, atol=1e-8)


def test_a_loader_that_a_callback_asks_for_in_the_middle_of_a_training_has_pixels(tmp_path, monkeypatch):
    """The loop's own loader leaves them to a GPU: there is no flag by which another one could be taken for it."""
    divide(monkeypatch, True)
    left, asked = [], []
    finish = ViewCollator.finish
    monkeypatch.setattr(ViewCollator, "finish", lambda self, batch: left.append(set(batch)) or finish(self, batch))
    run = trainer(tmp_path, use_cpu=not GPU, max_steps=3)

    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            asked.append(set(next(iter(run.get_train_dataloader()))))

    run.add_callback(Ask())
    run.prepare_distillation()
    left.clear()
    run.train()
    assert asked == [{"pixel_values", "labels", "index", "view"}] * 3
    assert left == [{"images", "labels", "index", "view"}] * 3


def test_a_batch_size_that_is_found_leaves_pixels_to_the_device_in_every_try(tmp_path, monkeypatch):
    divide(monkeypatch, True)
    sizes = []

    class Narrow(SubDistillTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            sizes.append(len(inputs["pixel_values"]))
            if sizes[-1] > 4:
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    options = {"max_steps": 2, "auto_find_batch_size": True, "per_device_train_batch_size": 6}
    run = trainer(tmp_path, trainer_class=Narrow, use_cpu=not GPU, **options)
    finished = []
    finish = ViewCollator.finish
    monkeypatch.setattr(ViewCollator, "finish", lambda self, batch: finished.append(set(batch)) or finish(self, batch))
    run.train()
    assert sizes == [6, 5, 4, 4]
    assert all("images" in names for names in finished[-2:])


def test_a_prediction_needs_no_pixels_of_the_teachers(tmp_path):
    run = trainer(tmp_path, parts={"data_collator": ViewCollator(processor(), processor(40))}, use_cpu=not GPU)
    assert "teacher_pixel_values" not in next(iter(run.get_test_dataloader(views(2, "test"))))


def test_a_loader_of_the_user_is_read_as_it_is(tmp_path):
    class Own(SubDistillTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, 8, collate_fn=self.data_collator)

    losses = []
    for cache in ("off", "2"):
        images = views(augmentation="pad_crop", views=2)
        options = {"teacher_cache": cache, "max_steps": 3, "use_cpu": not GPU, "logging_steps": 1}
        run = trainer(tmp_path / cache, trainer_class=Own, train=images, **options)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]  # the targets of batches that carry none are computed


def test_each_image_counts_in_an_evaluation_whatever_the_training_leaves_out(tmp_path):
    images = views(7, "test")
    run = trainer(
        tmp_path,
        parts={"eval_dataset": images},
        dataloader_drop_last=True,
        per_device_train_batch_size=5,
        per_device_eval_batch_size=64,
        max_steps=1,
    )
    run.train()
    assert "eval_accuracy" in run.evaluate()
    assert len(run.predict(images).predictions) == len(images)
    assert {len(batch["labels"]) for batch in run.get_train_dataloader()} == {5}
