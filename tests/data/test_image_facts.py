"""What headers of files tell: sizes, transparency, and images that are of no use."""

import io

import datasets
import pytest
from PIL import Image

from pictures import class_folders, encoded, picture
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.image_facts import image_facts, transparency_notice
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def rows(contents):
    table = {"image": [{"bytes": content, "path": None} for content in contents]}
    return datasets.Dataset.from_dict(table, features=datasets.Features({"image": datasets.Image()}))


def test_sizes_are_those_of_upright_images():
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3, size=(40, 10)).save(turned, "JPEG", exif=exif)
    facts = image_facts(rows([encoded(1, size=(5, 4)), turned.getvalue(), b"damaged"]), "image")
    assert facts.sizes == ((4, 5), (40, 10))
    assert (facts.images, facts.typical_side, facts.transparent) == (3, 40, ())
    assert image_facts(rows([]), "image").typical_side is None


def test_one_image_of_another_size_does_not_stand_for_all():
    contents = [encoded(0, size=(300, 300)), *(encoded(number) for number in range(1, 9))]
    assert image_facts(rows(contents), "image").typical_side == 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_images_that_are_transparent_in_places_are_said(mode):
    image = picture(1).convert("RGBA")
    solid, clear = io.BytesIO(), io.BytesIO()
    image.convert("RGBA").save(solid, "PNG")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    (image if mode == "RGBA" else image.convert("LA")).save(clear, "PNG")
    facts = image_facts(rows([solid.getvalue(), clear.getvalue(), encoded(2)]), "image")
    assert facts.transparent == ("number 1",)
    assert transparency_notice([facts]).startswith("1 of 3 images that were looked at are transparent in places, such")
    assert transparency_notice([image_facts(rows([solid.getvalue()]), "image")]) is None


def test_a_transparent_colour_of_a_palette_is_said():
    buffer = io.BytesIO()
    image = picture(1).convert("P")
    image.save(buffer, "GIF", transparency=image.getpixel((0, 0)))
    assert image_facts(rows([buffer.getvalue()]), "image").transparent == ("number 0",)


def test_a_subtask_tells_its_sizes_and_its_transparent_images(tmp_path):
    folder = class_folders(tmp_path / "set")
    clear = picture(77, size=(12, 9)).convert("RGBA")
    clear.putalpha(40)
    clear.save(folder / "train/cat/clear.png")
    data = load_subtask(DataOptions(str(folder), ["all"]))
    assert data.sizes == ((8, 8), (9, 12))
    assert data.typical_side == 8
    assert "1 of 19 images that were looked at are transparent in places, such as" in data.notices[0]


def test_images_of_more_than_8_bits_are_refused_before_any_work(tmp_path):
    folder = class_folders(tmp_path / "set")
    Image.new("I;16", (8, 8), 5000).save(folder / "test/dog/deep.png")
    with pytest.raises(DataError, match=r"deep.png, cannot be used: it has grey values of 16 bits"):
        load_subtask(DataOptions(str(folder), ["all"]))
