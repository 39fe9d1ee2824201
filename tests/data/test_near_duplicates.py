"""Near-duplicates: one picture in another encoding, size, brightness or mirrored, and no other picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from subdistill_hf.data.near_duplicates import FLAT, SIDE, near_duplicates, thumbnails


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


def test_images_without_a_pattern_are_no_duplicates():
    flat = [torch.full((3, 24, 24), value, dtype=torch.uint8) for value in (0, 200)]
    thumbs = thumbnails(flat)
    assert not near_duplicates(thumbs, thumbs).any()
    assert FLAT > 0


def test_the_correlation_is_that_of_the_pixels_around_the_mean_of_each_channel():
    images = [pixels(picture(seed, SIDE)) for seed in (0, 1)]
    values = [image.double() - image.double().mean(dim=(1, 2), keepdim=True) for image in images]
    expected = float((values[0] * values[1]).sum() / (values[0].norm() * values[1].norm()))
    first, second = thumbnails(images)
    assert float(first @ second) == pytest.approx(expected, abs=1e-5)
