"""Images of small datasets are decoded once and kept once; others are decoded whenever they are wanted."""

import gc
import io
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from helpers import COLUMNS
from subdistill_hf.data import images as decoded_images
from subdistill_hf.data.images import DEEP_MODES, DecodedImages, ImageModeError, ImageStore, as_rgb
from subdistill_hf.errors import DataError

SIZES = {"one size": [(20, 40)] * 4, "several sizes": [(20, 40), (24, 40), (28, 44), (20, 36)]}


def pixels(sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def rows(sizes):
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"img": pixels(sizes), "fine_label": [0, 1] * (len(sizes) // 2)}, features)


def images_of(dataset, often, store=None):
    return DecodedImages(dataset, COLUMNS, dataset["fine_label"], often=often, store=store)


@pytest.fixture
def decoded(monkeypatch):
    """The indices that are decoded."""
    indices, decode = [], DecodedImages._decode
    monkeypatch.setattr(DecodedImages, "_decode", lambda self, index: indices.append(index) or decode(self, index))
    return indices


@pytest.mark.parametrize("often", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_images_that_are_wanted_often_are_decoded_once(decoded, sizes, often):
    images = images_of(rows(SIZES[sizes]), often)
    ahead = sizes == "one size" or often
    assert (images.one_size is None) == (sizes == "several sizes")
    assert decoded[:2] == [0, 1]  # of images that are not wanted often, until one of another size is found
    before = len(decoded)
    for _ in range(2):
        for index, expected in enumerate(pixels(SIZES[sizes])):
            assert torch.equal(images[index], torch.from_numpy(expected).permute(2, 0, 1))
    images.check()
    assert len(decoded) - before == (0 if ahead else 3 * 4)


@pytest.mark.parametrize("sizes", SIZES)
def test_what_takes_too_much_memory_is_not_kept(monkeypatch, decoded, sizes):
    dataset = rows(SIZES[sizes])
    total = sum(each.size for each in pixels(SIZES[sizes]))
    for limit, kept in ((total, True), (total - 1, False)):
        monkeypatch.setattr(decoded_images, "DECODE_AHEAD_BYTES", limit)
        images = images_of(dataset, often=True)
        decoded.clear()
        assert torch.equal(images[3], torch.from_numpy(pixels(SIZES[sizes])[3]).permute(2, 0, 1))
        assert decoded == ([] if kept else [3])
        del images


@pytest.mark.parametrize("sizes", SIZES)
def test_images_are_kept_once_for_all_that_show_them_and_no_longer(decoded, sizes):
    dataset, store = rows(SIZES[sizes]), ImageStore()
    first, second = images_of(dataset, True, store), images_of(dataset, False, store)
    assert decoded == [0, 1, 2, 3, 0]  # the first image tells how large they are
    assert first[3].data_ptr() == second[3].data_ptr()
    other = images_of(dataset.select([3, 2, 1, 0]), True, store)
    assert torch.equal(other[0], first[3])
    del first, second, other
    gc.collect()
    assert store.get((dataset, COLUMNS.image, "")) is None


@pytest.mark.parametrize("often", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_digest_tells_images_apart(sizes, often):
    dataset = rows(SIZES[sizes])
    assert images_of(dataset, often).digest() == images_of(dataset, often).digest()
    assert images_of(dataset, often).digest() != images_of(dataset.select([1, 0, 2, 3]), often).digest()


@pytest.mark.parametrize("sizes", SIZES)
def test_the_digest_does_not_depend_on_who_else_shows_the_images(sizes):
    dataset, store = rows(SIZES[sizes]), ImageStore()
    alone = images_of(dataset, False, store).digest()
    other = images_of(dataset, True, store)
    assert images_of(dataset, False, store).digest() == other.digest() == alone


def test_the_digest_tells_shapes_apart():
    flat = np.arange(2 * 6 * 3, dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})

    def digest(shape):
        images = [flat.reshape(*shape, 3), flat[: 3 * 3].reshape(3, 1, 3)]
        return images_of(datasets.Dataset.from_dict({"img": images, "fine_label": [0, 1]}, features), True).digest()

    assert digest((2, 6)) != digest((12, 1))


def of_values(mode):
    """An image of a mode, all of whose values differ from pixel to pixel."""
    random = np.random.default_rng(0)
    if mode in DEEP_MODES:
        kind = {"I": np.int32, "F": np.float32}.get(mode, np.uint16)
        image = Image.fromarray(random.integers(0, 60000, (6, 5)).astype(kind))
        return image if mode == image.mode else Image.frombytes(mode, image.size, image.tobytes())
    if mode in ("LAB", "HSV"):
        return Image.frombytes(mode, (5, 6), random.integers(0, 256, 90, dtype=np.uint8).tobytes())
    image = Image.fromarray(random.integers(0, 256, (6, 5, 4), dtype=np.uint8))
    if mode in ("La", "PA"):
        return image.convert("LA").convert(mode) if mode == "La" else image.convert("P").convert("PA")
    return image.convert("RGB").convert(mode) if mode in ("YCbCr", "CMYK") else image.convert(mode)


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA", "RGBX", "RGBa", *DEEP_MODES]


def written():
    """Each mode in each format that can be written and read: the name, and the bytes."""
    Image.init()
    for mode in MODES:
        for kind in sorted(Image.SAVE):
            buffer = io.BytesIO()
            try:
                of_values(mode).save(buffer, kind)
                Image.open(io.BytesIO(buffer.getvalue())).load()
            except Exception:  # not a mode of this format, or one that is only written
                continue
            yield f"{mode} as {kind}", buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_of_every_mode_in_every_format_a_student_sees_what_transformers_reads_or_nothing(tmp_path):
    files, refused, said = dict(written()), [], []
    assert len(files) > 150
    for place, (name, content) in enumerate(files.items()):
        path = tmp_path / str(place)
        path.write_bytes(content)
        table = {"img": [{"bytes": content, "path": None}], "fine_label": [0]}
        features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
        try:
            seen = images_of(datasets.Dataset.from_dict(table, features), often=False)[0]
        except DataError as error:
            refused.append(name)
            said.append(str(error))
            continue
        expected = np.asarray(load_image(str(path)))
        assert torch.equal(seen, torch.from_numpy(expected.copy()).permute(2, 0, 1)), name
    assert all(re.search("image 0 .* cannot be (used|decoded): ", message) for message in said)
    assert {"I;16 as PNG", "I;16 as TIFF", "I;16B as TIFF", "I as TIFF", "F as TIFF"} <= set(refused)
    assert not [name for name in refused if name.startswith(("L ", "RGB", "P ", "1 ")) and "SPIDER" not in name]


def test_values_of_more_than_8_bits_are_refused_with_what_to_do():
    for mode in DEEP_MODES:
        with pytest.raises(ImageModeError, match=r"cuts off at 255.* Bring the files to 8 bits first"):
            as_rgb(of_values(mode))


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", b"GIF89a" + bytes(range(40)), b"BM" + b"\xff" * 60, b"DDS " + b"\xff" * 130, b"\x00" * 300],
    ids=["nothing", "text", "gif", "bmp", "dds", "zeros"],
)
def test_whatever_pillow_raises_an_image_is_named_in_one_message(content, tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(content)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"img": [str(path)], "fine_label": [1]}, features)
    with pytest.raises(DataError, match=r"^image 0, .*a picture.png \(class 1\) cannot be decoded: .+ Remove or repl"):
        images_of(table, often=False)


@pytest.mark.parametrize("error", [RuntimeError("odd"), NotImplementedError(), IndexError("x"), MemoryError()])
def test_other_exceptions_of_plugins_name_the_image_too(error, monkeypatch):
    def fails(self):
        raise error

    table = rows(SIZES["one size"])
    monkeypatch.setattr(Image.Image, "load", fails)
    with pytest.raises(DataError, match=r"image 0 \(class 0\) cannot be decoded: .+\. Remove or replace it"):
        images_of(table, often=False)


def test_a_picture_too_large_to_be_opened_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"image 0 \(class 0\) cannot be decoded: Image size"):
        images_of(rows(SIZES["one size"]), often=False)


def test_the_digest_tells_files_apart_that_lie_in_one_place(tmp_path):
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})

    def digest(colour):
        for number, size in enumerate([(8, 8), (9, 8)]):
            Image.new("RGB", size, colour).save(tmp_path / f"{number}.bmp")
        places = [str(tmp_path / f"{number}.bmp") for number in range(2)]
        return images_of(datasets.Dataset.from_dict({"img": places, "fine_label": [0, 1]}, features), True).digest()

    assert digest("red") != digest("blue") != digest("red") == digest("red")
