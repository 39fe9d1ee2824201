"""A training is checked when it begins, whatever of it came when: models, images, class ids and labels."""

import itertools
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from helpers import processor, resnet, trainer, views
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import DistillationError, NonFiniteLossError, SubspaceError
from subdistill_hf.training.examples import described_images, known_labels
from subdistill_hf.training.trainer import SubDistillTrainer
from trainings import STAGES, InOrder, Plain, last_loss, logged, parts

LAYERS = {"kd", *(f"layer/{name}" for name in STAGES)}

# Images that come later


@pytest.mark.parametrize(
    ("class_ids", "message"),
    [([10, 10, -1], "must lie between 0 and 99"), ([10, 10, 11], "twice"), ([10, 11], "has 2 entries")],
)
def test_class_ids_are_checked_when_images_come_after_the_trainer(tmp_path, class_ids, message):
    run = trainer(tmp_path, max_steps=1, parts={"train_dataset": None, "teacher_class_ids": class_ids})
    run.train_dataset = views()
    with pytest.raises(DistillationError, match=message):
        run.train()


def test_other_images_are_checked_as_the_first(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.train()
    wrong = views()
    wrong.labels[3] = 7
    run.train_dataset = wrong
    with pytest.raises(DistillationError, match="the training images have the labels 7"):
        run.train()
    run.train_dataset = views(1)
    run.train_dataset.labels[:] = [0, 1, 2]
    run.data_collator = lambda examples: {"labels": torch.zeros(len(examples))}
    with pytest.raises(DistillationError, match="expected batches with `pixel_values`"):
        run.train()


def test_a_training_without_images_is_refused(tmp_path):
    run = trainer(tmp_path, max_steps=1, parts={"train_dataset": None})
    with pytest.raises(DistillationError, match="a training needs images: pass train_dataset"):
        run.train()


class OwnLoader(SubDistillTrainer):
    """Makes its own batches, and has no dataset."""

    images = views()

    def get_train_dataloader(self):
        return DataLoader(self.images, 8, shuffle=True, collate_fn=self.data_collator)


class OwnBatches(SubDistillTrainer):
    """Makes its own batches of what nobody knows."""

    def get_train_dataloader(self):
        pixels = ViewCollator(processor(), processor())
        batches = [pixels([views()[index] for index in range(start, start + 8)]) for start in (0, 8, 16)]
        return DataLoader(batches, batch_size=None)


def test_a_subclass_with_a_loader_of_its_own_and_no_dataset_trains_with_its_layer_losses(tmp_path):
    run = trainer(tmp_path / "own", trainer_class=OwnLoader, max_steps=3, parts={"train_dataset": None})
    run.train()
    assert set(parts(logged(run)[0])) == LAYERS
    expected = trainer(tmp_path / "expected").fit_subspaces()
    for name in STAGES:
        torch.testing.assert_close(run.subspaces[name].basis, expected[name].basis, rtol=0, atol=1e-8)


def test_batches_that_come_from_nobody_knows_where_need_images_for_the_subspaces(tmp_path):
    given = {"train_dataset": None}
    run = trainer(tmp_path / "refused", trainer_class=OwnBatches, max_steps=3, parts=given)
    with pytest.raises(DistillationError, match=r"does not name: pass fit_dataset=\.\.\."):
        run.train()
    run = trainer(tmp_path / "own", trainer_class=OwnBatches, max_steps=3, parts=given | {"fit_dataset": views()})
    run.train()
    assert set(parts(logged(run)[0])) == LAYERS


class Batches:
    """A loader that can be gone through, and nothing else but what it is given."""

    def __init__(self, **known):
        pixels = ViewCollator(processor(), processor())
        self.batches = [pixels([views()[index] for index in range(start, start + 8)]) for start in (0, 8, 16)]
        vars(self).update(known)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("said", [[], ["batch_size"], ["dataset", "batch_size"]])
@pytest.mark.parametrize("has_dataset", [False, True])
def test_a_loader_of_the_user_may_say_nothing_of_itself(tmp_path, said, has_dataset):
    known = {name: value for name, value in {"dataset": views(), "batch_size": 8}.items() if name in said}

    class Own(SubDistillTrainer):
        def get_train_dataloader(self):
            return Batches(**known)

        def get_eval_dataloader(self, images=None):
            return Batches(**known)

    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    given = {"train_dataset": views() if has_dataset else None, "fit_dataset": views()}
    run = trainer(tmp_path, trainer_class=Own, parts=given, **options)
    run.train()
    assert run.state.global_step == 4
    assert set(parts(logged(run)[0])) == LAYERS


def test_a_loader_of_the_user_is_checked_too(tmp_path):
    class Wrong(OwnLoader):
        images = InOrder([{"image": views().image(0), "labels": 9, "index": 0, "view": 0}] * 8, range(8))

        def get_train_dataloader(self):
            return DataLoader(self.images, 8, collate_fn=self.data_collator)

    class Empty(OwnLoader):
        def get_train_dataloader(self):
            return DataLoader([], 8)

    class Others(OwnLoader):
        def get_train_dataloader(self):
            return DataLoader([1, 2], 2)

    for kind, message in ((Wrong, "have the labels 9"), (Empty, "gives no batch"), (Others, "found Tensor")):
        run = trainer(tmp_path, trainer_class=kind, max_steps=1, parts={"train_dataset": None})
        with pytest.raises(DistillationError, match=message):
            run.train()


# Another student


def test_a_student_of_another_width_is_matched_anew(tmp_path):
    widths = [(8, 12, 16, 20)]
    run = trainer(tmp_path / "used", parts={"model_init": lambda: resnet(widths=widths[0])}, max_steps=2)
    run.train()
    widths[0] = (6, 8, 10, 12)
    run.train()
    assert [pair.student.width for pair in run.pairs] == [6, 8, 10, 12]
    assert [subspace.dimensions for subspace in run.subspaces.values()] == [6, 8, 10, 12]
    fresh = trainer(tmp_path / "fresh", parts={"model_init": lambda: resnet(widths=widths[0])}, max_steps=2)
    fresh.train()
    assert last_loss(run) == last_loss(fresh)


def test_a_given_subspace_of_a_layer_that_is_not_paired_is_refused(tmp_path):
    given = trainer(tmp_path).fit_subspaces()
    for name in ("resnet.encoder.stage.0", "resnet.embedder"):
        with pytest.raises(
            DistillationError, match=rf"subspaces has '{name}', which is no teacher layer of a pair: exp"
        ):
            trainer(tmp_path, parts={"subspaces": {name: given[STAGES[0]]}})
    with pytest.raises(DistillationError, match=f"subspaces has '{STAGES[0]}'.*expected some of {STAGES[2]}"):
        trainer(tmp_path, parts={"subspaces": given}, layers=[f"{STAGES[2]}={STAGES[2]}"])
    for method in ("kd", "fitnet", "scratch"):
        with pytest.raises(DistillationError, match="this method compares no subspaces"):
            trainer(tmp_path, parts={"subspaces": given}, method=method)
    with pytest.raises(DistillationError, match=f"for '{STAGES[0]}' is a Tensor: expected a Subspace"):
        trainer(tmp_path, parts={"subspaces": {STAGES[0]: given[STAGES[0]].basis}})


# Teachers without gradients


def without(mode):
    class Teacher(Plain):
        @mode()
        def forward(self, pixel_values):
            return super().forward(pixel_values)

    return Teacher(100, 9)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_teacher_under_no_grad_or_inference_mode_is_refused_for_prca_and_teaches_otherwise(tmp_path, mode):
    student = Plain(3, 6)
    options = {"layers": ["blocks.0=blocks.0"], "max_steps": 2}
    run = trainer(tmp_path, student, without(mode), **options)
    with pytest.raises(SubspaceError, match=r"'blocks.0' runs under torch.no_grad or torch.inference_mode.*basis pca"):
        run.train()
    for others in ({"basis": "pca"}, {"method": "kd"}, {"method": "fitnet"}):
        losses = []
        for teacher in (without(mode), Plain(100, 9)):
            run = trainer(tmp_path, Plain(3, 6), teacher, **options, **others)
            run.train()
            losses.append([entry["loss"] for entry in logged(run)])
        assert losses[0] == losses[1]


# Streams


class Endless(InOrder):
    def __iter__(self):
        return itertools.cycle(super().__iter__())


class Once(InOrder):
    """Can be read once."""

    def __init__(self, *given):
        super().__init__(*given)
        self.left = iter([self.dataset[index] for index in self.order])

    def __iter__(self):
        return self.left


class OnceByTurns(Once):
    """Goes on where it was left, and does not tell."""

    def __iter__(self):
        yield from self.left


class SlowlyOnce(Once):
    def __iter__(self):
        return (each for each in self.left)


def seen_by(run):
    seen = []
    run.model.register_forward_pre_hook(
        lambda module, args, given: module.training and seen.append(len(given["pixel_values"])), with_kwargs=True
    )
    return seen


def test_an_endless_stream_begins_and_ends(tmp_path):
    run = trainer(tmp_path, train=Endless(views(), range(24)), max_steps=4)
    run.train()
    assert run.state.global_step == 4
    assert run.subspaces[STAGES[0]].count == 4 * 8 * 64  # as many images as the training takes


@pytest.mark.parametrize("images", [2, 24], ids=["shorter than the example", "longer"])
def test_a_stream_that_can_be_read_once_is_refused(tmp_path, images):
    with pytest.raises(DistillationError, match=r"can be read only once.*pass fit_dataset"):
        trainer(tmp_path, train=Once(views(), range(images)), max_steps=2)
    if images == 2:
        with pytest.raises(DistillationError, match=r"can be read only once.*pass fit_dataset"):
            trainer(tmp_path, train=OnceByTurns(views(), range(images)), max_steps=2)


@pytest.mark.parametrize("kind", [OnceByTurns, SlowlyOnce])
def test_a_stream_that_goes_on_where_it_was_left_is_told(tmp_path, kind):
    with pytest.warns(UserWarning, match=r"gives other images each time it is read.*pass fit_dataset"):
        trainer(tmp_path, train=kind(views(), range(24)), max_steps=2)


@pytest.mark.parametrize("kind", [Once, OnceByTurns, SlowlyOnce])
def test_a_stream_that_can_be_read_once_gives_all_its_images_where_others_are_given_for_the_fit(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = trainer(tmp_path, train=kind(views(), range(24)), max_steps=3, parts={"fit_dataset": views()})
        seen = seen_by(run)
        run.train()
    assert sum(seen) == 24


# What a look at the images leaves as it was


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"pixel_values": torch.rand(3, 32, 32), "labels": index % 3}


class Still(Noisy):
    def __getitem__(self, index):
        return {"pixel_values": torch.full((3, 32, 32), 0.1 * index), "labels": index % 3}


def stack(examples):
    return {name: torch.stack([torch.as_tensor(each[name]) for each in examples]) for name in examples[0]}


def test_a_look_at_images_draws_no_random_numbers_of_the_training():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert known_labels(Noisy(), stack).tolist() == [0, 1, 0, 1, 0, 1, 0, 2]
    described_images(Noisy(), stack)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_told_from_others_where_they_come_out_the_same():
    assert described_images(Noisy(), stack) == {"images": 12}
    described = described_images(Still(), stack)
    assert described.keys() == {"images", "examples"}
    assert described == described_images(Still(), stack)
    assert described != described_images(
        Still(), lambda examples: {"pixel_values": 2 * stack(examples)["pixel_values"]}
    )
    ours, labelled = views(), views()
    assert described_images(ours, stack) == described_images(labelled, stack)
    labelled.labels[5] = 2
    assert described_images(ours, stack) != described_images(labelled, stack)
    assert described_images(ours, stack) != described_images(views(split="test"), stack)
    assert described_images(InOrder(views(), range(3)), stack) == {"stream": "InOrder"}


def test_the_teacher_sees_images_of_another_size_when_they_come(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.train()
    grids = [pair.teacher.grid for pair in run.pairs]
    run.data_collator = ViewCollator(processor(64), processor(64))
    run.train()
    assert [pair.teacher.grid for pair in run.pairs] == [(2 * height, 2 * width) for height, width in grids]
    assert set(parts(logged(run)[0])) == LAYERS


# Students that cannot learn


def frozen(student, but=()):
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(but)) if but else False)
    return student


def test_a_student_without_a_trained_weight_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="no weight of the student is trained: requires_grad is False"):
        trainer(tmp_path, frozen(resnet()))


def test_compared_layers_of_frozen_weights_are_told(tmp_path, caplog):
    trainer(tmp_path)
    assert "frozen" not in caplog.text
    run = trainer(tmp_path, frozen(resnet(), ["resnet.encoder.stages.2", "resnet.encoder.stages.3", "classifier"]))
    told = f"the student's weights up to {STAGES[0]}, {STAGES[1]} are frozen"
    assert caplog.text.count(told) == 1
    run.prepare_distillation()
    assert caplog.text.count(told) == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_student_of_another_precision_than_its_images_is_refused(tmp_path, kind):
    with pytest.raises(DistillationError, match=rf"weights are {kind}, and its images torch.float32: load it with"):
        trainer(tmp_path, resnet().to(kind))


def test_a_learning_rate_of_zero_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="learning_rate=0: no weight would change"):
        trainer(tmp_path, learning_rate=0.0).train()


def test_batch_norms_without_running_statistics_are_told(tmp_path, caplog):
    student = resnet()
    norm = student.resnet.embedder.embedder.normalization
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    trainer(tmp_path, student, method="kd")
    assert "the student's batch norm 'resnet.embedder.embedder.normalization' has no running statistics" in caplog.text


def test_a_loss_that_is_nan_before_any_step_is_not_blamed_on_the_learning_rate(tmp_path):
    student = resnet()
    with torch.no_grad():
        next(student.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"near step 0\. Likely causes: the student's weights as they came"):
        trainer(tmp_path, student, method="kd").train()
