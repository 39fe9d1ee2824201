"""Near-duplicates: one picture in another encoding, size, brightness or mirrored, and no other picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from subdistill_hf.data import near_duplicates as module
from subdistill_hf.data.near_duplicates import SIDE, near_duplicates, thumbnails


def picture(seed, size=48):
    """A random picture that is smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def as_jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


def pixels(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


CHANGES = {
    "the same": lambda image: image,
    "another encoding": as_jpeg,
    "smaller": lambda image: image.resize((20, 31)),
    "darker": lambda image: image.point(lambda value: value // 2),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_picture_is_found_however_it_was_changed(change):
    known = thumbnails([pixels(picture(seed)) for seed in range(5)])
    asked = thumbnails([pixels(change(picture(3))), pixels(change(picture(9)))])
    assert near_duplicates(asked, known).tolist() == [True, False]
    assert near_duplicates(asked, known[:0]).tolist() == [False, False]
    assert near_duplicates(asked[:0], known).tolist() == []


def test_images_without_a_pattern_are_alike_and_unlike_all_others():
    asked = thumbnails([torch.full((3, 20, 30), value) for value in (0, 255)] + [pixels(picture(3))])
    pictures, with_one = thumbnails([pixels(picture(seed)) for seed in range(2)]), torch.full((3, 40, 40), 90)
    assert near_duplicates(asked, pictures).tolist() == [False, False, False]
    assert near_duplicates(asked, torch.cat([pictures, thumbnails([with_one])])).tolist() == [True, True, False]


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_all_images_are_compared_with_all_others_however_few_at_once(monkeypatch, at_once):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    known = thumbnails([pixels(picture(seed)) for seed in range(5)])
    asked = thumbnails([pixels(picture(seed)) for seed in (4, 9, 0, 8, 2, 7, 3)])
    assert near_duplicates(asked, known).tolist() == [True, False, True, False, True, False, True]


@pytest.mark.parametrize(("correlation", "near"), [(0.89, False), (0.91, True), (-0.95, False)])
def test_near_is_a_correlation_of_nine_tenths(correlation, near):
    one = torch.zeros(1, 3 * SIDE * SIDE)
    other = one.clone()
    one[0, 0], other[0, 0], other[0, 1] = 1.0, correlation, (1 - correlation**2) ** 0.5
    assert near_duplicates(other, one).tolist() == [near]


@pytest.mark.parametrize(("contrast", "flat"), [(0, True), (1.9, True), (2.1, False)])
def test_a_pattern_is_one_of_two_grey_levels_around_the_mean(contrast, flat):
    stripes = torch.tensor([-1.0, 1.0]).repeat(SIDE // 2).expand(3, SIDE, SIDE)
    thumbs = thumbnails([128 + contrast * stripes, torch.full((3, 4, 4), 60.0)])
    assert near_duplicates(thumbs[:1], thumbs[1:]).tolist() == [flat]
    assert near_duplicates(thumbs[:1], thumbs[:1]).tolist() == [True]


def test_the_correlation_is_that_of_the_pixels_around_the_mean_of_each_channel():
    images = [pixels(picture(seed, SIDE)) for seed in (0, 1)]
    values = [image.double() - image.double().mean(dim=(1, 2), keepdim=True) for image in images]
    expected = float((values[0] * values[1]).sum() / (values[0].norm() * values[1].norm()))
    first, second = thumbnails(images)
    assert float(first @ second) == pytest.approx(expected, abs=1e-5)
