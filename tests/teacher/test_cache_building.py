"""The teacher sees each view once: what training reads later is what it said of that very view."""

import copy
import shutil
import warnings

import fsspec
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers import (
    CLASS_IDS,
    COLUMNS,
    assert_equal_weights,
    processor,
    resnet,
    teacher_resnet,
    teacher_vit,
    trainer,
    views,
    vit,
    weights_of,
    write_image_folder,
)
from programs import run_program
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.collate import LOGITS, TARGETS, ViewCollator
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import SubDistillError
from subdistill_hf.teacher import remote_cache
from subdistill_hf.teacher.cache_files import CacheError
from subdistill_hf.teacher.targets import ComputedTargets
from trainings import InOrder

HALF = 2**-11  # the largest relative error of rounding to half precision
IMAGES = 24


def run(folder, cache=2, teacher=None, student=None, images=None, size=None, **options):
    """A trainer over two views of each image; with `size`, the teacher reads larger images than the student."""
    images = views(augmentation="pad_crop", flip=True, seed=7, views=2) if images is None else images
    collator = ViewCollator(processor(), processor(size or 32))
    defaults = {"max_steps": 12, "learning_rate": 1e-6, "teacher_cache_dir": str(folder / "targets")}
    return trainer(
        folder,
        resnet() if student is None else student,
        teacher_resnet() if teacher is None else teacher,
        train=images,
        parts={"data_collator": collator, "fit_dataset": views()},
        teacher_cache=str(cache),
        **defaults | options,
    )


def passes_of(run):
    """Count the images that the teacher sees from now on."""
    seen = []
    run.teacher.model.register_forward_hook(lambda module, given, output: seen.append(len(output.logits)))
    return seen


def losses(run):
    return [
        {name: value for name, value in entry.items() if name.startswith("loss")}
        for entry in run.state.log_history
        if "loss" in entry
    ]


# The numbers


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)], ids=["half precision", "float32"]
)
@pytest.mark.parametrize("size", [None, 40], ids=["one size", "a larger teacher"])
def test_cached_and_uncached_runs_give_equal_losses_on_the_same_views(tmp_path, precision, tolerance, size):
    """Half precision rounds a target by at most 0.05 %, so a loss moves by at most 0.1 %.

    The student hardly moves, because training itself would carry tiny differences on.
    """
    cached = run(tmp_path, size=size, teacher_cache_precision=precision)
    plain = run(tmp_path, "off", size=size)
    for each in (cached, plain):
        each.train()
    pairs = list(zip(losses(cached), losses(plain), strict=True))
    assert len(pairs) == 12
    for ours, theirs in pairs:
        assert len(ours) == 6
        assert ours == pytest.approx(theirs, rel=tolerance)
    assert isinstance(plain.targets, ComputedTargets)


@pytest.mark.parametrize("mix", [0, 0.5])
@pytest.mark.parametrize("teacher_kind", ["maps", "tokens"])
def test_each_view_has_targets_of_its_own_mirrored_mixed_or_not(tmp_path, teacher_kind, mix):
    images = views(flip=True, views=2, seed=1, mix=mix)
    teacher = teacher_resnet() if teacher_kind == "maps" else teacher_vit()
    student = resnet() if teacher_kind == "maps" else vit()
    training = run(tmp_path, teacher=teacher, student=student, images=images)
    training.prepare_distillation()
    cache, computed = training.targets.cache, training.targets.computed
    collator, logits = ViewCollator(processor()), []
    for view in (0, 1):
        images.set_epoch(view)
        batch = collator(images.__getitems__(list(range(IMAGES))))
        known, features = cache.targets(cache.read(batch["index"], batch["view"]))
        shown, projected = computed.of_pixels(batch["pixel_values"])
        torch.testing.assert_close(known, shown, rtol=HALF, atol=1e-4)
        assert features.keys() == projected.keys()
        assert len(features) == 4
        for name, target in projected.items():
            assert (features[name].grid, features[name].prefix) == (target.grid, target.prefix)
            torch.testing.assert_close(features[name].values.float(), target.values, rtol=HALF, atol=2e-3)
        logits.append(known)
    differs = (logits[0] - logits[1]).abs().amax(1) > 1e-2
    # where one view of an image is mirrored and the other is not, or either is mixed
    assert int(differs.sum()) > 12 if mix else 4 < int(differs.sum()) < 20


def test_the_teacher_sees_each_view_once_and_never_in_a_step(tmp_path):
    training = run(tmp_path, size=40)
    seen = passes_of(training)
    training.train()  # four epochs; the fit sees the images as they are
    assert sum(seen) == IMAGES + 2 + 2 * IMAGES  # fit, a probe of two, and two views of each


def test_a_batch_carries_targets_and_no_pixels_for_the_teacher(tmp_path):
    training = run(tmp_path, size=40)
    training.prepare_distillation()
    batch = next(iter(training.get_train_dataloader()))
    assert set(batch) == {"pixel_values", "labels", "index", "view", LOGITS, TARGETS}
    assert set(batch[TARGETS]) == {pair.teacher.name for pair in training.pairs}
    assert "teacher_pixel_values" in training.data_collator([training.train_dataset[0]])
    assert LOGITS not in next(iter(training.get_eval_dataloader()))


def test_loading_in_other_processes_gives_the_same_batches(tmp_path):
    here, there = run(tmp_path), run(tmp_path, dataloader_num_workers=1)
    for each in (here, there):
        each.train()
    assert losses(here) == losses(there)


# Reuse


def names(training):
    training.prepare_distillation()
    return {name: file.name for name, file in training.targets.cache.files.items()}


def test_a_second_run_finds_what_the_first_has_kept(tmp_path):
    first, second = run(tmp_path), run(tmp_path, learning_rate=1e-3, kd_weight=3.0)
    first.train()
    seen = passes_of(second)
    second.train()
    assert sum(seen) == IMAGES + 2  # the fit, and a probe
    assert names(first) == names(second)


@pytest.mark.parametrize("place", ["copied folders", "memory://bucket/targets"])
def test_what_was_kept_on_one_machine_is_used_on_another(tmp_path, monkeypatch, place):
    """The same images lie in another folder there; and so do the targets, or they are fetched."""
    remote = place != "copied folders"

    def on_machine(name):
        monkeypatch.setattr(remote_cache, "default_folder", lambda: tmp_path / name / "targets")
        data = load_subtask(DataOptions(dataset=str(tmp_path / name / "images"), classes=["all"]))
        images = data.views("train", "pad_crop", True, seed=7, views=2)
        parts = {"data_collator": ViewCollator(processor()), "fit_dataset": data.views("train")}
        targets = place if remote else str(tmp_path / name / "targets")
        options = {"max_steps": 4, "teacher_cache": "2", "teacher_cache_dir": targets}
        return trainer(tmp_path / name, resnet(), teacher_resnet(), train=images, parts=parts, **options)

    write_image_folder(tmp_path / "one" / "images", train=10)  # a fifth is held out
    first = on_machine("one")
    first.train()
    shutil.copytree(tmp_path / "one" / "images", tmp_path / "other" / "images")
    if not remote:
        shutil.copytree(tmp_path / "one" / "targets", tmp_path / "other" / "targets")
    second = on_machine("other")
    seen = passes_of(second)
    second.train()
    assert sum(seen) == IMAGES + 2  # the fit, and a probe
    assert_equal_weights(weights_of(first.model), weights_of(second.model))
    fsspec.filesystem("memory").store.clear()


def test_targets_that_cannot_be_left_elsewhere_are_told_of_and_used_from_this_disk(tmp_path, monkeypatch):
    def fail(*given, **options):
        raise OSError("no room there")

    monkeypatch.setattr(remote_cache, "default_folder", lambda: tmp_path / "targets")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", fail)
    first = run(tmp_path, teacher_cache_dir="memory://elsewhere", max_steps=1)
    with pytest.warns(UserWarning, match=r"'memory://elsewhere' cannot be written: no room there\. The run goes on"):
        first.train()
    monkeypatch.undo()
    monkeypatch.setattr(remote_cache, "default_folder", lambda: tmp_path / "targets")
    second = run(tmp_path, teacher_cache_dir="memory://elsewhere", max_steps=1)
    seen = passes_of(second)
    second.train()
    assert sum(seen) == IMAGES + 2  # the fit, and a probe
    assert len(fsspec.filesystem("memory").ls("/elsewhere")) == 2 * len(second.targets.cache.files)
    fsspec.filesystem("memory").store.clear()


def test_damaged_targets_of_another_place_are_made_again_and_replaced(tmp_path, monkeypatch):
    storage = tmp_path / "storage"
    address = f"file://{storage}"
    monkeypatch.setattr(remote_cache, "default_folder", lambda: tmp_path / "one")
    run(tmp_path, teacher_cache_dir=address, max_steps=1).train()
    array = next(storage.glob("*.safetensors"))
    whole = array.read_bytes()
    array.write_bytes(whole[:-2] + b"xx")
    monkeypatch.setattr(remote_cache, "default_folder", lambda: tmp_path / "other")
    second = run(tmp_path, teacher_cache_dir=address, max_steps=1)
    with pytest.warns(UserWarning, match=r"kept targets in file://.* are damaged .*: they are made again"):
        second.train()
    assert array.read_bytes() == whole


def test_logit_distillation_shares_the_logits(tmp_path):
    both, logits = names(run(tmp_path)), names(run(tmp_path, method="kd"))
    assert logits == {"": both[""]}


def changed_teacher():
    teacher = teacher_resnet()
    with torch.no_grad():
        teacher.classifier[1].bias[0] += 1e-4
    return teacher


CHANGES = {
    "teacher": {"teacher": changed_teacher},
    "seed of the views": {"images": lambda: views(augmentation="pad_crop", flip=True, seed=8, views=2)},
    "augmentation": {"images": lambda: views(augmentation="none", flip=True, seed=7, views=2)},
    "mirroring": {"images": lambda: views(augmentation="pad_crop", seed=7, views=2)},
    "images": {"images": lambda: views(7, augmentation="pad_crop", flip=True, seed=7, views=2)},
    "number of views": {"images": lambda: views(augmentation="pad_crop", flip=True, seed=7, views=3), "cache": 3},
    "the teacher's processor": {"size": lambda: 40},
    "precision": {"teacher_cache_precision": lambda: "float32"},
    "precision of the teacher": {"teacher_bf16": lambda: True},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_targets_lie_in_other_files(tmp_path, change):
    options = {name: value() if callable(value) else value for name, value in CHANGES[change].items()}
    before, after = names(run(tmp_path)), names(run(tmp_path, **options))
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_scaled_targets_have_files_of_their_own(tmp_path):
    before, after = names(run(tmp_path)), names(run(tmp_path, target_scale="unit"))
    assert [name for name in before if before[name] == after[name]] == [""]


@pytest.mark.parametrize("change", [{"basis": "pca"}, {"student": lambda: resnet(widths=(6, 10, 14, 18))}])
def test_other_subspaces_share_the_logits_alone(tmp_path, change):
    options = {name: value() if callable(value) else value for name, value in change.items()}
    before, after = names(run(tmp_path)), names(run(tmp_path, **options))
    assert [name for name in before if before[name] == after[name]] == [""]


def test_damaged_targets_are_made_again_with_a_warning(tmp_path):
    first = run(tmp_path)
    first.train()
    name = first.pairs[1].teacher.name
    path = first.targets.cache.files[name].find()
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    second = run(tmp_path)
    seen = passes_of(second)
    with pytest.warns(UserWarning, match=r"kept targets of the teacher are damaged .*: they are made again"):
        second.train()
    assert sum(seen) == IMAGES + 2 + 2 * IMAGES
    assert losses(first) == losses(second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path).prepare_distillation()


KILLED = """
import os, signal, sys
from pathlib import Path
from teacher import test_cache_building as tests
training = tests.run(Path(sys.argv[1]))
seen = []
def die(module, given, output):
    seen.append(1)
    if len(seen) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
training.fit_subspaces()
training.teacher.model.register_forward_hook(die)
training.train()
"""


def test_a_run_killed_while_the_teacher_runs_leaves_nothing_that_is_used(tmp_path):
    done = run_program(KILLED, tmp_path)
    assert done.returncode == -9, done.stderr
    left = list((tmp_path / "targets").iterdir())
    assert left
    assert all(path.suffix == ".part" for path in left)
    training = run(tmp_path)
    seen = passes_of(training)
    training.train()
    assert sum(seen) == IMAGES + 2 + 2 * IMAGES


def test_a_resumed_run_reads_the_same_targets_and_ends_with_the_same_weights(tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 1e-2}
    whole = run(tmp_path, **options)
    whole.train()
    part = run(tmp_path, **options)
    part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_equal_weights(weights_of(part.distillation), weights_of(whole.distillation))


# Refused


def test_targets_that_are_too_large_are_refused_before_the_teacher_runs(tmp_path):
    training = run(tmp_path, teacher_cache_limit=1e-5)
    seen = passes_of(training)
    with pytest.raises(CacheError, match=r"more than teacher_cache_limit=9.99961e-06: use fewer views"):
        training.train()
    assert sum(seen) == IMAGES + 2
    assert list((tmp_path / "targets").iterdir()) == []


def test_targets_that_half_precision_cannot_hold_are_refused_and_nothing_is_left(tmp_path):
    teacher = teacher_resnet()
    with torch.no_grad():
        teacher.classifier[1].weight.mul_(1e7)
    with pytest.raises(CacheError, match=r"too large for half precision \(65504\): use teacher_cache_precision"):
        run(tmp_path, teacher=copy.deepcopy(teacher), method="kd").train()
    assert list((tmp_path / "targets").iterdir()) == []
    whole = run(tmp_path, teacher=teacher, method="kd", teacher_cache_precision="float32", max_steps=1)
    whole.prepare_distillation()
    assert whole.targets.cache.read(torch.tensor([0]), torch.tensor([1]))[LOGITS].isfinite().all()


def test_a_dataset_that_does_not_name_its_views_is_refused(tmp_path):
    with pytest.raises(SubDistillError, match="teacher_cache=2 needs a dataset of 2 views an image, found views=None"):
        run(tmp_path, images=views()).train()
    collated = [ViewCollator(processor())([example]) for example in views().__getitems__([0, 1])]
    rows = [{name: value[0] for name, value in batch.items()} for batch in collated]
    with pytest.raises(SubDistillError, match="list has no views, fingerprint, set_epoch"):
        trainer(
            tmp_path, train=rows, parts={"data_collator": torch.utils.data.default_collate}, teacher_cache="2"
        ).train()


class Noisy(ViewDataset):
    """Each reading of an image is another one."""

    def __getitems__(self, indices):
        examples = super().__getitems__(indices)
        return [
            example | {"image": example["image"] ^ torch.randint(2, (1, 32, 32), dtype=torch.uint8)}
            for example in examples
        ]


def test_views_that_differ_each_time_they_are_read_are_refused(tmp_path):
    rows = views().images.dataset
    noisy = Noisy(rows, COLUMNS, "none", views=2)
    with pytest.raises(SubDistillError, match=r"views that are the same.*those of Noisy differ.*teacher_cache='off'"):
        run(tmp_path / "noise", images=noisy).train()

    def noisy_collator(items):
        batch = ViewCollator(processor(), processor())(items)
        return batch | {"pixel_values": batch["pixel_values"] + torch.randn(())}

    drawn = run(tmp_path / "collator")
    drawn.data_collator = noisy_collator
    with pytest.raises(SubDistillError, match="views that are the same each time"):
        drawn.train()


def test_batches_without_places_are_refused(tmp_path):
    training = run(tmp_path)
    whole = training.data_collator
    training.data_collator = lambda items: {
        name: value for name, value in whole(items).items() if name not in ("index", "view")
    }
    with pytest.raises(SubDistillError, match="teacher_cache needs `index` and `view` in the batch"):
        training.train()


def test_every_class_of_the_subtask_is_kept_in_the_students_order(tmp_path):
    training = run(tmp_path)
    training.prepare_distillation()
    batch = ViewCollator(processor())([training.train_dataset[5]])
    with torch.no_grad():
        logits = training.teacher.model(pixel_values=batch["pixel_values"]).logits[:, list(CLASS_IDS)]
    kept = training.targets.cache.read(batch["index"], batch["view"])[LOGITS]
    torch.testing.assert_close(kept.float(), logits, rtol=HALF, atol=1e-4)


def error_of_targets(run):
    """How far the logits in the training batches are from the teacher's of their pixels, in shares of the largest."""
    errors = []
    for batch in run.get_train_dataloader():
        expected = run.teacher.logits(batch["pixel_values"])
        errors.append(float((batch[LOGITS].float() - expected).abs().max() / expected.abs().max()))
    return max(errors)


def test_other_images_in_the_same_trainer_have_targets_of_their_own(tmp_path):
    trained = run(tmp_path, method="kd", max_steps=1)
    trained.train()
    assert error_of_targets(trained) < 1e-3
    trained.train_dataset = views(split="test", augmentation="pad_crop", flip=True, seed=8, views=2)
    trained.train()
    assert error_of_targets(trained) < 1e-3


def test_a_teacher_that_was_changed_between_trainings_is_asked_again(tmp_path):
    trained = run(tmp_path, max_steps=1)
    trained.train()
    first, subspaces = trained.teacher.digest, dict(trained.subspaces)
    trained.teacher.model.load_state_dict(teacher_resnet(seed=9).state_dict())
    trained.train()
    assert trained.teacher.digest != first
    assert error_of_targets(trained) < 1e-3
    assert all(trained.subspaces[name].digest != subspace.digest for name, subspace in subspaces.items())


def with_two_adapters():
    torch.manual_seed(0)
    settings = LoraConfig(target_modules=["convolution"], r=2, init_lora_weights=False)
    adapted = get_peft_model(teacher_resnet(), settings, "first")
    adapted.add_adapter("second", settings)
    return adapted


def test_another_adapter_of_a_teacher_has_targets_of_its_own(tmp_path):
    digests = set()
    for name in ("first", "second", "first"):
        teacher = with_two_adapters()
        teacher.set_adapter(name)
        trained = run(tmp_path, method="kd", max_steps=1, teacher=teacher)
        trained.train()
        assert error_of_targets(trained) < 1e-3
        digests.add(trained.teacher.digest)
    assert len(digests) == 2


def test_kept_targets_that_are_not_this_teachers_are_made_again(tmp_path):
    """What its weights do not tell, such as a method that was replaced."""
    run(tmp_path, method="kd", max_steps=1).train()
    teacher = teacher_resnet()
    forward = teacher.forward

    def reversed_outputs(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.flip(1)
        return output

    teacher.forward = reversed_outputs
    changed = run(tmp_path, method="kd", max_steps=1, teacher=teacher)
    with pytest.warns(UserWarning, match="another teacher's: they are made again"):
        changed.train()
    assert error_of_targets(changed) < 1e-3


def test_a_teacher_cache_needs_a_length(tmp_path):
    streamed = trainer(tmp_path, teacher_cache=1, train=InOrder(views(), range(24)))
    with pytest.raises(
        SubDistillError, match="teacher_cache needs a dataset whose images have numbers, found a streamed one"
    ):
        streamed.train()
