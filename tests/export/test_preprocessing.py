"""Image processors become steps, and a graph of the steps gives the pixels that the processor gives."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from transformers import ConvNextImageProcessor, ViTImageProcessor

from export.samples import PROCESSORS, timm_processor
from subdistill_hf.data.preprocessing import process
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.graph import as_bytes, with_pixels_of_bytes, with_preprocessing
from subdistill_hf.export.onnx_runtime import session
from subdistill_hf.export.preprocessing import (
    CentreCrop,
    Normalise,
    Resize,
    described,
    in_words,
    order_of_pillow,
    output_size,
    steps_of,
)

HALF = Normalise((127.5,) * 3, (127.5,) * 3)


def pixels_of_steps(steps):
    """A function from an image to what a graph of the steps gives."""
    names = ("pixel_values", "logits")
    inputs, outputs = ([helper.make_tensor_value_info(one, TensorProto.FLOAT, ["b", 3, "y", "x"])] for one in names)
    graph = helper.make_graph([helper.make_node("Identity", names[:1], names[1:])], "same", inputs, outputs)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    whole = with_preprocessing(network, steps)
    onnx.checker.check_model(whole)
    of_bytes, of_floats = session(as_bytes(whole)), session(as_bytes(with_pixels_of_bytes(whole)))

    def pixels(image):
        found = of_bytes.run(None, {"images": image[None]})[0][0]
        floats = image.astype(np.float32).transpose(2, 0, 1)[None]
        assert np.array_equal(found, of_floats.run(None, {"pixel_values": floats})[0][0])
        return found

    return pixels


def images():
    """Noise, the worst case of a filter, and smooth images, in sizes that shrink, grow, and do both; tall ones too."""
    rng = np.random.default_rng(0)
    for height, width in [
        (32, 40),
        (17, 23),
        (91, 40),
        (40, 90),
        (130, 201),
        (201, 52),
        (160, 80),
        (163, 80),
        (300, 90),
    ]:
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        y, x = np.mgrid[:height, :width]
        yield np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_pixels_of_the_graph_are_those_of_the_processor(name):
    steps = steps_of(PROCESSORS[name])
    pixels = pixels_of_steps(steps)
    unit = np.prod([step.deviation for step in steps if isinstance(step, Normalise)], axis=0).reshape(3, 1, 1)
    worst, mean = 0.0, 0.0
    for image in images():
        expected = process(PROCESSORS[name], [torch.from_numpy(image).permute(2, 0, 1)])[0].numpy()
        found = pixels(image)
        assert found.shape == expected.shape
        assert output_size(steps) == found.shape[1:]
        levels = np.abs(found - expected) * unit
        worst, mean = max(worst, levels.max()), max(mean, levels.mean())
    assert worst < (1.01 if name in ("pillow", "timm", "squash") else 2.01)
    assert mean < 0.2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bilinear", (Resize(32, 40, "bilinear", "horizontal"), HALF)),
        ("pillow", (Resize(48, 64, "bicubic", order_of_pillow()), HALF)),
        ("convnext", (Resize(73, 0, "bicubic", "horizontal"), CentreCrop(64, 64))),
        ("timm", (Resize(73, 0, "bicubic", order_of_pillow()), CentreCrop(64, 64, half_even=True))),
        ("squash", (Resize(73, 73, "bilinear", order_of_pillow()), CentreCrop(64, 64, half_even=True))),
    ],
)
def test_the_steps_of_a_processor(name, expected):
    assert steps_of(PROCESSORS[name])[: len(expected)] == expected
    assert described(expected)[0]["step"] == "Resize"


@pytest.mark.parametrize(("edge", "cut"), [(383, True), (384, False)])
def test_from_a_side_of_384_on_images_of_convnext_are_not_cut(edge, cut):
    processor = ConvNextImageProcessor(size={"shortest_edge": edge})
    steps = steps_of(processor)
    assert any(isinstance(step, CentreCrop) for step in steps) == cut
    image = np.tile(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], (40, 1, 3))
    expected = process(processor, [torch.from_numpy(image).permute(2, 0, 1)])[0].numpy()
    levels = np.abs(pixels_of_steps(steps)(image) - expected) * 255 * np.array(processor.image_std)[:, None, None]
    assert levels.max() < 2.01


def scaled(image, size, resample, first=None):
    """Bytes scaled by Pillow: in one call, or the sides one after the other."""
    sizes = {"vertical": [(image.width, size[1])], "horizontal": [(size[0], image.height)]}.get(first, [])
    for each in [*sizes, size]:
        image = image.resize(each, resample)
    return np.asarray(image)


@pytest.mark.skipif(order_of_pillow() != "pillow13", reason="of Pillow 13 and later ones: pip install 'pillow>=13'")
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_pillow_13_scales_the_height_first_where_it_loses_more_than_twice_the_pixels(resample):
    random = np.random.default_rng(0)
    vertical = 0
    for trial in range(300):
        height, width = random.integers(20, 120, 2)
        lost = int(random.integers(-9, width // 4))
        new = (
            (height - 2 * lost + int(random.integers(-2, 3)), width - lost) if trial % 2 else random.integers(9, 90, 2)
        )
        if new[0] < 1 or new[0] == height or new[1] == width:
            continue  # of one pass, or none
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        size = (int(new[1]), int(new[0]))
        expected = "vertical" if height - size[1] > 2 * max(0, width - size[0]) else "horizontal"
        assert np.array_equal(scaled(image, size, resample), scaled(image, size, resample, expected))
        vertical += expected == "vertical"
    assert 60 < vertical < 200


def test_an_older_pillow_is_known_by_what_it_does(monkeypatch):
    usual = Image.Image.resize

    def horizontal_first(image, size, resample=None, box=None, reducing_gap=None):
        return usual(usual(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", horizontal_first)
    order_of_pillow.cache_clear()
    try:
        assert order_of_pillow() == "horizontal"
        test_the_pixels_of_the_graph_are_those_of_the_processor("timm")
    finally:
        order_of_pillow.cache_clear()


@pytest.mark.parametrize(
    ("processor", "what"),
    [
        (ViTImageProcessor(resample=1), "resample=1"),
        (ViTImageProcessor(size={"longest_edge": 32, "shortest_edge": 16}), "longest_edge"),
        (timm_processor(crop_mode="border"), "ResizeKeepRatio"),
        (object(), "object"),
    ],
)
def test_what_cannot_be_told_in_steps_is_refused_by_name(processor, what):
    with pytest.raises(ExportError, match=what) as refused:
        steps_of(processor)
    assert "--preprocessing outside" in str(refused.value)


def test_what_a_device_has_to_do_is_said_in_words():
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 64}, crop_pct=0.5, image_mean=[0.5, 0, 1], image_std=[0.5, 1, 0.1]
    )
    assert [in_words(step) for step in steps_of(processor)] == [
        "scale to a shorter side of 128 pixels, bicubic with antialiasing",
        "cut out the centre, 64 x 64 pixels",
        "from the bytes of R, G and B subtract 127.5, 0, 255, and divide by 127.5, 255, 25.5",
    ]
