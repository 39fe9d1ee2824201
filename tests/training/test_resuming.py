"""What must be as it was when a run is resumed, what may be another with a notice, and what is free: one table."""

import json
import random
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from helpers import (
    REPOSITORY,
    assert_equal_weights,
    resnet,
    teacher_resnet,
    teacher_vit,
    trainer,
    views,
    vit,
    weights_of,
)
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.validation import names_of_options
from subdistill_hf.errors import DistillationError
from subdistill_hf.training import checkpoints
from subdistill_hf.training.checkpoints import STATE_FILE, last_complete_checkpoint, missing_files
from subdistill_hf.training.resuming import PARTS, resume_table
from trainings import STAGES, InOrder

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "teacher_cache": "2"}
IMAGES = {"augmentation": "pad_crop", "seed": 5, "views": 2}


def run(folder, **changed):
    """A run; what is changed of it are options, or `student`, `teacher`, `images`, `parts`."""
    student = changed.pop("student", resnet)()
    teacher = changed.pop("teacher", teacher_resnet)()
    images = changed.pop("images", lambda: views(**IMAGES))()
    parts = {"fit_dataset": views()} | changed.pop("parts", {})
    return trainer(folder, student, teacher, train=images, parts=parts, **OPTIONS | changed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = run(tmp_path_factory.mktemp("whole"))
    made.train()
    return made


@pytest.fixture
def checkpoint(whole):
    return str(Path(whole.args.output_dir) / "checkpoint-2")


# Each change alone


def with_dropout():
    student = resnet()
    student.classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.3), student.classifier[1])
    return student


def relabelled():
    images = views(**IMAGES)
    images.labels[0] = 1
    return images


REFUSED = {
    "teacher": {"teacher": lambda: teacher_resnet(seed=9)},
    "teacher_bf16": {"teacher_bf16": True},
    "dropout of the student": {"student": with_dropout},
    "class ids": {"parts": {"teacher_class_ids": [10, 11, 13]}},
    "images": {"images": lambda: views(split="test", **IMAGES)},
    "fewer images": {"images": lambda: views(7, **IMAGES)},
    "labels": {"images": relabelled},
    "augmentation": {"images": lambda: views(**IMAGES | {"augmentation": "none"})},
    "mirroring": {"images": lambda: views(**IMAGES, flip=True)},
    "mixing": {"images": lambda: views(**IMAGES, mix=0.5)},
    "seed of the views": {"images": lambda: views(**IMAGES | {"seed": 6})},
    "number of views": {"images": lambda: views(**IMAGES | {"views": 3}), "teacher_cache": "3"},
    "layers": {"layers": [f"{STAGES[1]}={STAGES[1]}"]},
    "layer_pairs": {"layer_pairs": 2},
    "method": {"method": "kd"},
    "basis": {"basis": "pca"},
    "centring": {"centring": "mean"},
    "normalise_energy": {"normalise_energy": False},
    "target_scale": {"target_scale": "unit"},
    "positions": {"positions": 2},
    "rotation": {"rotation": "procrustes"},
    "layer_weight": {"layer_weight": 0.25},
    "layer_weight_end": {"layer_weight_end": 0.5},
    "kd_weight": {"kd_weight": 0.5},
    "task_weight": {"task_weight": 0.5},
    "temperature": {"temperature": 2.0},
    "dkd_beta": {"dkd_beta": 2.0},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1, "task_weight": 0.5},
    "seed": {"seed": 4},
    "data_seed": {"data_seed": 4},
    "dataloader_drop_last": {"dataloader_drop_last": True},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
    "batch": {"per_device_train_batch_size": 4},
    "accumulation": {"gradient_accumulation_steps": 2},
    "optim": {"optim": "sgd"},
    "optim_args": {"optim_args": "amsgrad=True"},
    "optimizer of the user": {"parts": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}},
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "lr_scheduler_kwargs": {"lr_scheduler_kwargs": {"num_cycles": 0.25}},
    "warmup_steps": {"warmup_steps": 2},
    "metric_for_best_model": {"metric_for_best_model": "accuracy"},
    "greater_is_better": {"greater_is_better": True},
}
NOTICED = {
    "learning_rate": (
        {"learning_rate": 5e-3},
        r"the learning rate stays that of the checkpoint, which began with 0\.001: for 0\.005",
    ),
    "weight_decay": (
        {"weight_decay": 0.2},
        r"weight_decay stays that of the checkpoint, which began with 0: for 0\.2",
    ),
    "adam_beta1": ({"adam_beta1": 0.8}, r"adam_beta1 stays that of the checkpoint, which began with 0\.9: for 0\.8"),
    "adam_beta2": ({"adam_beta2": 0.99}, "adam_beta2 stays"),
    "adam_epsilon": (
        {"adam_epsilon": 1e-6},
        "adam_epsilon stays that of the checkpoint, which began with 1e-08: for 1e-06",
    ),
    "max_steps": ({"max_steps": 5}, "max_steps is 5, and was 4 in the run that is resumed: the schedule follows"),
    "num_train_epochs": ({"max_steps": -1, "num_train_epochs": 2}, "num_train_epochs is 2, and was None"),
    "max_grad_norm": ({"max_grad_norm": 0.5}, r"max_grad_norm is 0\.5, and was 1\.0 .*: the new value counts"),
    "bf16": ({"bf16": True}, "bf16 is True, and was False"),
    "teacher_cache_precision": ({"teacher_cache_precision": "float32"}, "teacher_cache_precision is float32, and was"),
    "split": (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "per_device_train_batch_size is 4, and was 8 in the run that is resumed: the new split counts",
    ),
}
FREE = {
    "per_device_eval_batch_size": {"per_device_eval_batch_size": 3},
    "logging_steps": {"logging_steps": 2},
    "eval_strategy": {"eval_strategy": "steps", "eval_steps": 1},
    "save_steps": {"save_steps": 3},
    "save_total_limit": {"save_total_limit": 1},
    "save_strategy": {"save_strategy": "epoch"},
    "dataloader_num_workers": {"dataloader_num_workers": 0},
    "cuda_graphs": {"cuda_graphs": "off"},
    "teacher_cache_limit": {"teacher_cache_limit": 3.0},
    "fit_dataset": {"parts": {"fit_dataset": views(2)}},
}


def resumed(folder, checkpoint, changed):
    """The warnings of a run that resumes."""
    again = run(folder, **changed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.prepare_distillation(checkpoint)
    return again, [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_be_as_it_was_is_refused(tmp_path, checkpoint, name):
    with pytest.raises(DistillationError, match="the checkpoint was made with another choice of"):
        run(tmp_path, **REFUSED[name]).prepare_distillation(checkpoint)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NOTICED)
def test_what_may_be_another_is_told(tmp_path, checkpoint, name):
    changed, message = NOTICED[name]
    with pytest.warns(UserWarning, match=message):
        run(tmp_path, **changed).prepare_distillation(checkpoint)


@pytest.mark.filterwarnings("default")
def test_images_that_are_not_skipped_are_told(tmp_path, checkpoint):
    with pytest.warns(UserWarning, match="ignore_data_skip: the run goes on with other images"):
        run(tmp_path, ignore_data_skip=True).prepare_distillation(checkpoint)


@pytest.mark.parametrize("name", FREE)
def test_what_is_free_changes_nothing(tmp_path, checkpoint, whole, name):
    again, told = resumed(tmp_path, checkpoint, FREE[name])
    assert told == []
    again.train(resume_from_checkpoint=checkpoint)
    assert_equal_weights(weights_of(again.distillation), weights_of(whole.distillation))


def test_the_table_names_arguments_that_exist_and_all_of_its_refusals_and_notices_are_tried():
    known = {
        *names_of_options(SubDistillConfig),
        "world_size",
        "warmup_ratio",
    }  # the last of some versions of transformers have
    for part in PARTS:
        assert known.issuperset(part.arguments), part
    tried = {argument for changed in REFUSED.values() for argument in changed}
    noticed = {argument for changed, _ in NOTICED.values() for argument in changed}
    not_here = {"optim_target_modules", "warmup_ratio", "fp16", "tf32", "world_size"}  # other packages and machines
    for part in PARTS:
        if part.change != "free":
            assert {*part.arguments} - not_here <= (tried if part.change == "refused" else noticed), part


def test_the_page_about_resuming_has_the_same_table():
    page = (REPOSITORY / "docs" / "how_to" / "resume.md").read_text(encoding="utf-8")
    assert resume_table() in page


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_are_refused_told_or_free_as_the_table_says(tmp_path, checkpoint, whole, seed):
    draw = random.Random(seed)
    kinds = {"refused": REFUSED, "noticed": {name: each[0] for name, each in NOTICED.items()}, "free": FREE}
    changes = [(kind, name) for kind, named in kinds.items() for name in named]
    for number in range(8):
        # half of the draws have no refusal, or it would hide the rest
        chosen = draw.sample([each for each in changes if number % 2 or each[0] != "refused"], draw.randint(1, 4))
        changed, clash = {}, False
        for kind, name in chosen:
            clash |= any(argument in changed for argument in kinds[kind][name])
            changed |= kinds[kind][name]
        if clash:  # two changes of one argument
            continue
        found = {kind for kind, _ in chosen}
        if "refused" in found:
            with pytest.raises(DistillationError, match="made with another choice of"):
                resumed(tmp_path / str(number), checkpoint, changed)
            continue
        again, told = resumed(tmp_path / str(number), checkpoint, changed)
        assert bool(told) == ("noticed" in found), (chosen, told)
        if not told:
            again.train(resume_from_checkpoint=checkpoint)
            assert_equal_weights(weights_of(again.distillation), weights_of(whole.distillation))


# Given subspaces, images of other kinds, rates


def test_given_subspaces_are_those_of_the_checkpoint_or_refused(tmp_path, checkpoint, whole):
    same = dict(whole.subspaces)
    run(tmp_path, parts={"subspaces": same}).prepare_distillation(checkpoint)
    others = trainer(tmp_path / "others", train=views(split="test")).fit_subspaces()
    with pytest.raises(DistillationError, match=f"another subspace of '{STAGES[0]}' than the one that was given"):
        run(tmp_path, parts={"subspaces": others}).prepare_distillation(checkpoint)


class Images(torch.utils.data.Dataset):
    def __init__(self, shift=0.0):
        self.shift = shift

    def __len__(self):
        return 24

    def __getitem__(self, index):
        pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixels + self.shift, "labels": index % 3}


def test_images_of_any_dataset_are_compared(tmp_path):
    def made(shift):
        parts = {"data_collator": torch.utils.data.default_collate, "eval_dataset": None}
        options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        return trainer(tmp_path, train=Images(shift), parts=parts, **options)

    made(0.0).train()
    made(0.0).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(DistillationError, match="another choice of images"):
        made(0.1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_rates_of_a_run_that_was_resumed_are_those_of_its_checkpoint(tmp_path, checkpoint):
    with pytest.warns(UserWarning, match="learning rate stays"):
        run(tmp_path, learning_rate=5e-3).train(resume_from_checkpoint=checkpoint)
    saved = json.loads((tmp_path / "checkpoint-4" / STATE_FILE).read_text(encoding="utf-8"))
    assert saved["rates"]["learning_rate"] == 1e-3


def test_a_checkpoint_of_an_older_version_is_resumed_with_a_word(tmp_path, checkpoint):
    old = tmp_path / "checkpoint-2"
    shutil.copytree(checkpoint, old)
    state = json.loads((old / STATE_FILE).read_text(encoding="utf-8"))
    for name in ("images", "files", "order"):
        del state[name]
    (old / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    with pytest.warns(UserWarning, match="of an older version, does not tell the training images"):
        run(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("part", "option", "before", "other", "told"),
    [
        ("method", "target_scale", "teacher", "unit", r"'teacher'\} there, \{'target_scale': 'unit'\} now"),
        (
            "weights",
            "layer_weight_end",
            1.0,
            0.5,
            r"'layer_weight_end': 1.0\} there, \{'layer_weight_end': 0.5\} now",
        ),
    ],
)
def test_a_checkpoint_from_before_an_option_is_resumed_as_it_was(
    tmp_path, checkpoint, part, option, before, other, told
):
    old = tmp_path / "checkpoint-2"
    shutil.copytree(checkpoint, old)
    state = json.loads((old / STATE_FILE).read_text(encoding="utf-8"))
    del state[part][option]
    (old / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    run(tmp_path, **{option: before}).prepare_distillation(str(old))
    with pytest.raises(DistillationError, match=told):
        run(tmp_path, **{option: other}).prepare_distillation(str(old))


# Files


def test_every_file_that_a_run_needs_to_go_on_is_missed(tmp_path, checkpoint):
    names = sorted(path.name for path in Path(checkpoint).iterdir())
    assert missing_files(checkpoint) == []
    needed = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    needed |= {"alignments.safetensors", "subspaces.safetensors", "subspaces.json"}
    for name in names:
        copy = tmp_path / name / "checkpoint-2"
        shutil.copytree(checkpoint, copy)
        (copy / name).unlink()
        if name in needed:
            assert missing_files(copy) == [name]
            assert last_complete_checkpoint(copy.parent) is None
            with pytest.raises(DistillationError, match=f"has no {name}: its writing or its removal was cut short"):
                run(tmp_path / name).train(resume_from_checkpoint=str(copy))
        else:
            assert name in {STATE_FILE, "config.json"}


@pytest.mark.parametrize("names", [("default",), ("expert",), ("default", "expert")], ids=" ".join)
def test_a_student_with_adapters_of_any_names_goes_on_and_each_of_them_is_missed(tmp_path, names):
    def adapted(folder):
        settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
        student = get_peft_model(vit(), settings, names[0])
        for name in names[1:]:
            student.add_adapter(name, settings)
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        return trainer(folder, student, teacher_vit(), method="kd", **options)

    whole, again = adapted(tmp_path / "whole"), adapted(tmp_path / "again")
    whole.train()
    folder = tmp_path / "whole" / "checkpoint-2"
    again.train(resume_from_checkpoint=str(folder))
    assert_equal_weights(weights_of(again.model), weights_of(whole.model))
    assert last_complete_checkpoint(folder.parent) == str(folder.parent / "checkpoint-4")
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("adapter_model*"))
    assert len(written) == len(names)
    for name in written:
        shutil.move(folder / name, tmp_path / "kept")
        assert missing_files(folder) == [name]
        shutil.move(tmp_path / "kept", folder / name)


def test_a_checkpoint_that_was_removed_in_part_is_passed_over(tmp_path, whole):
    for step in (2, 4):
        shutil.copytree(Path(whole.args.output_dir) / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    for name in ("optimizer.pt", "alignments.safetensors"):
        (tmp_path / "checkpoint-4" / name).unlink()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-4" / STATE_FILE).write_text("{", encoding="utf-8")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("asked", ["last", "named"])
def test_a_checkpoint_of_the_model_alone_is_not_resumed(tmp_path, asked):
    run(tmp_path, save_only_model=True, teacher_cache="off").train()
    message = r"checkpoint-4 has no optimizer.pt, scheduler.pt, rng_state.pth: save_only_model leaves them out"
    with pytest.raises(DistillationError, match=message):
        run(tmp_path, save_only_model=True, teacher_cache="off").train(
            resume_from_checkpoint=True if asked == "last" else str(tmp_path / "checkpoint-4")
        )


def test_weights_in_parts_are_all_there(tmp_path, checkpoint):
    copy = tmp_path / "checkpoint-2"
    shutil.copytree(checkpoint, copy)
    (copy / "model.safetensors").rename(copy / "model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (copy / checkpoints.SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    assert missing_files(copy) == ["model-2-of-2.safetensors"]


class Saves(TrainerCallback):
    """Asks for a checkpoint, as a user's callback may without a save_strategy."""

    def on_step_end(self, args, state, control, **given):
        control.should_save = state.global_step == 2


@pytest.mark.parametrize("images", [lambda: views(**IMAGES), Images], ids=["views", "others"])
def test_a_checkpoint_that_a_callback_asked_for_is_resumed(tmp_path, images):
    options = {"save_strategy": "no", "teacher_cache": "off", "images": images, "parts": {"callbacks": [Saves()]}}
    if images is Images:
        options["parts"] |= {"data_collator": torch.utils.data.default_collate, "eval_dataset": None}
        options["parts"] |= {"fit_dataset": None}
    whole, again = run(tmp_path, **options), run(tmp_path, **options)
    whole.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    again.train(resume_from_checkpoint=True)
    assert_equal_weights(weights_of(again.model), weights_of(whole.model))
    saved = json.loads((tmp_path / "checkpoint-2" / STATE_FILE).read_text(encoding="utf-8"))
    assert saved["images"]["images"] == 24


def test_the_random_state_of_each_process_is_needed(tmp_path, checkpoint):
    copy = tmp_path / "checkpoint-2"
    shutil.copytree(checkpoint, copy)
    (copy / "rng_state.pth").rename(copy / "rng_state_0.pth")
    state = json.loads((copy / STATE_FILE).read_text(encoding="utf-8"))
    state["files"] = [name for name in state["files"] if name != "rng_state.pth"] + [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    (copy / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    assert missing_files(copy) == ["rng_state_1.pth"]
    (copy / "rng_state_1.pth").write_bytes(b"")
    assert missing_files(copy) == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"world_size": 1, "process_index": 0, "local_process_index": 0}, ["rng_state.pth"]),
        (
            {"world_size": 3, "process_index": 0, "local_process_index": 0},
            ["rng_state_0.pth", "rng_state_1.pth", "rng_state_2.pth"],
        ),
        (
            {"world_size": 4, "process_index": 2, "local_process_index": 0, "save_on_each_node": True},
            ["rng_state_2.pth", "rng_state_3.pth"],
        ),
        ({"world_size": 2, "process_index": 0, "local_process_index": 0, "save_only_model": True}, []),
    ],
)
def test_a_checkpoint_lists_the_random_states_of_its_processes(monkeypatch, options, names):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    args = SimpleNamespace(**{"save_only_model": False, "save_on_each_node": False} | options)
    assert checkpoints.random_state_files(args) == names


def test_a_stream_that_was_read_more_than_once_is_told(tmp_path):
    images = views()
    for length, told in ((24, True), (64, False)):  # three batches in a pass, or eight

        def streamed(folder=tmp_path / str(length), length=length):
            order = [index % 24 for index in range(length)]
            parts = {"fit_dataset": images}
            steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
            return trainer(folder, train=InOrder(images, order), parts=parts, method="kd", **steps)

        streamed().train()
        for step in (2, 4):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                streamed().prepare_distillation(str(tmp_path / str(length) / f"checkpoint-{step}"))
            found = [each for each in caught if "the training stream was read more than once" in str(each.message)]
            assert len(found) == (told and step == 4)
