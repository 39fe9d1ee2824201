"""Images without labels in a run: which are kept, who learns from them, and what is said of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import NAMES, config, task_options, write_image_folder, write_task
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.data.other_images import OTHER
from subdistill_hf.errors import DataError, DistillationError, SubDistillError
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.pipeline import selection
from subdistill_hf.pipeline.report import reported_dataset
from subdistill_hf.pipeline.run import build_run, teacher_of
from subdistill_hf.pipeline.selection import look_at
from subdistill_hf.pipeline.task import announce, load_task
from subdistill_hf.pipeline.validation import validate_options
from subdistill_hf.reporting.card_notes import unknown_note, unlabelled_fact

pytestmark = pytest.mark.usefixtures("datasets_cache")


MINE = {"unlabelled_threshold": 0.0, "validation_fraction": 0.2, "mix": 0}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A task, and a folder of 12 new images, 2 of the test, 1 of the training (mirrored) and 1 that is damaged."""
    folder = write_task(tmp_path_factory.mktemp("unlabelled"))
    (folder / "mine").mkdir()
    for index in range(12):
        render(0, "train", 40 + index, 7).save(folder / "mine" / f"new{index}.png")
    for index in range(2):
        render(0, "test", 10, index).save(folder / "mine" / f"test{index}.bmp")
    mirror(render(0, "train", 11, 0), folder / "mine" / "mirrored.png")
    (folder / "mine" / "damaged.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def everything(inputs, tmp_path_factory):
    """The task with all of these images that may be used."""
    return load_task(options_of(inputs), config(tmp_path_factory.mktemp("everything") / "out", disable_tqdm=True))


def options_of(inputs, **changed):
    return task_options(inputs, **{**MINE, "unlabelled": str(inputs / "mine"), **changed})


def test_copies_of_other_images_and_damaged_ones_are_left_out_and_counted(everything):
    chosen = everything.selection
    assert (chosen.found, chosen.damaged, chosen.held_out, chosen.copies) == (16, 1, 2, 1)
    assert chosen.kept == len(chosen.masses) == 12
    assert sum(chosen.kept_per_class.values()) == 12
    assert len(everything.data.rows("taught")) == len(everything.data.train) + 12


def mirror(image, path):
    Image.fromarray(np.asarray(image.convert("RGB"))[:, ::-1]).save(path)


def test_near_duplicates_of_validation_images_are_no_training_images(inputs, everything, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    validation, train = everything.data.validation["image"], everything.data.train["image"]
    for place in range(2):
        mirror(validation[place], mine / f"validation{place}.png")
    mirror(train[0], mine / "train.png")
    shutil.copy(inputs / "mine" / "new0.png", mine)
    chosen = load_task(options_of(inputs, unlabelled=str(mine)), config(tmp_path / "out", disable_tqdm=True)).selection
    assert (chosen.found, chosen.held_out, chosen.copies, chosen.kept) == (4, 2, 1, 1)


def test_copies_of_unknown_images_are_left_out_and_far_classes_may_be_among_the_others(inputs, tmp_path, capsys):
    images, mine, walls = (tmp_path / name for name in ("images", "mine", "walls"))
    write_image_folder(images, class_ids=(10, 11, 12, 13, 14, 15))
    for place, seed in ((mine, 5), (walls, 6)):
        place.mkdir()
        for index in range(4):
            render(seed, "train", 50 + index, 7).save(place / f"{index}.png")
    shutil.copy(walls / "0.png", mine / "wall.png")
    for name in (13, 14, 15):
        shutil.copy(images / "test" / CLASS_NAMES[name] / "0.png", mine / f"{name}.png")
    given = {"dataset": str(images), "unlabelled": str(mine), "unknown_images": str(walls), "other_class": True}
    task = load_task(options_of(inputs, **given), config(tmp_path / "out", disable_tqdm=True))
    assert set(task.data.others.counts()) == {"near", "far", "elsewhere"}
    assert (task.selection.found, task.selection.held_out) == (8, 4)
    announce(task)
    said = "lasses of far images may be among the"
    assert said in capsys.readouterr().out
    assert said in unknown_note(reported_dataset(task))
    assert said not in unknown_note(replace(reported_dataset(task), unlabelled=None))


def test_those_below_the_threshold_that_show_other_classes_are_counted_apart(inputs, everything, tmp_path):
    images = write_image_folder(tmp_path / "images", class_ids=(10, 11, 12, 13, 14, 15))
    settings = config(tmp_path / "out", disable_tqdm=True)
    given = {"dataset": str(images), "other_class": True, "other_images": 5}
    masses = sorted(everything.selection.masses)
    middle = (masses[7] + masses[8]) / 2
    task = load_task(options_of(inputs, **given, unlabelled_threshold=middle), settings)
    chosen = task.selection
    above = sum(mass >= middle for mass in chosen.masses)
    assert (chosen.kept, chosen.kept_as_other) == (above + 4, task.data.others.train_images) == (above + 4, 4)
    kept = task.data.rows("taught").select(range(len(task.data.train), len(task.data.rows("taught"))))
    pixels = task.teacher.processor([image.convert("RGB") for image in kept["image"]], return_tensors="pt")
    probabilities = task.teacher.model(**pixels).logits.double().softmax(dim=1)
    of_classes = probabilities[:, list(task.data.subtask.teacher_ids)]
    answers = torch.cat([of_classes, 1 - of_classes.sum(dim=1, keepdim=True)], dim=1).argmax(dim=1)
    assert [*chosen.kept_per_class.values()] == torch.bincount(answers, minlength=4).tolist()
    assert sum(chosen.kept_per_class.values()) == chosen.kept
    assert chosen.kept_per_class[OTHER] > 0
    assert (
        f"kept: {above} with at least {middle:g} (--unlabelled_threshold)\nkept: 4 with less than {middle:g}, for"
        in str(chosen)
    )
    fact = unlabelled_fact(reported_dataset(task))
    assert f": {above} are those that show" in fact
    assert 'by the teacher, and 4 with less, for the answer "none of these"' in fact


def test_the_teachers_probability_decides(inputs, everything, tmp_path):
    masses = sorted(everything.selection.masses)
    logits = everything.teacher.model(
        pixel_values=everything.teacher.processor(
            [row["image"].convert("RGB") for row in everything.data.rows("taught").select(range(15, 27))],
            return_tensors="pt",
        )["pixel_values"]
    ).logits
    expected = sorted(logits.double().softmax(1)[:, list(everything.data.subtask.teacher_ids)].sum(1).tolist())
    assert masses == pytest.approx(expected, rel=1e-4)
    least = masses[8]
    task = load_task(options_of(inputs, unlabelled_threshold=least), config(tmp_path / "out", disable_tqdm=True))
    assert task.selection.kept == sum(mass >= least for mass in task.selection.masses) == 4
    with pytest.raises(DataError, match=r"keeps none of 16 images.*--unlabelled_threshold 0.* would keep"):
        load_task(options_of(inputs, unlabelled_threshold=0.999), config(tmp_path / "out", disable_tqdm=True))


def test_a_teacher_whose_logits_are_not_finite_chooses_nothing(inputs, tmp_path):
    spoiled = load_teacher(str(inputs / "teacher"))
    spoiled.model.classifier[-1].bias.data[0] = float("nan")
    settings = config(tmp_path / "out", disable_tqdm=True)
    with pytest.raises(DistillationError, match="the teacher's logits of 15 of 15 images are NaN or infinite"):
        load_task(options_of(inputs), settings, spoiled)


def test_moments_and_training_take_them_and_evaluation_and_labels_alone_do_not(everything, tmp_path):
    teacher = teacher_of(everything)
    runs = {method: build_run(everything, method, teacher).trainer for method in ("scratch", "ce_kd", "subdistill")}
    labelled = len(everything.data.train)
    assert {name: len(one.train_dataset) for name, one in runs.items()} == {
        "scratch": labelled,
        "ce_kd": labelled + 12,
        "subdistill": labelled + 12,
    }
    assert {len(one.fit_dataset) for one in runs.values()} == {labelled + 12}
    assert -100 not in runs["subdistill"].eval_dataset.labels
    labels = runs["ce_kd"].train_dataset.labels
    assert labels[labelled:] == [-100] * 12
    assert -100 not in labels[:labelled]


def test_every_method_has_as_many_steps(inputs, tmp_path):
    settings = config(tmp_path / "out", disable_tqdm=True, max_steps=-1, num_train_epochs=3)
    task = load_task(options_of(inputs), settings)
    trainers = [build_run(task, method, teacher_of(task)).trainer for method in ("scratch", "kd")]
    assert trainers[0].args.max_steps == 3 * len(trainers[1].get_train_dataloader())


def test_a_run_says_what_became_of_them(everything, capsys):
    announce(everything)
    said = capsys.readouterr().out
    assert "12 without labels to train" in said
    assert (
        "mine: 16 images without labels; left out: 2 near-duplicates of validation or test images, 1 near-dup" in said
    )
    assert "kept: 12 with at least 0 (--unlabelled_threshold)" in said
    assert "by the teacher's answer: " + NAMES[0] in said
    reported = reported_dataset(everything)
    assert (reported.unlabelled.kept, reported.unlabelled.name) == (12, "mine")
    assert sum(reported.unlabelled.histogram) == 12
    assert "12 of 16 of `mine`" in unlabelled_fact(reported).replace("mine:", "`mine`:")


def test_the_next_run_of_the_same_images_and_teacher_does_not_look_again(inputs, everything, tmp_path, monkeypatch):
    seen = []
    look = selection._look
    monkeypatch.setattr(selection, "_look", lambda rows, *given: seen.append(len(rows)) or look(rows, *given))

    def load(name, **changed):
        return load_task(options_of(inputs, **changed), config(tmp_path / name, disable_tqdm=True))

    again = load("other classes", classes=list(NAMES[:2]))  # as another expert of a family
    assert seen == []
    assert set(again.selection.kept_per_class) == set(NAMES[:2])
    assert load("same").selection == everything.selection
    assert seen == []
    (inputs / "mine" / "new99.png").write_bytes((inputs / "mine" / "new0.png").read_bytes())
    try:
        assert load("one more").selection.found == 17
    finally:
        (inputs / "mine" / "new99.png").unlink()
    assert seen == [17]
    teacher = load_teacher(str(inputs / "teacher"))
    with torch.no_grad():
        next(teacher.model.parameters()).add_(0.1)
    rows = everything.data.rows("train")
    look_at(rows, everything.data.columns, teacher)
    look_at(rows, everything.data.columns, everything.teacher)
    assert seen == [17, len(rows), len(rows)]


def test_images_that_are_all_there_already_are_refused(inputs, tmp_path):
    with pytest.raises(DataError, match="all 18 images are near-duplicates of labelled ones"):
        load_task(
            options_of(inputs, unlabelled=str(inputs / "images" / "train")),
            config(tmp_path / "out", disable_tqdm=True),
        )


def test_methods_that_need_each_label_are_refused(inputs, tmp_path):
    for method, compared in (("dkd", []), ("kd", ["dkd"])):
        with pytest.raises(SubDistillError, match="'dkd' needs the class of each image"):
            validate_options(options_of(inputs, compare=compared), config(tmp_path / "out", method=method))


def test_a_teacher_that_lacks_the_classes_cannot_choose(inputs, tmp_path):
    given = options_of(inputs, dataset="digits", classes=["superclass:even"], adapt_teacher="lora")
    with pytest.raises(SubDistillError, match="needs a teacher that is fitted already"):
        load_task(given, config(tmp_path / "out", disable_tqdm=True))


def test_a_training_step_with_no_label_at_all_is_finite(everything):
    trainer = build_run(everything, "ce_kd", teacher_of(everything)).trainer
    trainer.prepare_distillation()
    images = trainer.train_dataset
    batch = trainer.data_collator([images[len(images) - 1 - place] for place in range(4)])
    loss = trainer.loss_terms(
        {"logits": torch.zeros(4, 3, requires_grad=True), "layer_losses": torch.zeros(0)},
        torch.ones(4, 3),
        batch["labels"],
    )
    assert float(loss["task"].detach()) == 0


def test_threshold_and_number_have_no_meaning_alone():
    for option in ({"unlabelled_threshold": 0.2}, {"unlabelled_images": 5}):
        with pytest.raises(SubDistillError, match="has no meaning without --unlabelled"):
            task_options(Path("x"), **option)
