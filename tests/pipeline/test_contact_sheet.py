"""The sheet of training images: each class in a row of its own, small images with the pixels they have."""

import numpy as np
from PIL import Image

from helpers import NAMES, views
from subdistill_hf.pipeline.contact_sheet import GAP, LABEL_HEIGHT, MOST_CLASSES, TILE, contact_sheet


def test_each_class_has_a_row_of_its_own_images_under_its_name():
    images = views(4, augmentation="pad_crop", flip=True)
    sheet = contact_sheet(images, NAMES, columns=3)
    assert sheet.size == (3 * (TILE + GAP) + GAP, 3 * (LABEL_HEIGHT + TILE + GAP) + GAP)
    for row in range(3):
        top = GAP + row * (LABEL_HEIGHT + TILE + GAP)
        assert np.asarray(sheet.crop((0, top, sheet.width, top + LABEL_HEIGHT)).convert("L")).min() < 100  # the name
        for column in range(3):
            left = GAP + column * (TILE + GAP)
            tile = sheet.crop((left, top + LABEL_HEIGHT, left + TILE, top + LABEL_HEIGHT + TILE))
            glyph = Image.fromarray(images.image(4 * row + column).permute(1, 2, 0).numpy())
            assert tile.tobytes() == glyph.resize((TILE, TILE), Image.Resampling.NEAREST).tobytes()


def test_a_class_with_few_images_has_a_short_row():
    sheet = contact_sheet(views(2), NAMES, columns=8)
    assert sheet.width == 2 * (TILE + GAP) + GAP


def test_a_sheet_of_many_classes_has_a_bounded_size():
    images = views(2)
    names = [f"class {number}" for number in range(500)]
    sheet = contact_sheet(images, names)
    assert sheet.height == MOST_CLASSES * (LABEL_HEIGHT + TILE + GAP) + GAP + LABEL_HEIGHT


def test_names_that_are_long_or_of_other_alphabets_stay_in_their_line():
    plain, odd = (contact_sheet(views(2), names) for names in (NAMES, ["x" * 500, "two\nlines", "Müller 猫\udcff"]))
    assert odd.size == plain.size
    for row in range(3):
        top = GAP + row * (LABEL_HEIGHT + TILE + GAP) + LABEL_HEIGHT
        box = (0, top, odd.width, top + TILE)
        assert odd.crop(box).tobytes() == plain.crop(box).tobytes()
