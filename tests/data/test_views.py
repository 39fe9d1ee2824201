"""Augmented views of images and their batches."""

import hashlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as image_functional
from transformers import BitImageProcessor
from transformers.models.vit import ViTImageProcessorPil

from helpers import COLUMNS, NAMES, processor, save_teacher, subtask_rows, views
from subdistill_hf.data.views import AUGMENTATIONS, PAD, ViewCollator, ViewDataset
from subdistill_hf.errors import DataError
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.models.students import build_student

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.mark.parametrize("mix", [0, 0.6])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_view_depends_only_on_seed_view_and_image(augmentation, mix):
    options = {"augmentation": augmentation, "flip": True, "seed": 5, "mix": mix}
    one, other = views(**options), views(**options)
    for view in (3, 0):
        one.set_epoch(view)
        other.set_epoch(view)
        together = one.__getitems__(list(range(12)))
        backwards = [other[index] for index in reversed(range(12))][::-1]
        for index in range(12):
            assert torch.equal(together[index]["image"], backwards[index]["image"])
            assert (together[index]["index"], together[index]["view"]) == (index, view)
            assert np.array_equal(together[index]["labels"], backwards[index]["labels"])
            label = together[index]["labels"]
            assert (label.argmax() if mix else label) == subtask_rows()["fine_label"][index]


def test_views_are_the_same_when_other_processes_load_them():
    dataset = views(augmentation="pad_crop", flip=True)
    dataset.set_epoch(2)
    here = torch.stack([dataset[index]["image"] for index in range(len(dataset))])
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch["image"] for batch in loader]), here)


@pytest.mark.parametrize("augmentation", ["pad_crop", "resized_crop"])
def test_seeds_and_views_change_most_images(augmentation):
    def images(seed, view):
        dataset = views(augmentation=augmentation, seed=seed)
        dataset.set_epoch(view)
        return torch.stack([dataset[index]["image"] for index in range(len(dataset))])

    first = images(0, 0)
    for other in (images(1, 0), images(0, 1), images(1, 1)):
        assert (first != other).flatten(1).any(1).float().mean() > 0.9


def test_epochs_cycle_through_a_given_number_of_views():
    dataset = views(augmentation="pad_crop", views=3)
    seen = []
    for epoch in range(7):
        dataset.set_epoch(epoch)
        assert dataset[0]["view"] == epoch % 3
        seen.append(torch.stack([dataset[index]["image"] for index in range(len(dataset))]))
    for epoch in range(7):
        for other in range(7):
            assert torch.equal(seen[epoch], seen[other]) == (epoch % 3 == other % 3)


def test_without_augmentation_a_view_is_the_image():
    dataset = views()
    for index in (0, 7, 23):
        image = np.asarray(subtask_rows()[index]["img"])
        assert np.array_equal(dataset[index]["image"].permute(1, 2, 0).numpy(), image)
        assert torch.equal(dataset.image(index), dataset[index]["image"])


def test_a_crop_is_a_shift_of_at_most_four_pixels_that_repeats_the_border():
    dataset = views(augmentation="pad_crop")
    shifts = set()
    for index in range(len(dataset)):
        padded = np.pad(np.asarray(subtask_rows()[index]["img"]), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
        view = dataset[index]["image"].permute(1, 2, 0).numpy()
        fits = [
            (row, column)
            for row in range(2 * PAD + 1)
            for column in range(2 * PAD + 1)
            if np.array_equal(padded[row : row + 32, column : column + 32], view)
        ]
        assert fits
        shifts.add(fits[0])
    assert len(shifts) > 10


def test_about_half_of_the_views_are_mirrored():
    plain, flipped = views(16), views(16, flip=True)
    mirrored = 0
    for index in range(len(plain)):
        before, after = plain[index]["image"], flipped[index]["image"]
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
        mirrored += not torch.equal(after, before)
    assert 12 < mirrored < 36


def test_a_batch_of_shifted_and_mirrored_views_is_that_of_images_one_by_one(monkeypatch):
    together = views(augmentation="pad_crop", flip=True).__getitems__(list(range(20)))
    monkeypatch.setattr("subdistill_hf.data.images.DECODE_AHEAD_BYTES", 0)
    alone = views(augmentation="pad_crop", flip=True)
    for index, item in enumerate(together):
        assert torch.equal(item["image"], alone[index]["image"])


def of_different_sizes():
    rows = [Image.fromarray(np.full((20 + 4 * index, 40, 3), 9 * index, dtype=np.uint8)) for index in range(4)]
    return datasets.Dataset.from_dict({"img": rows, "fine_label": [0, 1, 0, 1]}, features=two_classes())


def test_images_of_different_sizes_are_cropped_to_one_size():
    dataset = ViewDataset(of_different_sizes(), COLUMNS, "resized_crop", size=(24, 16))
    assert [tuple(dataset[index]["image"].shape) for index in range(4)] == [(3, 24, 16)] * 4
    assert dataset.image(3).shape == (3, 32, 40)
    assert dataset[3]["image"].unique().tolist() == [27]


def two_classes():
    return datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})


def test_grey_and_transparent_images_become_rgb():
    rows = [Image.new("L", (8, 8), 77), Image.new("RGBA", (8, 8), (1, 2, 3, 255)), Image.new("1", (8, 8), 1)]
    rows = datasets.Dataset.from_dict({"img": rows, "fine_label": [0, 1, 0]}, features=two_classes())
    dataset = ViewDataset(rows, COLUMNS)
    assert [dataset[index]["image"][:, 0, 0].tolist() for index in range(3)] == [[77] * 3, [1, 2, 3], [255] * 3]


def test_an_unknown_augmentation_and_an_empty_dataset_are_refused():
    with pytest.raises(DataError, match="unknown augmentation 'mixup': expected one of none, pad_crop, resized_crop"):
        views(augmentation="mixup")
    with pytest.raises(DataError, match="no images"):
        ViewDataset(subtask_rows().select([]), COLUMNS)


# Batches


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


# Mixed views


def test_a_share_of_the_views_is_mixed_and_labelled_so():
    plain = views(per_class=40, augmentation="pad_crop", flip=True, seed=2)
    mixed = views(per_class=40, augmentation="pad_crop", flip=True, seed=2, mix=0.3)
    images, classes = len(plain), len(NAMES)
    changed, weights, others = 0, [], []
    for view in range(4):
        plain.set_epoch(view)
        mixed.set_epoch(view)
        own = torch.stack([item["image"] for item in plain.__getitems__(list(range(images)))]).double()
        for index, item in enumerate(mixed.__getitems__(list(range(images)))):
            shares = item["labels"]
            assert shares.shape == (classes,)
            assert float(shares.sum()) == pytest.approx(1)
            if torch.equal(item["image"].double(), own[index]):
                continue
            changed += 1
            # the other image and its weight, by trying all: item = weight·own + (1 - weight)·other, to rounding
            direction = own - own[index]
            along = (direction * (item["image"].double() - own[index])).flatten(1).sum(1)
            weight = along / direction.square().flatten(1).sum(1).clamp_min(1e-9)
            residual = (own[index] + weight[:, None, None, None] * direction - item["image"]).abs().flatten(1).amax(1)
            other = int(residual.argmin())
            assert residual[other] <= 1.0
            assert 0 < weight[other] <= 0.51
            expected = torch.zeros(classes, dtype=torch.float64)
            expected[plain.labels[index]] += 1 - weight[other]
            expected[plain.labels[other]] += weight[other]
            assert torch.allclose(shares.double(), expected, atol=0.02)
            weights.append(float(weight[other]))
            others.append(other)
    assert 0.24 < changed / (4 * images) < 0.36
    assert 0.2 < np.mean(weights) < 0.3
    assert len(set(others)) > 0.5 * len(others)


def test_mixing_changes_what_views_depend_on():
    assert len({views(mix=mix).fingerprint for mix in (0, 0.5, 1)}) == 3
    images = b"".join(np.asarray(row["img"]).transpose(2, 0, 1).tobytes() for row in subtask_rows())
    # that of views which are not mixed: targets that were kept before there was any mixing stay valid
    assert (
        views(seed=3).fingerprint
        == hashlib.sha256(repr(("none", False, None, 3, PAD, 24)).encode() + images).hexdigest()
    )


def test_shares_are_of_all_classes_even_of_those_without_an_image():
    rows = subtask_rows().filter(lambda row: row["fine_label"] == 0)
    assert ViewDataset(rows, COLUMNS, mix=1)[0]["labels"].tolist() == [1, 0, 0]


def test_only_the_others_that_are_mixed_in_are_made(monkeypatch):
    monkeypatch.setattr("subdistill_hf.data.images.DECODE_AHEAD_BYTES", 0)
    dataset, made = views(mix=0.25), []
    monkeypatch.setattr(dataset, "image", lambda index: made.append(index) or torch.zeros(3, 4, 4, dtype=torch.uint8))
    dataset.__getitems__(list(range(24)))
    assert 24 < len(made) < 40


@pytest.mark.parametrize("ahead", [True, False])
def test_images_of_different_sizes_are_mixed_only_when_cropped_to_one(monkeypatch, ahead):
    if not ahead:
        monkeypatch.setattr("subdistill_hf.data.images.DECODE_AHEAD_BYTES", 0)
    with pytest.raises(DataError, match=r"images 0 and 1 of 20 x 40 and 24 x 40 pixels cannot be mixed: .* mix=0"):
        ViewDataset(of_different_sizes(), COLUMNS, mix=0.5)
    with pytest.raises(DataError, match="choose the augmentation resized_crop with a size"):
        ViewDataset(of_different_sizes(), COLUMNS, "resized_crop", mix=0.5)
    dataset = ViewDataset(of_different_sizes(), COLUMNS, "resized_crop", size=(24, 16), mix=1)
    assert [tuple(item["image"].shape) for item in dataset.__getitems__([0, 3])] == [(3, 24, 16)] * 2


@pytest.mark.parametrize("mix", [-0.1, 1.1])
def test_mixing_needs_a_share(mix):
    with pytest.raises(DataError, match="expected a share of the views, from 0 to 1"):
        views(mix=mix)


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


def test_images_of_several_sizes_are_checked_when_asked_for():
    def rows(last):
        images = [Image.new("RGB", (size, 8)) for size in (8, 9, 10)]
        encoded = datasets.Dataset.from_dict({"img": images}, features=datasets.Features({"img": datasets.Image()}))
        content = [row["img"]["bytes"] for row in encoded.cast_column("img", datasets.Image(decode=False))]
        content = [{"bytes": each, "path": None} for each in [*content[:2], content[2][:last]]]
        table = {"img": content, "fine_label": [0, 1, 1]}
        features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
        return datasets.Dataset.from_dict(table, features=features)

    ViewDataset(rows(None), COLUMNS).check_images()
    with pytest.raises(DataError, match=r"image 2 \(class 1\) cannot be decoded"):
        ViewDataset(rows(40), COLUMNS).check_images()
