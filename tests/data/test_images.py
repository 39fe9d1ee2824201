"""Images of small datasets are decoded once and kept once; others are decoded whenever they are wanted."""

import gc

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import COLUMNS
from subdistill_hf.data import images as decoded_images
from subdistill_hf.data.images import DecodedImages, ImageStore, as_rgb

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


def grey(values, mode):
    return Image.fromarray(np.asarray(values, dtype={"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))


def test_grey_values_of_16_bits_are_not_cut_off():
    values = np.arange(0, 65536, 4096).reshape(4, 4)
    image = grey(values, "I;16")
    assert image.mode == "I;16"
    found = np.asarray(as_rgb(image))
    assert found.shape == (4, 4, 3)
    assert (found == (values // 256)[:, :, None]).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_values_of_unknown_range_are_refused(mode):
    with pytest.raises(ValueError, match="grey values of 32 bits"):
        as_rgb(grey([[0, 1], [2, 3]], mode))
