"""Who learned the mark: a classifier that looks at the mark alone, one that does not see it, and one in between."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import NAMES, processor, write_image_folder
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.pipeline.evaluation import Classifier, predict, score
from subdistill_hf.pipeline.mark_scores import mark_scores, share_taken_for, unmarked_test

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
    assert score(logits, marked, NAMES, None)["accuracy"] == pytest.approx(accuracy)
    expected = {"clean_accuracy": 1.0, "mark_followed": followed, "followed_without_mark": 0.0}
    assert mark_scores(data, logits, predict(classifier, unmarked_test(data))) == pytest.approx(expected)


def test_the_share_taken_for_some_classes_leaves_out_their_own_images():
    answers = torch.tensor([0, 0, 1, 2, 2, 1, 0, 2])
    labels = [0, 0, 0, 1, 1, 2, 2, 3]
    logits = nn.functional.one_hot(answers, 4).float()
    for outputs in [(0,), (2,), (0, 2), (3,)]:
        others = [
            answer in outputs for answer, label in zip(answers.tolist(), labels, strict=True) if label not in outputs
        ]
        assert share_taken_for(logits, labels, outputs) == pytest.approx(np.mean(others))


def test_without_a_mark_there_is_nothing_to_tell(folder):
    assert unmarked_test(load_subtask(DataOptions(str(folder), list(NAMES)))) is None
