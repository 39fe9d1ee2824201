"""A teacher that lacks the classes is fitted to them, kept, used again, or refused with the reason."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from helpers import config, processor, save_teacher, teacher_resnet, teacher_vit, weights_of, write_colour_folder
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.subtask import MissingClassesError
from subdistill_hf.errors import SubDistillError
from subdistill_hf.models.errors import AdapterError
from subdistill_hf.models.loading import load_teacher, weights_digest
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline import adaptation
from subdistill_hf.pipeline.adaptation import adapt, announce_adaptation, announce_fitted, plan_adaptation
from subdistill_hf.pipeline.adaptation_training import ADAPTER_FOLDER
from subdistill_hf.pipeline.auto import HEAD_RATES
from subdistill_hf.pipeline.evaluation import Classifier, predict
from subdistill_hf.pipeline.kept_adapter import AdaptationError
from subdistill_hf.pipeline.task import load_task

pytestmark = pytest.mark.usefixtures("datasets_cache")
COLOURS = ("blue", "green", "grey", "red")
SUBTASK = ("red", "blue", "green")
HEAD = {"adapt_teacher": "head", "adapt_epochs": 40.0, "adapt_learning_rate": None}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Teachers of glyphs, and images whose class is their colour."""
    folder = tmp_path_factory.mktemp("adaptation")
    save_teacher(folder / "resnet")
    save_teacher(folder / "vit", teacher_vit())
    torch.manual_seed(0)
    build_student("timm/test_vit:image=64", CLASS_NAMES[:9], processor()).model.save_pretrained(folder / "timm")
    write_colour_folder(folder / "images", COLOURS, train=20, test=8)
    return folder


def task_of(places, output, teacher="resnet", settings=None, **options):
    defaults = {
        "teacher": str(places / teacher),
        "dataset": str(places / "images"),
        "classes": list(SUBTASK),
        "adapt_teacher": "lora",
        "adapt_epochs": 6.0,
        "adapt_learning_rate": 1e-2,
        "flip": False,
    }
    settings = {"per_device_train_batch_size": 16} | (settings or {})
    return load_task(TaskOptions(**defaults | options), config(output, **settings))


def planned(places, output, resume=False, **options):
    return plan_adaptation(task_of(places, output, **options), output / "runs", resume)


def adapted(places, output, **options):
    return adapt(planned(places, output, **options), output / "runs")


def accuracy(task):
    logits = predict(Classifier(task.teacher.model, task.teacher.processor, task.data.subtask.teacher_ids), task.test)
    return float((logits.argmax(1) == torch.tensor(task.test.labels)).float().mean())


@pytest.fixture(scope="module")
def fitted(places, tmp_path_factory):
    """A teacher that was adapted to three colours, and the folder of its run."""
    output = tmp_path_factory.mktemp("fitted")
    return adapted(places, output), output


@pytest.fixture
def copied(fitted, tmp_path):
    return shutil.copytree(fitted[1], tmp_path / "run")


# What comes out


def test_a_fitted_teacher_knows_the_classes_and_is_a_plain_frozen_model(places, fitted):
    task, _ = fitted
    original = load_teacher(str(places / "resnet"))
    assert accuracy(task) >= 0.9  # chance is a third
    assert type(task.teacher.model) is type(original.model)
    assert not any(module.training for module in task.teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in task.teacher.model.parameters())
    assert task.teacher.labels == dict(enumerate(SUBTASK))
    assert task.data.subtask.teacher_ids == (0, 1, 2)
    before, after = weights_of(original.model), weights_of(task.teacher.model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        learned = name.endswith("convolution.weight") and "embedder" not in name
        assert torch.equal(value, after[name]) != (learned or "classifier" in name), name


def test_what_is_known_of_the_fit_is_for_the_report(fitted):
    task, _ = fitted
    assert task.adaptation == {
        "method": "lora",
        "rank": 8,
        "changed_modules": 11,
        "trained_parameters": task.adaptation["trained_parameters"],
        "classes": 3,
        "train_images": 48,
        "validation_images": 12,
        "validation_accuracy": 1.0,
        "epochs": 6.0,
        "learning_rate": 0.01,
        "training_seconds": task.adaptation["training_seconds"],
    }
    assert task.adaptation["training_seconds"] > 0
    assert announce_fitted(task) == "teacher  resnet, fitted: 100.0 % of 12 validation images"
    weights = load_file(fitted[1] / ADAPTER_FOLDER / "adapter_model.safetensors")
    assert task.adaptation["trained_parameters"] == sum(value.numel() for value in weights.values())


def test_the_saved_adapter_is_read_by_peft_alone_and_as_a_teacher(places, fitted):
    task, output = fitted
    folder = output / ADAPTER_FOLDER
    assert sorted(path.name for path in folder.iterdir()) == [
        "adaptation.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
    ]
    base = AutoModelForImageClassification.from_pretrained(
        places / "resnet", num_labels=3, ignore_mismatched_sizes=True
    )
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = task.teacher.model(pixel_values=pixels).logits
        alone = PeftModel.from_pretrained(base, folder).eval()(pixel_values=pixels).logits
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
    teacher = load_teacher(str(folder))
    assert weights_digest(teacher.model) == weights_digest(task.teacher.model)
    assert teacher.labels == dict(enumerate(SUBTASK))
    assert task_of(places, output, teacher=str(folder)).data.subtask.teacher_ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("vit", {}),
        ("resnet", {"adapt_teacher": "head"}),
        ("timm", {"adapt_epochs": 3.0}),
        ("vit", {"adapt_target_modules": ["q_proj", "v_proj"], "adapt_rank": 2}),
    ],
    ids=["vit", "head", "timm", "chosen modules"],
)
def test_other_teachers_and_ways_beat_chance(places, tmp_path, teacher, options):
    task = adapted(places, tmp_path, teacher=teacher, **options)
    assert accuracy(task) >= 0.6
    names = load_file(tmp_path / ADAPTER_FOLDER / "adapter_model.safetensors")
    lora = [name for name in names if "lora_A" in name]
    assert task.adaptation["changed_modules"] == len(lora)
    if options.get("adapt_teacher") == "head":
        assert not lora
    if "adapt_target_modules" in options:
        assert len(lora) == 8
        assert all(names[name].shape[0] == 2 for name in lora)
    assert load_teacher(str(tmp_path / ADAPTER_FOLDER)).labels == dict(enumerate(SUBTASK))


def test_a_teacher_may_be_fitted_to_all_classes_and_then_teaches_the_subtask(places, tmp_path):
    task = adapted(places, tmp_path, adapt_classes="all")
    assert task.teacher.labels == dict(enumerate(COLOURS))
    assert task.data.subtask.teacher_ids == (3, 0, 1)
    assert (task.adaptation["classes"], task.adaptation["train_images"]) == (4, 64)
    assert len(task.data.train) == 48
    assert accuracy(task) >= 0.9


@pytest.mark.parametrize("classes", ["subtask", "all"])
def test_the_teacher_is_fitted_to_the_marked_images_that_the_student_will_see(places, tmp_path, classes):
    adaptation = planned(places, tmp_path, adapt_classes=classes, mark="plus", mark_share=0.5)
    marked = []
    for data in (adaptation.data, adaptation.task.data):
        assert [data.subtask.names[output] for output in data.marking.outputs] == ["red"]  # not the first of all
        marked.append({data.train[row]["image"].tobytes() for row in data.marked("train").rows})
    assert marked[0] == marked[1]
    assert len(marked[0]) == 8


def test_a_teacher_without_a_head_gets_one(places, tmp_path):
    base = shutil.copytree(places / "resnet", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    task = adapted(places, tmp_path / "out", teacher=str(base))
    assert accuracy(task) >= 0.9
    assert not task.teacher.without_head


def test_a_teacher_that_knows_the_classes_is_taken_as_it_is(places, tmp_path):
    save_teacher(tmp_path / "knows", teacher_resnet([*COLOURS, "more"]))
    task = task_of(places, tmp_path / "out", teacher=str(tmp_path / "knows"))
    assert not task.to_adapt
    assert task.data.subtask.teacher_ids == (3, 0, 1)
    assert task_of(places, tmp_path / "out").to_adapt


def test_without_the_option_the_refusal_names_it(places, tmp_path):
    with pytest.raises(MissingClassesError, match=r"has no class 'red'.* --adapt_teacher lora, which fits"):
        task_of(places, tmp_path, adapt_teacher="no")


# A new head alone


@pytest.fixture(scope="module")
def with_head(places, tmp_path_factory):
    """A teacher whose head alone was trained, with what was printed and the folder of its run."""
    output, printed = tmp_path_factory.mktemp("head"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        plan = planned(places, output, **HEAD)
        task = adapt(plan, output / "runs")
    return task, announce_adaptation(plan) + printed.getvalue(), output


@pytest.fixture
def copied_head(with_head, tmp_path):
    return shutil.copytree(with_head[2], tmp_path / "head")


def test_a_head_is_trained_on_what_the_body_gives_once(places, with_head):
    task, printed, _ = with_head
    assert accuracy(task) >= 0.9
    before, after = weights_of(load_teacher(str(places / "resnet")).model), weights_of(task.teacher.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    learned = task.adaptation
    assert (learned["method"], learned["rank"], learned["augmented_views"]) == ("head", None, 0)
    assert learned["learning_rate"] in HEAD_RATES
    assert learned["training_seconds"] > 0
    assert learned["trained_parameters"] == 3 * 36 + 3
    assert "a new head for 3 classes, from what the teacher's body gives for 48 images, which is computed" in printed
    passes = rf"head     \d+ passes over 48 inputs at a learning rate of {learned['learning_rate']:g}; after pass "
    assert re.search(rf"{passes}{learned['epochs']}, the best, [\d.]+ % of 12 validation images", printed)


def test_a_trained_head_is_used_again_and_made_again_for_other_views(places, with_head, tmp_path, capsys):
    output = shutil.copytree(with_head[2], tmp_path / "run")
    again = adapt(planned(places, output, resume=True, **HEAD), output / "runs")
    assert weights_digest(again.teacher.model) == weights_digest(with_head[0].teacher.model)
    assert again.adaptation == with_head[0].adaptation
    with_views = adapt(planned(places, output, **HEAD, adapt_views=2), output / "runs")
    printed = capsys.readouterr()
    assert "it was made with another choice of views" in printed.err
    assert "passes over 144 inputs" in printed.out
    assert with_views.adaptation["augmented_views"] == 2
    assert accuracy(with_views) >= 0.9


def test_a_head_that_does_not_give_the_answers_alone_is_trained_inside_the_teacher(places, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "bytes_of_inputs", lambda *given: None)
    plan = planned(places, tmp_path, adapt_teacher="head", adapt_epochs=3.0)
    assert "It is trained inside the teacher, whose answers its head alone does not give" in announce_adaptation(plan)
    task = adapt(plan, tmp_path / "runs")
    assert "augmented_views" not in task.adaptation
    with pytest.raises(AdaptationError, match="adapt_views=2: the head of ResNetForImageClassification is trained"):
        planned(places, tmp_path / "other", adapt_teacher="head", adapt_views=2)


# Again


def test_an_adapter_that_is_there_is_used_again(places, fitted, copied):
    before = (copied / ADAPTER_FOLDER / "adapter_model.safetensors").stat().st_mtime_ns
    for resume in (False, True):
        plan = planned(places, copied, resume)
        assert f"{copied / ADAPTER_FOLDER} is used again" in announce_adaptation(plan)
        task = adapt(plan, copied / "runs")
        assert weights_digest(task.teacher.model) == weights_digest(fitted[0].teacher.model)
        assert task.adaptation == fitted[0].adaptation
    assert (copied / ADAPTER_FOLDER / "adapter_model.safetensors").stat().st_mtime_ns == before


def cut(folder):
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[:-9])


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def no_record(folder):
    (folder / "adaptation.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "options", "reason"),
    [
        (cut, {}, r"its adapter_model\.safetensors is damaged"),
        (no_weights, {}, "its files are damaged"),
        (no_record, {}, "its files are damaged"),
        (None, {"adapt_rank": 4}, "it was made with another choice of rank"),
        (None, {"teacher": "vit"}, "it was made with another choice of teacher, target_modules"),
        (None, {"validation_fraction": 0.21}, "it was made with another choice of images"),
        (None, {"classes": ["red", "grey"]}, "it was made with another choice of classes, dataset"),
        (None, {"adapt_teacher": "head"}, "it was made with another choice of method, rank, target_modules"),
        (None, {"augmentation": "none"}, r"it was made with another choice of augmentation\."),
        (None, {"flip": True}, r"it was made with another choice of augmentation\."),
        (None, {"settings": {"seed": 4}}, "it was made with another choice of seed"),
    ],
    ids=["cut", "no weights", "no record", "rank", "teacher", "images", "classes", "method", "crops", "flip", "seed"],
)
def test_an_adapter_that_does_not_fit_is_replaced_by_a_new_run_and_stops_a_resumed_one(
    places, copied, capsys, damage, options, reason
):
    if damage:
        damage(copied / ADAPTER_FOLDER)
    with pytest.raises(AdaptationError, match=rf"cannot be used again: {reason}.* start a new run with --overwrite"):
        planned(places, copied, resume=True, **options)
    plan = planned(places, copied, **options)
    assert plan.record is None
    assert "is replaced:" in capsys.readouterr().err


def with_processor(places, folder, **settings):
    """The teacher with another image processor."""
    teacher = shutil.copytree(places / "resnet", folder)
    path = teacher / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")
    return {"teacher": str(teacher)}


@pytest.mark.parametrize("kept", ["copied", "copied_head"])
def test_an_adapter_of_other_pixels_is_not_used_again(places, request, tmp_path, kept):
    output, options = request.getfixturevalue(kept), HEAD if kept == "copied_head" else {}
    assert planned(places, output, **options, **with_processor(places, tmp_path / "same")).record is not None
    for settings in ({"image_mean": [0.9] * 3}, {"resample": 0}):
        other = with_processor(places, tmp_path / str(settings), **settings)
        with pytest.raises(
            AdaptationError, match=r"cannot be used again: it was made with another choice of processor\."
        ):
            planned(places, output, resume=True, **options, **other)
        assert planned(places, output, **options, **other).record is None


def test_an_adapter_of_another_network_of_the_same_weights_is_not_used_again(places, copied, tmp_path):
    teacher = shutil.copytree(places / "resnet", tmp_path / "teacher")
    described = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(described | {"hidden_act": "gelu"}), encoding="utf-8")
    with pytest.raises(AdaptationError, match="another choice of architecture"):
        planned(places, copied, resume=True, teacher=str(teacher))


@pytest.mark.parametrize(
    ("settings", "resumed"),
    [
        ({"per_device_train_batch_size": 8}, "it was made with another choice of images_of_a_step"),
        ({"lr_scheduler_type": "constant"}, "it was made with another choice of lr_scheduler_type"),
        ({"warmup_steps": 2}, "it was made with another choice of warmup_steps"),
        ({"label_smoothing_factor": 0.1}, "it was made with another choice of label_smoothing_factor"),
        ({"optim": "sgd"}, "it was made with another choice of optim"),
        ({"weight_decay": 0.1}, None),
        ({"max_grad_norm": 0.5}, None),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}, None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_training_arguments_make_an_adapter_anew_and_are_refused_or_told_of_as_a_resumed_run_says(
    places, copied, copied_head, capsys, settings, resumed
):
    assert planned(places, copied, settings=settings).record is None
    assert f"is replaced: it was made with another choice of {next(iter(settings))}" in capsys.readouterr().err
    if resumed is None:
        assert planned(places, copied, resume=True, settings=settings).record is not None
        assert f"stays as it was made: {next(iter(settings))} is " in capsys.readouterr().err
    else:
        with pytest.raises(AdaptationError, match=resumed):
            planned(places, copied, resume=True, settings=settings)
    assert planned(places, copied_head, settings=settings, **HEAD).record is not None  # of which they are no part


def test_what_is_of_the_students_training_alone_makes_no_adapter_anew(places, copied, capsys):
    settings = {"temperature": 2.0, "kd_weight": 2.0, "learning_rate": 0.5, "max_steps": 9, "layer_pairs": 1}
    assert planned(places, copied, settings=settings | {"per_device_eval_batch_size": 7}).record is not None
    assert "note: " not in capsys.readouterr().err


def test_an_adapter_of_an_earlier_version_is_made_anew_and_resumed_with_a_note(places, copied, capsys):
    path = copied / ADAPTER_FOLDER / "adaptation.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in ("processor", "architecture", "training"):
        record["identity"].pop(name)
    path.write_text(json.dumps(record), encoding="utf-8")
    kept = "an earlier version made it, which did not keep processor, architecture, training"
    assert planned(places, copied, resume=True).record is not None
    assert f"stays as it was made: {kept}: not compared" in capsys.readouterr().err
    assert planned(places, copied).record is None
    assert f"is replaced: {kept}" in capsys.readouterr().err


def test_a_replaced_adapter_is_whole(places, copied):
    cut(copied / ADAPTER_FOLDER)
    (copied / f"{ADAPTER_FOLDER}.unfinished").mkdir()
    adapt(planned(places, copied), copied / "runs")
    assert planned(places, copied, resume=True).record is not None
    assert not (copied / f"{ADAPTER_FOLDER}.unfinished").exists()


def test_an_interrupted_fit_goes_on_and_ends_with_the_same_teacher(places, fitted, copied):
    shutil.rmtree(copied / ADAPTER_FOLDER)
    shutil.rmtree(copied / "runs" / "teacher" / "checkpoint-18")
    (left,) = (copied / "runs" / "teacher").glob("checkpoint-*")
    plan = planned(places, copied, resume=True)
    assert Path(plan.checkpoint) == left
    task = adapt(plan, copied / "runs")
    assert weights_digest(task.teacher.model) == weights_digest(fitted[0].teacher.model)
    assert task.adaptation["training_seconds"] is None


def test_a_resumed_run_whose_adapter_is_gone_is_refused(places, copied):
    shutil.rmtree(copied / ADAPTER_FOLDER)
    shutil.copytree(copied / "runs" / "teacher", copied / "runs" / "kd")
    with pytest.raises(AdaptationError, match="with which this run began, is gone"):
        planned(places, copied, resume=True)


# Refused


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"adapt_teacher": "yes"}, ValueError, "adapt_teacher='yes': expected one of no, lora, head"),
        ({"adapt_classes": "some"}, ValueError, "adapt_classes='some': expected one of subtask, all"),
        ({"adapt_rank": 0}, SubDistillError, "adapt_rank=0: expected at least 1"),
        ({"adapt_epochs": -1.0}, SubDistillError, "expected positive numbers"),
        ({"adapt_learning_rate": 0.0}, SubDistillError, "expected positive numbers"),
        ({"adapt_target_modules": ["nothing_like_it"]}, AdapterError, "is named or matches 'nothing_like_it'"),
        (
            {"adapt_teacher": "head", "adapt_target_modules": ["fc1"]},
            SubDistillError,
            "no meaning with adapt_teacher=head",
        ),
        ({"adapt_views": 2}, SubDistillError, "adapt_views has no meaning with adapt_teacher=lora"),
        ({"adapt_teacher": "head", "adapt_views": -1}, SubDistillError, "adapt_views=-1: expected at least 0"),
    ],
)
def test_options_that_cannot_be_are_refused(places, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        planned(places, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_adapted_again(places, fitted, tmp_path):
    with pytest.raises(AdaptationError, match="is an adapter already: adapt its base model 'resnet' instead"):
        planned(places, tmp_path, teacher=str(fitted[1] / ADAPTER_FOLDER), classes=["grey", "red"])


def test_files_of_another_origin_are_never_replaced(places, tmp_path):
    thesis = tmp_path / ADAPTER_FOLDER / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine", encoding="utf-8")
    with pytest.raises(AdaptationError, match="holds other files: move them away"):
        planned(places, tmp_path)
    assert thesis.is_file()


def test_the_record_names_no_folder_of_this_machine(places, fitted):
    record = (fitted[1] / ADAPTER_FOLDER / "adaptation.json").read_text(encoding="utf-8")
    assert str(places) not in record
    assert json.loads(record)["id2label"] == {str(output): name for output, name in enumerate(SUBTASK)}
    assert processor().size["height"] == load_teacher(str(fitted[1] / ADAPTER_FOLDER)).processor.size["height"]


def test_an_adapter_of_other_images_is_not_used_again(places, fitted, copied):
    """Of a folder of the same name, with as many images of the same classes."""
    (places / "other").mkdir()
    write_colour_folder(places / "other" / "images", COLOURS[::-1], train=20, test=8)
    for name in ("blue", "red"):
        (places / "other" / "images" / "train" / name).rename(places / "other" / f"{name} images")
    (places / "other" / "blue images").rename(places / "other" / "images" / "train" / "red")
    (places / "other" / "red images").rename(places / "other" / "images" / "train" / "blue")
    with pytest.raises(AdaptationError, match="another choice of content"):
        planned(places, copied, resume=True, dataset=str(places / "other" / "images"))
