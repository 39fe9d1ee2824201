"""Files of images for a student that is there are seen as those that it was trained with."""

import datasets
import numpy as np
import pytest
from PIL import ExifTags, Image
from transformers.image_utils import load_image

from pictures import picture
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.images import DecodedImages
from subdistill_hf.errors import SubDistillError
from subdistill_hf.pipeline.student_images import evenly_spread, read_image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
def test_a_photograph_is_upright_wherever_it_is_read(tmp_path, orientation, ending):
    path = tmp_path / f"photograph.{ending}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture(1, size=(24, 16)).save(path, exif=exif)
    seen = read_image(path, SubDistillError)
    rows = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    trained_with = DecodedImages(rows, ImageColumns("image", "label"), [0])[0].permute(1, 2, 0)
    assert seen.shape == ((24, 16, 3) if orientation > 4 else (16, 24, 3))
    assert np.array_equal(seen, trained_with)
    assert np.array_equal(seen, np.asarray(load_image(str(path))))


@pytest.mark.parametrize("exif", [None, b"Exif\0\0MM\0*", b"Exif\0\0XXXXXXXX"])
def test_a_damaged_file_is_refused_by_its_name(tmp_path, exif):
    path = tmp_path / "a.png"
    if exif is None:
        path.write_text("no image")
    else:
        picture(1).save(path, exif=exif)
    with pytest.raises(SubDistillError, match=r"^images: a.png cannot be used: .* Remove or replace it"):
        read_image(path, SubDistillError, "images: ")


def test_places_are_spread_evenly():
    assert evenly_spread(10, 4) == [0, 3, 6, 9]
    assert evenly_spread(3, 9) == [0, 1, 2]
    assert all(len(set(evenly_spread(count, most))) == most for count in range(1, 40) for most in range(count + 1))
