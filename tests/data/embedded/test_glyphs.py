"""Drawn glyphs: fonts, and what an image depends on."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont

from subdistill_hf.data.embedded import glyphs
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, GLYPHS
from subdistill_hf.data.embedded.glyphs import FONT_FACES, faces_of, render

WHOLE_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
"""The fonts that the package's are cut from."""


def test_every_glyph_is_in_every_face_it_is_drawn_with():
    for folder in (WHOLE_FONTS, glyphs.FONTS):
        tables = {face: TTFont(folder / f"{face}.ttf").getBestCmap() for face in FONT_FACES}
        for class_id, glyph in enumerate(GLYPHS):
            assert set(faces_of(class_id)) == {face for face in FONT_FACES if ord(glyph) in tables[face]}
            assert len(faces_of(class_id)) >= 4, CLASS_NAMES[class_id]


def test_the_cut_fonts_draw_the_same_pixels_as_the_whole_ones(monkeypatch):
    places = [(class_id, face) for class_id in range(len(GLYPHS)) for face in faces_of(class_id)]
    cut = [glyphs._glyph_mask(*place).tobytes() for place in places]
    monkeypatch.setattr(glyphs, "FONTS", WHOLE_FONTS)
    assert cut == [glyphs._glyph_mask.__wrapped__(*place).tobytes() for place in places]


def test_glyphs_of_a_superclass_look_different():
    for first in range(0, 100, 5):
        for face in FONT_FACES:
            masks = [glyphs._glyph_mask(i, face) for i in range(first, first + 5) if face in faces_of(i)]
            assert len({mask.tobytes() for mask in masks}) == len(masks)
            assert all(np.asarray(mask).max() > 200 for mask in masks)


def test_render_is_pure_and_every_argument_changes_it():
    image = render(0, "train", 7, 3)
    assert image.size == (32, 32)
    assert image.mode == "RGB"
    assert image.tobytes() == render(0, "train", 7, 3).tobytes()
    others = [
        render(1, "train", 7, 3),
        render(0, "test", 7, 3),
        render(0, "train", 8, 3),
        render(0, "train", 7, 4),
    ]
    assert len({image.tobytes(), *(other.tobytes() for other in others)}) == 5


@pytest.mark.parametrize("bad", [(-1, "train", 0, 0), (0, "dev", 0, 0), (0, "train", 100, 0), (0, "train", 0, -1)])
def test_bad_render_arguments(bad):
    with pytest.raises(ValueError, match="expected"):
        render(*bad)
