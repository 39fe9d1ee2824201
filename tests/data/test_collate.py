"""Batches hold what each network was trained on, of the same view."""

import pytest
import torch
from torchvision.transforms import functional as image_functional
from transformers import BitImageProcessor
from transformers.models.vit import ViTImageProcessorPil

from helpers import NAMES, processor, save_teacher, views
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.models.students import build_student

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_each_network_gets_its_own_preprocessing_of_the_same_view():
    dataset = views(augmentation="pad_crop", flip=True)
    student, teacher = processor(24, mean=0.25), processor(40)
    items = dataset.__getitems__([3, 0, 9])
    batch = ViewCollator(student, teacher)(items)
    assert set(batch) == {"pixel_values", "teacher_pixel_values", "labels", "index", "view"}
    for name, own in (("pixel_values", student), ("teacher_pixel_values", teacher)):
        images = [image_functional.to_pil_image(item["image"]) for item in items]
        alone = torch.cat([own(images=image, return_tensors="pt")["pixel_values"] for image in images])
        torch.testing.assert_close(batch[name], alone, rtol=0, atol=0)
    assert batch["labels"].tolist() == [dataset.labels[index] for index in (3, 0, 9)]
    assert batch["index"].tolist() == [3, 0, 9]
    assert batch["view"].tolist() == [0, 0, 0]


def test_the_teacher_reads_the_students_pixels_where_both_are_prepared_alike(tmp_path):
    items = views().__getitems__([0, 1])
    assert "teacher_pixel_values" not in ViewCollator(processor(), processor())(items)
    assert "teacher_pixel_values" not in ViewCollator(processor())(items)
    assert "teacher_pixel_values" in ViewCollator(processor(), processor(mean=0.4))(items)
    assert "teacher_pixel_values" in ViewCollator(processor(), processor(size=33))(items)
    teacher = load_teacher(str(save_teacher(tmp_path)))  # a processor that was written and read
    student = build_student("resnet:widths=8-8", NAMES, teacher.processor)
    assert "teacher_pixel_values" not in ViewCollator(student.processor, teacher.processor)(items)


def test_timm_processors_of_different_preprocessing_are_told_apart():
    names = ["timm/test_resnet", "timm/mobilenetv4_conv_small"]
    small, large = (build_student(name, NAMES, processor()).processor for name in names)
    items = views().__getitems__([0, 1])
    batch = ViewCollator(small, large)(items)
    assert batch["pixel_values"].shape == (2, 3, 160, 160)
    assert batch["teacher_pixel_values"].shape == (2, 3, 224, 224)
    image = image_functional.to_pil_image(items[1]["image"])
    alone = large(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["teacher_pixel_values"][1:], alone, rtol=0, atol=0)
    assert "teacher_pixel_values" not in ViewCollator(small, small)(items)


def same_as_on_the_loader(collator, examples):
    """What the loader leaves and the device finishes, beside what the loader makes alone."""
    unfinished = collator.unfinished()
    left = unfinished(examples)
    return left, unfinished.finish(left), collator(examples)


@pytest.mark.parametrize("teacher_size", [None, 40])
def test_what_is_left_to_the_device_is_what_the_loader_makes(teacher_size):
    dataset = views(augmentation="pad_crop", flip=True, seed=3)
    collator = ViewCollator(processor(48), None if teacher_size is None else processor(teacher_size, 0.4))
    left, finished, whole = same_as_on_the_loader(collator, dataset.__getitems__([0, 5, 9]))
    assert left["images"].dtype == torch.uint8
    assert left["images"].shape == (3, 3, 32, 32)
    assert "pixel_values" not in left
    assert finished.keys() == whole.keys()
    for name, expected in whole.items():
        assert torch.equal(finished[name], expected), name


def test_images_of_several_sizes_and_other_processors_are_left_to_nobody():
    places = {"labels": 0, "index": 0, "view": 0}
    examples = [{"image": torch.zeros(3, size, 32, dtype=torch.uint8), **places} for size in (32, 40)]
    collator = ViewCollator(processor(32))
    left, finished, whole = same_as_on_the_loader(collator, examples)
    assert "images" not in left
    assert torch.equal(finished["pixel_values"], whole["pixel_values"])
    pil = ViewCollator(ViTImageProcessorPil(size={"height": 32, "width": 32}))
    left, finished, whole = same_as_on_the_loader(pil, examples[:1])
    assert "images" not in left
    assert torch.equal(finished["pixel_values"], whole["pixel_values"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the pixels that a GPU makes")
@pytest.mark.parametrize("size", [32, 40, 64])
def test_a_gpu_makes_the_loaders_pixels_but_for_the_rounding_of_a_byte(size):
    left, _, whole = same_as_on_the_loader(ViewCollator(processor(size)), views(seed=3).__getitems__([0, 5, 9]))
    finished = ViewCollator(processor(size)).finish({name: value.cuda() for name, value in left.items()})
    byte = 1 / 127.5
    torch.testing.assert_close(finished["pixel_values"].cpu(), whole["pixel_values"], rtol=0, atol=1.01 * byte)


def test_processors_of_other_classes_are_told_apart_whatever_their_settings():
    first = processor()
    settings = {name: value for name, value in first.to_dict().items() if name != "image_processor_type"}
    other = BitImageProcessor(**settings)
    items = views().__getitems__([0, 1])
    assert "teacher_pixel_values" in ViewCollator(first, other)(items)
    assert "teacher_pixel_values" not in ViewCollator(first, processor())(items)
