"""Single answers: their calibration, the worst of them, and their pictures."""

import errno

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from helpers import views
from subdistill_hf.pipeline import answers
from subdistill_hf.pipeline.answers import MOST_OF_A_CLASS, calibration_of, save_thumbnails, worst_answers
from subdistill_hf.reporting.reported_answers import THUMBNAILS_FOLDER, WrongAnswer


def logits_of(images, classes, seed=0):
    return 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


def test_the_bins_add_up_to_the_error():
    logits, labels = logits_of(200, 4), [place % 4 for place in range(200)]
    found = calibration_of(logits, labels)
    assert len(found.bins) == 15
    assert [one.low for one in found.bins[1:]] == [one.high for one in found.bins[:-1]]
    assert sum(one.images for one in found.bins) == 200
    empty = [one for one in found.bins if not one.images]
    assert [(one.confidence, one.accuracy) for one in empty] == [(None, None)] * len(empty)
    filled = [one for one in found.bins if one.images]
    assert all(one.low < one.confidence <= one.high for one in filled)
    error = sum(one.images * abs(one.accuracy - one.confidence) for one in filled) / 200
    assert found.expected_error == pytest.approx(error)


def test_the_surest_errors_of_each_class_are_found():
    student, teacher, labels = logits_of(300, 5), logits_of(300, 5, seed=1), [place % 5 for place in range(300)]
    found = worst_answers(student, teacher, labels)
    own, theirs = student.double().softmax(1), teacher.double().softmax(1)
    for label in range(5):
        wrong = [i for i in range(300) if labels[i] == label and int(own[i].argmax()) != label]
        wrong.sort(key=lambda i: -float(own[i].max()))
        of_class = [one for one in found if one.label == label]
        assert [one.image for one in of_class] == wrong[:MOST_OF_A_CLASS]
        for one in of_class:
            assert one.answer == int(own[one.image].argmax())
            assert one.probability == pytest.approx(float(own[one.image].max()))
            assert one.label_probability == pytest.approx(float(own[one.image, label]))
            assert one.teacher_answer == int(theirs[one.image].argmax())
            assert one.teacher_probability == pytest.approx(float(theirs[one.image].max()))
    probabilities = [one.probability for one in found]
    assert probabilities == sorted(probabilities, reverse=True)


def test_the_number_of_errors_is_bounded():
    many = logits_of(2000, 200)
    found = worst_answers(many, many, [place % 200 for place in range(2000)])
    assert len(found) == 60
    assert len({one.label for one in found}) == 60
    right = torch.eye(3)
    assert worst_answers(right, right, [0, 1, 2]) == ()


def wrong(image):
    values = {"probability": 0.9, "label_probability": 0.1, "teacher_answer": 0, "teacher_probability": 1.0}
    return WrongAnswer(image=image, label=0, answer=1, **values)


def test_small_images_keep_their_pixels_and_old_pictures_go(tmp_path):
    images = views(2, "test")
    save_thumbnails(tmp_path, [wrong(0), wrong(3)], images)
    save_thumbnails(tmp_path, [wrong(5)], images)
    (path,) = (tmp_path / THUMBNAILS_FOLDER).iterdir()
    assert path.name == wrong(5).thumbnail
    with Image.open(path) as picture:
        assert torch.equal(pil_to_tensor(picture.convert("RGB")), images.image(5))
        assert not picture.getexif()
    save_thumbnails(tmp_path, [], images)
    assert not (tmp_path / THUMBNAILS_FOLDER).exists()


def test_large_images_are_made_small(tmp_path):
    class Large:
        def image(self, place):
            return torch.zeros(3, 300, 600, dtype=torch.uint8)

    save_thumbnails(tmp_path, [wrong(0)], Large())
    with Image.open(tmp_path / THUMBNAILS_FOLDER / "0.webp") as picture:
        assert picture.size == (96, 48)


def test_pictures_are_extras_but_a_full_disk_is_told(tmp_path, monkeypatch, capsys):
    class Broken:
        def image(self, place):
            raise ValueError("no such image")

    save_thumbnails(tmp_path, [wrong(0)], Broken())
    assert "wrong_answers not drawn: ValueError: no such image" in capsys.readouterr().err

    def full(picture):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(answers, "to_pil_image", full)
    with pytest.raises(OSError, match="No space left"):
        save_thumbnails(tmp_path, [wrong(0)], views(1, "test"))
