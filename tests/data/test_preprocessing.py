"""Image processors give a network its pixels, those of timm in batches where there is an accelerator."""

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import BitImageProcessor, CLIPImageProcessor, ViTImageProcessor, ViTImageProcessorPil

from helpers import NAMES, processor, views
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.preprocessing import _steps_of_timm, check_fixed_size, in_batch, process, works_on_tensors
from subdistill_hf.errors import DataError
from subdistill_hf.models.students import build_student


@pytest.fixture(scope="module")
def of_timm():
    return build_student("timm/mobilenetv4_conv_small:width=0.35,image=96", NAMES, processor()).processor


def smooth(height, width):
    """Three images without sharp edges."""
    noise = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return interpolate(noise, (height, width), mode="bilinear").mul(255).byte()


def levels(processor):
    """Of 255, in the processor's units."""
    return 1 / (255 * torch.as_tensor(processor.val_transforms.transforms[-1].std))[:, None, None]


@pytest.mark.parametrize("size", [(32, 32), (96, 120), (300, 200)], ids=str)
def test_the_steps_of_timm_in_a_batch_are_those_one_by_one_but_for_rounding(of_timm, size):
    images = smooth(*size)
    one_by_one, at_once = process(of_timm, list(images)), in_batch(_steps_of_timm(of_timm), images)
    assert at_once.shape == one_by_one.shape == (3, 3, 96, 96)
    away = (at_once - one_by_one).abs() / levels(of_timm)
    assert away.mean() < 0.5
    assert away.max() < 4
    mirrored = in_batch(_steps_of_timm(of_timm), images.flip(3))
    assert ((mirrored - one_by_one).abs() / levels(of_timm)).mean() > 4  # so that the bounds say something


def test_on_another_device_timms_images_are_scaled_there(of_timm):
    pixels = process(of_timm, list(smooth(40, 50).to("meta")))
    assert (pixels.device.type, pixels.shape, pixels.dtype) == ("meta", (3, 3, 96, 96), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the pixels that a GPU makes")
def test_a_gpu_makes_timms_pixels_but_for_the_rounding_of_a_byte(of_timm):
    images = smooth(40, 50)
    away = process(of_timm, list(images.cuda())).cpu() - in_batch(_steps_of_timm(of_timm), images)
    assert (away.abs() / levels(of_timm)).max() < 1.01


def test_timms_work_is_left_to_an_accelerator(of_timm):
    examples = views(seed=3).__getitems__([0, 5, 9])
    collator = ViewCollator(of_timm)
    left, whole = collator.unfinished()(examples), collator(examples)
    assert left["images"].dtype == torch.uint8
    assert "pixel_values" not in left
    assert torch.equal(collator.finish(left)["pixel_values"], whole["pixel_values"])  # on a CPU one by one


def test_only_known_steps_are_taken_with_tensors(of_timm, monkeypatch):
    assert works_on_tensors(of_timm)
    assert works_on_tensors(processor())
    assert not works_on_tensors(ViTImageProcessorPil(size={"height": 32, "width": 32}))
    steps = of_timm.val_transforms.transforms
    monkeypatch.setattr(of_timm.val_transforms, "transforms", [lambda image: image, *steps])
    assert not works_on_tensors(of_timm)


# Processors that give no fixed size


@pytest.mark.parametrize(
    "made",
    [
        CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False),
        ViTImageProcessor(do_resize=False, size={"height": 32, "width": 32}),
        BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False),
    ],
    ids=["shortest edge", "no resize", "no crop"],
)
def test_a_processor_without_a_fixed_size_is_refused_for_images_of_several_sizes(made):
    with pytest.raises(DataError, match=r"processor of the teacher 'x' makes images of several sizes .*do_resize="):
        check_fixed_size(made, [(30, 40), (44, 43), (37, 40)], "the teacher 'x'")
    check_fixed_size(made, [(40, 40)], "the teacher 'x'")  # of one size they are in one batch


@pytest.mark.parametrize(
    "made",
    [
        processor(32),
        ViTImageProcessor(size={"height": 24, "width": 40}),
        BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 32, "width": 32}),
    ],
    ids=["square", "not square", "crop larger than resize"],
)
def test_processors_of_a_fixed_size_take_images_of_any(made):
    check_fixed_size(made, [(3, 400), (400, 3), (1, 1), (37, 40)], "the teacher")
