"""A teacher that takes words is fitted from these on, keeps its other outputs, and is a teacher for other runs."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from command_line import run
from helpers import config, save_teacher, write_colour_folder
from image_text import save_image_text_model
from subdistill_hf.config.commands import ExplainOptions
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.errors import SubDistillError
from subdistill_hf.explain.pair import load_pair
from subdistill_hf.models.errors import AdapterError, ModelError
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.pipeline.adaptation import adapt, announce_adaptation, announce_fitted, plan_adaptation
from subdistill_hf.pipeline.evaluation import Classifier, predict
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.task import load_task

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")
CLASSES = ("red", "blue", "green")
WORDS = ["red | a red tomato", "blue | a white picture", "green | chess king"]
FAMILIES = ("clip", "siglip", "siglip2_naflex")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Image-text models that know nothing yet, and images whose class is their colour."""
    folder = tmp_path_factory.mktemp("words")
    for family in FAMILIES:
        save_image_text_model(folder / family, family)
    save_teacher(folder / "classifier")
    write_colour_folder(folder / "images", (*CLASSES, "grey", "purple"), train=20, test=8)
    return folder


def options_of(places, family, **changed):
    defaults = {
        "teacher": str(places / family),
        "dataset": str(places / "images"),
        "classes": WORDS,
        "student": "resnet:widths=8-8-8,image=32",
        "adapt_teacher": "head",
        "adapt_epochs": 30.0,
        "flip": False,
    }
    return TaskOptions(**defaults | changed)


def adapted(places, output, family="clip", **changed):
    """The task before and after its teacher was fitted, and what was announced."""
    task = load_task(options_of(places, family, **changed), config(output, per_device_train_batch_size=16))
    adaptation = plan_adaptation(task, output / "runs", resume=False)
    return task, adapt(adaptation, output / "runs"), announce_adaptation(adaptation)


def logits_of(task, split="test"):
    images = task.test if split == "test" else task.data.views(split)
    return predict(Classifier(task.teacher.model, task.teacher.processor), images), torch.tensor(images.labels)


def accuracy(task, split="test"):
    logits, labels = logits_of(task, split)
    return float((logits[:, : len(CLASSES)].argmax(1) == labels).float().mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["head", "lora"])
def test_a_fitted_teacher_knows_the_classes_better_than_by_its_words(places, tmp_path, family, way):
    rate = {"adapt_learning_rate": 1e-2, "adapt_epochs": 8.0} if way == "lora" else {}
    before, after, told = adapted(places, tmp_path, family, adapt_teacher=way, **rate)
    assert "the teacher takes words, and is fitted from these on" in told
    assert accuracy(after) > max(0.8, accuracy(before))  # chance is a third
    assert after.data.subtask.teacher_ids == (0, 1, 2)
    assert after.teacher.labels == before.teacher.labels  # with those of none of the classes
    assert not any(parameter.requires_grad for parameter in after.teacher.model.parameters())
    assert not any(module.training for module in after.teacher.model.modules())
    old, new = before.teacher.model.state_dict(), after.teacher.model.state_dict()
    assert old.keys() == new.keys()
    assert torch.equal(old["word_head.weight"][3:], new["word_head.weight"][3:])
    assert torch.equal(old["word_head.bias"][3:], new["word_head.bias"][3:])
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {"word_head.weight", "word_head.bias"} <= changed
    assert (len(changed) > 2) == (way == "lora")
    assert after.adaptation["validation_accuracy_before"] == pytest.approx(accuracy(before, "validation"))
    assert after.adaptation["validation_accuracy"] == pytest.approx(accuracy(after, "validation"))
    assert f"({100 * accuracy(before, 'validation'):.1f} % before it was fitted)" in announce_fitted(after)


@pytest.mark.parametrize(("family", "way"), [("clip", "head"), ("clip", "lora"), ("siglip2_naflex", "head")])
def test_the_folder_of_a_fitted_teacher_is_a_teacher_of_other_runs(places, tmp_path, family, way):
    others = ["a photo.", "a chess rook."]
    _, after, _ = adapted(places, tmp_path / "run", family, adapt_teacher=way, other_prompts=others)
    teacher = load_teacher(str(tmp_path / "run" / "teacher-adapter"))
    assert teacher.labels == dict(enumerate((*CLASSES, "(other) a photo.", "(other) a chess rook.")))
    assert teacher.words is None  # the classes are its own now
    assert teacher.base.name == family
    assert str(teacher.processor) == str(after.teacher.processor)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher.model(pixels), after.teacher.model(pixels))
    other = options_of(places, family, teacher=str(tmp_path / "run" / "teacher-adapter"), adapt_teacher="no")
    task = load_task(
        TaskOptions(**vars(other) | {"classes": ["green", "red"], "adapt_epochs": 0.0}), config(tmp_path / "next")
    )
    assert task.data.subtask.teacher_ids == (2, 0)


def test_an_adapter_of_the_same_words_is_used_again_and_of_other_words_replaced(places, tmp_path):
    _, first, _ = adapted(places, tmp_path)
    _, again, told = adapted(places, tmp_path)
    assert "is used again" in told
    assert again.adaptation == first.adaptation
    _, _, told = adapted(places, tmp_path, classes=[*WORDS[:2], "green | chess queen"])
    assert "is used again" not in told


def test_a_text_of_none_of_the_classes_is_no_class_of_a_later_run(places, tmp_path):
    """Names with commas are synonyms elsewhere."""
    adapted(places, tmp_path / "run", other_prompts=["a photo, grey", "purple"])
    folder = str(tmp_path / "run" / "teacher-adapter")
    assert load_teacher(folder).class_labels == dict(enumerate(CLASSES))
    assert load_teacher(folder).labels[3] == "(other) a photo, grey"
    options = options_of(places, "clip", teacher=folder, classes=["red", "grey"], adapt_teacher="no", adapt_epochs=0.0)
    with pytest.raises(SubDistillError, match="the teacher has no class 'grey'; there are 3"):
        load_task(options, config(tmp_path / "next"))


def test_a_fit_that_made_the_teacher_worse_is_told(places, tmp_path):
    _, after, _ = adapted(places, tmp_path)
    worse = dict(after.adaptation) | {"validation_accuracy": 0.5, "validation_accuracy_before": 0.75}
    assert "better on these images: leave --adapt_teacher out" in announce_fitted(replace(after, adaptation=worse))
    assert "better on these images" not in announce_fitted(after)


def test_words_that_no_pass_makes_better_stay_as_they_are(places, tmp_path):
    before, after, _ = adapted(places, tmp_path, adapt_learning_rate=1e3)
    assert after.adaptation["epochs"] == 0
    torch.testing.assert_close(after.teacher.model.state_dict(), before.teacher.model.state_dict())
    measured = after.adaptation["validation_accuracy"]
    assert measured == pytest.approx(after.adaptation["validation_accuracy_before"])


def test_a_run_says_in_its_card_that_the_words_were_fitted_and_how_well_they_did(places, tmp_path, capsys):
    options = options_of(places, "clip", other_class=True)
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (
        "- It was fitted to these classes before it taught: only the part of its head that was made of their" in card
    )
    assert "before it was fitted" in card
    assert "did not know these classes" not in card
    assert "Classes in words, in: `a photo of {}.`" in card
    assert report.teacher.classes[0] == ("a red tomato",)
    assert report.published_result.unknown  # of the class grey
    capsys.readouterr()
    load_pair(tmp_path / "out", ExplainOptions(teacher=str(places / "clip")))  # before it was fitted
    assert "is not the one that taught this student: its weights differ" in capsys.readouterr().err
    pair = load_pair(tmp_path / "out", ExplainOptions())
    assert "its weights differ" not in capsys.readouterr().err
    assert (pair.teacher.classifier.class_ids, pair.teacher.classifier.other) == ((0, 1, 2), True)
    assert pair.classes == (*CLASSES, "none of these")
    record = json.loads((tmp_path / "out" / "teacher-adapter" / "adaptation.json").read_text(encoding="utf-8"))
    assert record["words"]["classes"][0] == ["a red tomato"]


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        ("clip", {"adapt_classes": "all"}, "takes words, and is fitted to those of --classes: leave it out"),
        ("clip", {"other_class": True, "adapt_teacher": "lora"}, "would change. Use adapt_teacher=head"),
        ("clip", {"unlabelled": "images"}, "needs a teacher that is fitted already"),
        ("classifier", {"other_class": True, "classes": list(CLASSES)}, "with adapt_classes=all"),
    ],
)
def test_what_does_not_go_together_is_refused(places, tmp_path, family, changed, message):
    if "unlabelled" in changed:
        shutil.copytree(places / "images" / "train" / "grey", tmp_path / "more")
        changed = {"unlabelled": str(tmp_path / "more")}
    with pytest.raises(SubDistillError, match=message):
        load_task(options_of(places, family, **changed), config(tmp_path / "out"))


def test_adapt_leaves_plain_models_and_refuses_words(places, tmp_path):
    given = ["--teacher", places / "clip", "--dataset", places / "images", "--output_dir", tmp_path / "out"]
    status, _, said = run("adapt", [*map(str, given), "--use_cpu"])
    assert status != 0
    assert "takes words: fitted to some, it is none of the plain models that this command leaves" in said
    assert not (tmp_path / "out").exists()


def test_damaged_records_are_told(places, tmp_path):
    adapted(places, tmp_path)
    folder = tmp_path / "teacher-adapter"
    record = json.loads((folder / "adaptation.json").read_text(encoding="utf-8"))
    (folder / "adaptation.json").write_text(json.dumps(record | {"words": {"classes": 3}}), encoding="utf-8")
    with pytest.raises(ModelError, match="expected classes, prompts, other_prompts and class_names as lists"):
        load_teacher(str(folder))
    shorter = record["words"] | {"classes": record["words"]["classes"][:2], "class_names": list(CLASSES[:2])}
    (folder / "adaptation.json").write_text(json.dumps(record | {"words": shorter}), encoding="utf-8")
    with pytest.raises((ModelError, AdapterError), match="does not fit"):
        load_teacher(str(folder))


def test_a_fit_that_was_cut_short_goes_on(places, tmp_path, monkeypatch):
    options = options_of(places, "clip", adapt_teacher="lora", adapt_learning_rate=1e-2, adapt_epochs=8.0)
    whole = distill(options, config(tmp_path / "whole", method="kd", max_steps=2))

    def cut_short(*given, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("subdistill_hf.pipeline.adaptation._save", cut_short)
        with pytest.raises(KeyboardInterrupt):
            distill(options, config(tmp_path / "out", method="kd", max_steps=2))
    assert not (tmp_path / "out" / "teacher-adapter").exists()
    resumed = config(tmp_path / "out", method="kd", max_steps=2, resume_from_checkpoint="true")
    again = distill(options, resumed)
    assert again.teacher.digest == whole.teacher.digest
    assert again.teacher.adaptation.validation_accuracy == whole.teacher.adaptation.validation_accuracy
