"""Pictures: their sizes, their colours, and what is drawn on them."""

import numpy as np
import pytest
import torch
from PIL import Image

from subdistill_hf.explain.heatmaps import WHOLE, Seen
from subdistill_hf.explain.pictures import (
    AGAINST,
    FOR,
    PAPER,
    coloured,
    common_scale,
    framed,
    panel,
    picture_of,
    shares_on,
    stacked,
)


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), (160, 160)), ((8, 100), (26, 320)), ((500, 300), (320, 192)), ((200, 180), None)]
)
def test_small_images_are_enlarged_and_large_ones_reduced(size, expected):
    picture = picture_of(torch.zeros(3, *size, dtype=torch.uint8))
    assert (picture.height, picture.width) == (expected or size)


def test_enlarged_images_keep_their_pixels():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert np.array_equal(np.asarray(picture_of(image))[::5, ::5], image.permute(1, 2, 0).numpy())


def test_colours_run_from_blue_over_white_to_vermilion():
    picture = coloured(torch.tensor([[-2.0, -1.0, 0.0, 0.5, 1.0]]), 1.0)
    half = tuple(round((a + b) / 2) for a, b in zip(PAPER, FOR, strict=True))
    assert [picture.getpixel((x, 0)) for x in range(5)] == [AGAINST, AGAINST, PAPER, half, FOR]
    assert coloured(torch.zeros(1, 1), 0.0).getpixel((0, 0)) == PAPER


def test_heat_maps_are_shares_of_all_absolute_relevance():
    picture = Image.new("RGB", (8, 8))
    relevance = torch.tensor([[1.0, -3.0], [0.0, 0.0]], dtype=torch.float64)
    shares = shares_on(picture, relevance, WHOLE)
    assert shares.shape == (8, 8)
    assert float(shares[:4, :4].sum()) == pytest.approx(0.25)
    assert float(shares[:4, 4:].sum()) == pytest.approx(-0.75)
    assert float(shares_on(picture, torch.zeros(2, 2, dtype=torch.float64), WHOLE).abs().sum()) == 0
    assert common_scale([shares, shares / 2]) == pytest.approx(0.75 / 16)


def test_panels_hold_the_pictures_side_by_side():
    pictures = [Image.new("RGB", (160, 100), colour) for colour in ("red", "green", "blue")]
    whole = panel(pictures, ("image", "teacher", "student"))
    assert whole.width == 3 * 160 + 2 * 8
    assert [whole.getpixel((168 * number + 80, 60)) for number in range(3)] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert stacked([whole, whole]).height > 2 * whole.height


def test_a_place_is_framed_where_it_lies_in_the_image():
    picture = Image.new("RGB", (160, 160))
    marked = framed(picture, 1, 0, (2, 2), WHOLE)
    assert marked.getpixel((1, 81)) == FOR
    assert marked.getpixel((40, 120)) == marked.getpixel((120, 40)) == (0, 0, 0)
    cut = framed(picture, 0, 0, (1, 1), Seen(0.25, 0.75, 0.25, 0.75))
    assert cut.getpixel((41, 41)) == FOR
    assert picture.getpixel((1, 81)) == (0, 0, 0)
