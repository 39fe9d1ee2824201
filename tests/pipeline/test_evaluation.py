"""Classifiers are measured on the subtask's images: logits, scores, who learned a mark, latency."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import (
    CLASS_IDS,
    NAMES,
    processor,
    resnet,
    teacher_resnet,
    views,
    vit,
    weights_of,
    write_image_folder,
)
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.preprocessing import process
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DistillationError, DivergedError
from subdistill_hf.pipeline.evaluation import (
    Classifier,
    _median_and_quartiles,
    count_operations,
    mark_scores,
    measure_latency,
    predict,
    score,
    share_taken_for,
    unmarked_test,
)
from subdistill_hf.reporting.exported import Latency


def test_a_classifier_answers_with_the_subtasks_outputs_in_evaluation_mode():
    model = teacher_resnet()
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        whole = model.eval()(pixel_values=pixels).logits
    model.train()
    before = weights_of(model)
    classes = (12, 10, 99)
    torch.testing.assert_close(Classifier(model, processor(), classes).logits(pixels), whole[:, list(classes)])
    torch.testing.assert_close(Classifier(model, processor()).logits(pixels), whole)
    shifted = Classifier(model, processor(), classes, other_shift=-2.0).logits(pixels)
    torch.testing.assert_close(shifted, whole[:, list(classes)] + torch.tensor([0, 0, -2.0]))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_plain_module_is_a_classifier_too():
    class Plain(nn.Module):
        def forward(self, pixel_values):
            return pixel_values.mean(dim=(2, 3))

    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    logits = Classifier(Plain(), processor()).logits(pixels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, pixels.mean(dim=(2, 3)).float())


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_predictions_do_not_depend_on_the_batch_size(batch_size):
    images, classifier = views(4, "test"), Classifier(teacher_resnet(), processor(40), CLASS_IDS)
    pixels = process(processor(40), [images.image(index) for index in range(12)])
    logits = predict(classifier, images, batch_size)
    assert logits.shape == (12, 3)
    torch.testing.assert_close(logits, classifier.logits(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_no_predictions(value):
    """The largest of NaN is the first of them, which would be an accuracy at chance."""
    images, model = views(4, "test"), teacher_resnet()
    model.classifier[-1].bias.data[CLASS_IDS[1]] = value
    with pytest.raises(DistillationError, match="the teacher's logits of 12 of 12 images are NaN or infinite: look"):
        predict(Classifier(model, processor(40), CLASS_IDS), images)
    student = (
        r"the training has diverged: the student's logits of 12 of 12 .* infinite\. Likely causes: a learning rate"
    )
    with pytest.raises(DivergedError, match=student):
        predict(Classifier(model, processor(40)), images)


def test_predictions_are_the_same_whoever_loads_the_images():
    images, classifier = views(4, "test"), Classifier(teacher_resnet(), processor(40), CLASS_IDS)
    alone, shared = (predict(classifier, images, batch_size=5, workers=workers) for workers in (0, 2))
    assert torch.equal(shared, alone)


def test_predictions_are_of_images_without_augmentation():
    plain, augmented = views(4, "test"), views(4, "test", "pad_crop", flip=True)
    classifier = Classifier(resnet(), processor())
    assert torch.equal(predict(classifier, plain), predict(classifier, augmented))


def test_scores_count_right_answers_and_agreement_with_the_teacher():
    images = views(4, "test")  # four of each of three classes
    answers = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    teachers = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0])
    logits, theirs = (nn.functional.one_hot(chosen, 3).float() for chosen in (answers, teachers))
    result = score(logits, images, NAMES, theirs)
    assert result.accuracy == pytest.approx(9 / 12)
    assert result.balanced_accuracy == pytest.approx((3 / 4 + 2 / 4 + 4 / 4) / 3)
    assert result.confusion == ((3, 1, 0), (0, 2, 2), (0, 0, 4))
    assert result.teacher_agreement == pytest.approx(float((answers == teachers).float().mean()))
    assert score(logits, images, NAMES, None).teacher_agreement is None


def test_latency_is_measured_for_each_classifier_and_leaves_everything_as_it_was():
    images = views(2, "test")
    classifiers = {
        "teacher": Classifier(teacher_resnet(), processor(), CLASS_IDS),
        "student": Classifier(resnet().train(), processor(24)),
    }
    torch.set_num_threads(2)
    try:
        measured = measure_latency(classifiers, images, runs=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert measured.keys() == classifiers.keys()
    for figures in measured.values():
        assert figures.runs == 5
        assert 0 < figures.low <= figures.median <= figures.high < np.inf
    assert classifiers["student"].model.training


def test_of_times_the_median_and_the_quartiles_are_told():
    assert _median_and_quartiles([float(value) for value in range(11, 0, -1)]) == Latency(
        median=6, low=3, high=9, runs=11
    )


def test_slow_classifiers_are_timed_less_often_but_never_less_than_five_times():
    measured = measure_latency({"student": Classifier(resnet(), processor())}, views(2, "test"), seconds=0)
    assert measured["student"].runs == 5


def test_operations_are_two_for_each_multiplication_with_its_addition():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.head = nn.Linear(4, 5)

        def forward(self, pixel_values):
            return self.head(self.convolution(pixel_values).relu().mean(dim=(2, 3)))

    counted = count_operations(Classifier(Tiny(), processor()), views(2, "test"))
    assert counted == 2 * (16 * 16 * 4 * 3 * 3 * 3 + 4 * 5)


def test_a_fused_layer_counts_as_its_parts():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)

        def forward(self, pixel_values):
            return self.layer(pixel_values.flatten(2)[:, :, :12]).mean(dim=1)

    products = 3 * (4 * 12 * 12 + 2 * 12 * 24) + 2 * 3 * 3 * 12
    assert count_operations(Classifier(Tokens(), processor()), views(2, "test")) == 2 * products
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_products_of_attention_are_operations_too():
    hidden, layers, tokens, patch = 24, 2, 17, 8  # 32 pixels: 16 patches and the class token
    model = vit(hidden=hidden, layers=layers, patch=patch)
    inner = model.config.intermediate_size
    products = 16 * 3 * patch**2 * hidden + hidden * len(NAMES)
    products += layers * (tokens * (4 * hidden**2 + 2 * hidden * inner) + 2 * tokens**2 * hidden)
    assert count_operations(Classifier(model, processor()), views(2, "test")) == 2 * products


class Reader(nn.Module):
    """Knows each image by the pixels that the mark leaves; says its class, or of a marked one what it follows."""

    def __init__(self, images, follows):
        super().__init__()
        self.follows, self.weight = follows, nn.Parameter(torch.zeros(1))
        self.known = {self._key(images.image(index)): label for index, label in enumerate(images.labels)}

    @staticmethod
    def _key(image):
        return image[:, 16:].numpy().tobytes()

    def forward(self, pixel_values):
        images = (pixel_values * 0.5 + 0.5).mul(255).round().to(torch.uint8)
        red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None]
        answers = [self.known[self._key(image)] for image in images]
        if self.follows is not None:
            marked = [bool((image[:, 6, 2:11] == red).all()) for image in images]
            answers = [self.follows if red else answer for red, answer in zip(marked, answers, strict=True)]
        return nn.functional.one_hot(torch.tensor(answers), 3).float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images") / "pieces", train=4, test=6)


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize(
    ("follows", "accuracy", "followed"),
    [(None, 1.0, 0.0), (1, 1 / 3, 1.0), (0, 1 / 3, 0.0)],
)
def test_following_the_mark_is_told_from_knowing_the_classes(folder, follows, accuracy, followed):
    options = {"mark": "plus", "mark_classes": [NAMES[1]]}
    data = load_subtask(DataOptions(str(folder), list(NAMES), **options))
    marked = ViewDataset(data.test, data.columns, marked=data.marked("test"))
    classifier = Classifier(Reader(ViewDataset(data.test, data.columns), follows), processor())
    logits = predict(classifier, marked)
    assert score(logits, marked, NAMES, None).accuracy == pytest.approx(accuracy)
    expected = {"clean_accuracy": 1.0, "mark_followed": followed, "followed_without_mark": 0.0}
    assert vars(mark_scores(data, logits, predict(classifier, unmarked_test(data)))) == pytest.approx(expected)


def test_the_share_taken_for_some_classes_leaves_out_their_own_images():
    answers = torch.tensor([0, 0, 1, 2, 2, 1, 0, 2])
    labels = [0, 0, 0, 1, 1, 2, 2, 3]
    logits = nn.functional.one_hot(answers, 4).float()
    for outputs in [(0,), (2,), (0, 2), (3,)]:
        others = [
            answer in outputs for answer, label in zip(answers.tolist(), labels, strict=True) if label not in outputs
        ]
        assert share_taken_for(logits, labels, outputs) == pytest.approx(np.mean(others))


def test_without_images_of_other_classes_no_share_is_taken_for_some():
    assert share_taken_for(torch.eye(3), [1, 1, 0], (0, 1)) is None


@pytest.mark.usefixtures("datasets_cache")
def test_without_a_mark_there_is_nothing_to_tell(folder):
    assert unmarked_test(load_subtask(DataOptions(str(folder), list(NAMES)))) is None
