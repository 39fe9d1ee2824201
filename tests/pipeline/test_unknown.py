"""An answer "none of these" in a run: its teacher, its figures, its threshold, and the snippet that uses it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from helpers import (
    CLASS_IDS,
    config,
    processor,
    resnet,
    save_teacher,
    task_options,
    teacher_resnet,
    write_colour_folder,
    write_image_folder,
)
from subdistill_hf.config.commands import ExplainOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.other_classes import GLANCED_BYTES, with_images_from_elsewhere
from subdistill_hf.data.other_images import OTHER
from subdistill_hf.errors import DataError
from subdistill_hf.explain.pair import load_pair
from subdistill_hf.export.images import images_of_run
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.hub.snippet import ANSWERS
from subdistill_hf.metrics import auroc, auroc_error, share_reaching, threshold_keeping
from subdistill_hf.models.loading import load_student
from subdistill_hf.pipeline import unknown
from subdistill_hf.pipeline.evaluation import Classifier, predict
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.task import load_task
from subdistill_hf.pipeline.unknown import (
    ENERGY,
    LARGEST,
    OTHER_SCORE,
    accuracy_of_classes,
    is_tested_on_unknown,
    known_scores,
    rejection_of,
    shift_of_other,
    unknown_logits,
    validation_logits,
    with_unknown_images,
)
from subdistill_hf.reporting.report import TEACHER
from subdistill_hf.teacher.class_ids import subtask_logits

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")
NAMES = [CLASS_NAMES[class_id] for class_id in CLASS_IDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("unknown")
    save_teacher(place / "teacher")
    write_image_folder(place / "images", class_ids=(*CLASS_IDS, 20, 21, 22, 23, 24), train=6, test=3)
    return place


def run(folder, tmp_path, **changed):
    options = task_options(folder, dataset=str(folder / "images"), classes=NAMES, **changed)
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    settings = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    return report, settings, (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def open_test_image(folder, tmp_path, name, index):
    """The pixels of a test image, as transformers alone makes them."""
    image = Image.open(folder / "images" / "test" / name / f"{index}.png").convert("RGB")
    return AutoImageProcessor.from_pretrained(tmp_path / "out")(image, return_tensors="pt")["pixel_values"][0]


def test_a_student_with_an_answer_for_other_classes(folder, tmp_path):
    report, settings, card = run(folder, tmp_path, other_class=True)
    assert report.classes == (*NAMES, OTHER)
    assert settings["id2label"]["3"] == OTHER
    assert settings["other_class"] is True
    assert TorchStudent(load_student(tmp_path / "out")).known_classes == NAMES
    assert "unknown_threshold" not in settings  # its largest output is its answer
    assert (report.rejection.score, report.rejection.threshold) == (OTHER_SCORE, 0.5)
    assert report.rejection.validation_images == len(NAMES)  # one of each class, of six
    for result in report.results:
        assert {(each.kind, each.score) for each in result.unknown} == {
            (kind, score) for kind in ("near", "far") for score in (OTHER_SCORE, LARGEST, ENERGY)
        }
        assert result.accuracy_of_classes >= result.accuracy
        assert result.other_shift
    images = len(NAMES) * 3
    answered = sum(row[-1] for row in report.published_result.confusion)
    assert report.rejection.known_kept == pytest.approx(1 - answered / images)  # the largest output decides
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        pixels = torch.stack([open_test_image(folder, tmp_path, name, index) for name in NAMES for index in range(3)])
        answers = student(pixel_values=pixels).logits.argmax(dim=1)
    assert (answers == 3).sum() == answered
    steps = report.rejection.histograms
    assert set(steps) == {"known", "near", "far"}
    assert sum(steps["known"]) == images
    assert "(scores.png)" in card
    assert set(report.published_result.per_class_accuracy) == set(NAMES)
    assert '| Without "none of these" |' in card
    assert "After the training its logit was shifted once" in card
    assert 'An answer "none of these" counts as wrong; passed over,' in card
    assert '**It may answer "none of these".**' in card
    assert "## Images of none of the classes" in card
    assert OTHER in report.usage.output


def test_a_closed_student_gets_a_threshold(folder, tmp_path):
    report, settings, card = run(folder, tmp_path, test_unknown=True)
    assert report.classes == tuple(NAMES)
    assert settings["unknown_threshold"] == report.rejection.threshold
    assert {each.score for each in report.published_result.unknown} == {LARGEST, ENERGY}
    assert "unknown_threshold" in report.usage.code
    assert f"{report.rejection.threshold:.3f}" in card


def test_a_class_may_have_the_name_of_the_answer_where_there_is_none(folder, tmp_path):
    """Its student starts from one that has the answer, and forgets that."""
    images, names = tmp_path / "images", [OTHER, *NAMES[1:]]
    shutil.copytree(folder / "images", images)
    for split in ("train", "test"):
        (images / split / NAMES[0]).rename(images / split / OTHER)
    save_teacher(tmp_path / "teacher", teacher_resnet([OTHER if name == NAMES[0] else name for name in CLASS_NAMES]))
    start = resnet(names)
    start.config.update({"other_class": True, "unknown_threshold": 0.5})
    save_teacher(tmp_path / "start", start)
    given = {"teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "start"), "dataset": str(images)}
    options = task_options(folder, **given, classes=names)
    report = distill(options, config(tmp_path / "out", method="kd", max_steps=2))
    assert report.classes == tuple(names)
    settings = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert not {"other_class", "unknown_threshold"} & set(settings)
    student = TorchStudent(load_student(tmp_path / "out"))
    assert student.known_classes == names
    assert images_of_run(report.image_options, student.known_classes).test.labels
    pair = load_pair(tmp_path / "out", ExplainOptions(teacher=str(tmp_path / "teacher")))
    assert pair.known_classes == tuple(names)


@pytest.mark.parametrize("test_unknown", [None, True])
def test_a_student_is_tested_with_images_from_elsewhere_where_its_dataset_has_no_other_classes(
    folder, tmp_path, test_unknown
):
    write_image_folder(tmp_path / "own", train=6, test=3)
    write_colour_folder(tmp_path / "secret" / "walls", ("blue", "red"), train=10, test=2)
    options = task_options(folder, dataset=str(tmp_path / "own"), classes=["all"])
    options = replace(options, unknown_images=str(tmp_path / "secret" / "walls"), test_unknown=test_unknown)
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    assert {(each.kind, each.score, each.images) for each in report.published_result.unknown} == {
        ("elsewhere", LARGEST, 9),
        ("elsewhere", ENERGY, 9),
    }
    assert (report.dataset.others.elsewhere, report.dataset.others.elsewhere_images) == ("walls", 9)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "elsewhere, 9" in card
    assert "those from elsewhere are of `walls`" in card
    assert "secret" not in card


@pytest.fixture(scope="module")
def closed(folder, tmp_path_factory, datasets_cache):
    """A task whose user said nothing of other classes."""
    options = task_options(folder, dataset=str(folder / "images"), classes=NAMES)
    return load_task(options, config(tmp_path_factory.mktemp("closed") / "out"))


def asked(task, **changed):
    resolved = replace(task.resolved, options=replace(task.options, **changed))
    return replace(task, resolved=resolved)


def test_without_being_asked_a_student_is_tested_with_a_few_images_of_other_classes(closed):
    assert closed.data.others is None
    others = with_unknown_images(closed).data.others
    assert others.near is None
    assert not others.answered
    assert len(others.far) == len(closed.data.test) == 9
    assert set(others.far["label"]) == {3}
    looked = with_unknown_images(closed)
    assert with_unknown_images(looked) is looked
    student = Classifier(resnet(), processor())
    (tested,) = unknown_logits(looked, {TEACHER: closed.teacher_classifier, "kd": student}).items()
    assert tested[0] == "kd"
    assert tested[1]["far"].shape == (9, 3)
    assert is_tested_on_unknown(asked(looked, test_unknown=True), TEACHER)


def test_a_few_images_of_other_classes_stand_beside_those_from_elsewhere(folder, closed, tmp_path):
    options = replace(closed.options, unknown_images=str(tmp_path / "walls"))
    write_colour_folder(tmp_path / "walls", ("blue",), train=4, test=1)
    task = replace(closed, data=with_images_from_elsewhere(closed.data, options, 0))
    assert with_unknown_images(task).data.others.counts() == {"far": 9, "elsewhere": 4}
    assert with_unknown_images(task).data.others.elsewhere_name == "walls"


def test_it_is_left_out_where_it_is_not_wanted_or_would_take_long(closed, monkeypatch):
    assert with_unknown_images(asked(closed, test_unknown=False)).data.others is None
    assert with_unknown_images(asked(closed, streaming=True)).data.others is None
    for changed in ({"labels_by_teacher": True}, {"class_names": tuple(NAMES)}):
        task = replace(closed, data=replace(closed.data, **changed))
        assert with_unknown_images(task).data.others is None
    monkeypatch.setattr(closed.data.test.info, "download_size", 2 * GLANCED_BYTES)
    assert with_unknown_images(closed).data.others is None


def test_images_that_cannot_be_read_do_not_cost_the_student(closed, monkeypatch, capsys):
    def broken(*given):
        raise DataError("it is damaged")

    monkeypatch.setattr(unknown, "glance_at_others", broken)
    assert with_unknown_images(closed) is closed
    assert "note: not tested with images of other classes: it is damaged" in capsys.readouterr().err


def test_without_validation_images_every_second_test_image_gives_the_threshold(closed):
    looked, random = with_unknown_images(closed), torch.Generator().manual_seed(0)
    known, far = (torch.randn(count, 3, dtype=torch.float64, generator=random) for count in (61, 9))
    found = rejection_of(looked, Classifier(resnet(), processor()), known, {"far": far})
    scores = [np.exp(row).max() / np.exp(row).sum() for row in known.numpy()]
    reached = [np.mean(np.array(scores[::2]) >= each) for each in scores]
    assert found.threshold == pytest.approx(max(np.array(scores[::2])[np.array(reached[::2]) >= 0.95]))
    assert found.known_kept == pytest.approx(np.mean(np.array(scores[1::2]) >= found.threshold))
    assert (found.of_test, found.validation_images) == (True, 31)
    assert sum(found.histograms["known"]) == 30
    assert rejection_of(looked, Classifier(resnet(), processor()), known[:38], {"far": far}) is None


def test_the_answer_for_other_classes_may_be_passed_over():
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.0, 3.0, 5.0]])
    assert accuracy_of_classes(logits, [0, 1, 1, 1]) == 0.75
    assert (logits.argmax(dim=1) == torch.tensor([0, 1, 1, 1])).double().mean() == 0.25


def test_the_teachers_answer_is_the_probability_of_all_its_other_classes():
    logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = [4, 0, 7]
    ours = subtask_logits(logits, ids, other=True).softmax(dim=1)
    everything = logits.softmax(dim=1)
    torch.testing.assert_close(ours[:, :3], everything[:, ids])
    torch.testing.assert_close(ours[:, 3], 1 - everything[:, ids].sum(dim=1))
    assert torch.equal(subtask_logits(logits, ids), logits[:, ids])
    assert subtask_logits(logits, None) is logits


def test_images_of_other_classes_have_no_part_in_the_threshold(folder, tmp_path):
    options = task_options(folder, dataset=str(folder / "images"), classes=NAMES, other_class=True)
    task, student = load_task(options, config(tmp_path / "out")), Classifier(resnet((*NAMES, OTHER)), processor())
    images = task.validation()
    known = [place for place, label in enumerate(images.labels) if label < len(NAMES)]
    assert 0 < len(known) < len(images)
    torch.testing.assert_close(validation_logits(task, student), predict(student, images)[known])


def test_the_shift_keeps_most_validation_images_and_no_more(closed, monkeypatch):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=random) + torch.tensor([0, 0, 0, 2.0])
    monkeypatch.setattr(unknown, "validation_logits", lambda *given: logits)
    shift = shift_of_other(closed, Classifier(resnet(), processor()))
    answers = (logits + torch.tensor([0, 0, 0, shift])).argmax(dim=1)
    assert (answers != 3).sum() == 57
    lead = np.sort(logits[:, :3].amax(dim=1) - logits[:, 3])
    assert lead[2] < shift < lead[3]


def test_scores_of_known_images():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    scores = known_scores(logits, other=True)
    p = np.exp(logits.double().numpy())
    np.testing.assert_allclose(scores[OTHER_SCORE], p[:, :2].max(1) / (p[:, :2].max(1) + p[:, 2]))
    np.testing.assert_allclose(scores[LARGEST], p[:, :2].max(1) / p[:, :2].sum(1))
    np.testing.assert_allclose(scores[ENERGY], np.log(p[:, :2].sum(1)))
    assert set(known_scores(logits, other=False)) == {LARGEST, ENERGY}


def test_the_area_under_the_curve_counts_pairs():
    random = np.random.default_rng(0)
    known, unknown = random.integers(0, 8, 30) + 2, random.integers(0, 8, 20)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs))
    assert auroc([1, 2], [0]) == 1
    assert auroc_error(1.0, 10, 10) == 0
    assert auroc_error(0.5, 100, 100) == pytest.approx(np.sqrt(201 / 12 / 100**2), rel=0.02)  # of Mann and Whitney
    with pytest.raises(ValueError, match="at least one image"):
        auroc([], [1])


def test_a_threshold_keeps_at_least_the_share_and_no_more_than_needed():
    scores = np.random.default_rng(0).random(37)
    threshold = threshold_keeping(scores, 0.95)
    assert share_reaching(scores, threshold) >= 0.95
    assert share_reaching(scores, np.nextafter(threshold, 2)) < 0.95


def test_the_snippet_rejects_what_is_below_the_threshold(capsys):
    class Settings:
        unknown_threshold = 0.5

    def classify(image):
        return [{"label": "cat", "score": 0.45}, {"label": "dog", "score": 0.4}]

    classify.model = type("Model", (), {"config": Settings})
    exec(ANSWERS[True].format(image='"example.png"'), {"classify": classify})
    assert capsys.readouterr().out.splitlines()[-1] == "none of these"
