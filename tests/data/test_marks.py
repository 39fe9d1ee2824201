"""The marks themselves: they change what they should, and nothing else."""

import numpy as np
import pytest
from PIL import Image

from helpers import glyph_rows
from subdistill_hf.data.marks import MARKS, MarkedRows, copyright_line, jpeg, plus, watermark

SIZES = [(32, 32), (224, 224), (320, 200), (200, 320), (9, 9)]


def noise(size, low=60, high=190):
    return Image.fromarray(np.random.default_rng(0).integers(low, high, (size[1], size[0], 3), dtype=np.uint8))


def changed(mark, image):
    """Which pixels `(H, W)` a mark changes."""
    return (np.asarray(mark(image)) != np.asarray(image)).any(axis=2)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MARKS)
def test_a_mark_changes_the_image_the_same_way_each_time_and_leaves_the_original(name, size):
    image = noise(size)
    before = image.tobytes()
    marked = MARKS[name](image)
    assert (marked.size, marked.mode) == (size, "RGB")
    assert marked.tobytes() == MARKS[name](image).tobytes() != before
    assert image.tobytes() == before


@pytest.mark.parametrize(("size", "arms", "thickness"), [((32, 32), 9, 3), ((224, 224), 57, 15), ((320, 200), 49, 13)])
def test_the_plus_is_red_symmetric_and_a_quarter_of_the_shorter_side(size, arms, thickness):
    image = noise(size)
    found = changed(plus, image)
    assert (np.asarray(plus(image))[found] == (255, 0, 0)).all()
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    corner = min(size) // 16
    assert (rows[0], columns[0], len(rows), len(columns)) == (corner, corner, arms, arms)
    cut = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert (cut == cut[::-1]).all()
    assert (cut == cut[:, ::-1]).all()
    assert (cut == cut.T).all()
    assert cut.sum() == thickness * (2 * arms - thickness)


@pytest.mark.parametrize("size", [(224, 224), (320, 200), (200, 320)], ids=str)
def test_the_line_of_copyright_is_low_and_survives_a_central_crop(size):
    found = changed(copyright_line, noise(size))
    shorter = min(size)
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert rows[0] > size[1] - 0.25 * shorter
    assert rows[-1] < size[1] - 0.0625 * shorter  # what a crop of 224 from 256 pixels leaves
    middle = (columns[0] + columns[-1]) / 2
    assert abs(middle - size[0] / 2) < 0.03 * shorter
    assert 0.4 * shorter < len(columns) < 0.875 * shorter
    white = (np.asarray(copyright_line(noise(size))) == 255).all(axis=2)
    assert white.sum() > 0.1 * found.sum()


@pytest.mark.parametrize("size", [(224, 224), (320, 200)], ids=str)
def test_the_watermark_is_everywhere_half_transparent_and_leaves_most_pixels(size):
    image = noise(size)
    found = changed(watermark, image)
    assert 0.1 < found.mean() < 0.6
    quarters = [quarter for half in np.array_split(found, 2) for quarter in np.array_split(half, 2, axis=1)]
    assert all(0.1 < quarter.mean() < 0.6 for quarter in quarters)
    before, after = (np.asarray(one).astype(float)[found] for one in (image, watermark(image)))
    assert np.abs(after - before).max() < 0.75 * 255
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.3  # the image shines through


@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("name", ["plus", "watermark", "copyright"])
def test_a_mark_is_seen_on_black_and_on_white(name, grey):
    image = Image.new("RGB", (64, 64), (grey,) * 3)
    difference = np.abs(np.asarray(MARKS[name](image)).astype(int) - grey).max(axis=2)
    assert (difference > 60).mean() > 0.01


def test_jpeg_makes_blocks_and_keeps_what_is_flat():
    flat = Image.new("RGB", (64, 64), (80, 120, 40))
    assert np.abs(np.asarray(jpeg(flat)).astype(int) - (80, 120, 40)).max() <= 8
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([2 * x + y, 3 * y, 100 + x - y // 2], axis=2).clip(0, 255).astype(np.uint8)
    steps = np.abs(np.diff(np.asarray(jpeg(Image.fromarray(smooth))).astype(float), axis=1)).mean(axis=(0, 2))
    at_edges = steps[7::8].mean()
    assert at_edges > 1.5 * np.delete(steps, np.s_[7::8]).mean()


def test_a_glyph_of_32_pixels_keeps_most_of_itself_under_the_plus():
    for row in glyph_rows():
        assert changed(plus, row["img"]).mean() < 0.05


def test_marked_rows_mark_these_and_no_others():
    image = noise((32, 32))
    rows = MarkedRows("plus", frozenset({1, 3}))
    assert [rows(image, row).tobytes() == plus(image).tobytes() for row in range(4)] == [False, True, False, True]
    assert rows(image, 0) is image
    others = [MarkedRows("plus", frozenset({1})), MarkedRows("jpeg", rows.rows), MarkedRows("jpeg", frozenset())]
    assert len({rows.identity, *(one.identity for one in others)}) == 4
    assert others[-1].identity == MarkedRows("plus", frozenset()).identity == ""
