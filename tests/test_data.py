"""The images of a subtask: which are read, how they are split, augmented and collated."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as image_functional

from helpers import (
    CLASS_IDS,
    COLUMNS,
    NAMES,
    damaged_png,
    glyph_rows,
    processor,
    save_teacher,
    subtask_rows,
    views,
    whole_png,
    write_image_folder,
)
from subdistill_hf.data import (
    AUGMENTATIONS,
    PAD,
    DataError,
    ImageColumns,
    ViewCollator,
    ViewDataset,
    _class_names,
    _test_rows,
    load_subtask,
)
from subdistill_hf.glyphs import CLASS_NAMES, render
from subdistill_hf.models import build_student, load_teacher
from subdistill_hf.subtask import SubtaskError, resolve_classes

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Three good classes, one whose images are all damaged, and one that only the test split has."""
    folder = write_image_folder(tmp_path_factory.mktemp("images") / "pieces")
    for split in ("train", "test"):
        (folder / split / "damaged").mkdir()
        for index in range(3):
            (folder / split / "damaged" / f"{index}.png").write_bytes(damaged_png())
    shutil.copytree(folder / "test" / NAMES[0], folder / "test" / "untrained")
    return folder


def pixels(dataset, column="image"):
    return [np.asarray(image.convert("RGB")).tobytes() for image in dataset[column]]


# Loading


def test_images_of_other_classes_are_never_decoded(image_folder):
    data = load_subtask(str(image_folder), NAMES)
    assert [len(ViewDataset(part, data.columns)) for part in (data.train, data.validation, data.test)] == [15, 3, 9]
    assert data.class_names == ("damaged", "untrained", *NAMES)
    assert data.images_per_class() == dict.fromkeys(NAMES, 5)


def test_a_damaged_image_of_a_chosen_class_is_named_by_index_and_file(image_folder):
    data = load_subtask(str(image_folder), [NAMES[0], "damaged"])
    with pytest.raises(DataError, match=r"^image 0, .*damaged.\d\.png \(class 1\) cannot be decoded: .+Remove or rep"):
        ViewDataset(data.train, data.columns)


def test_a_damaged_image_in_memory_is_named_by_index():
    images = [{"bytes": damaged_png() if index == 4 else whole_png(), "path": None} for index in range(6)]
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"img": images, "fine_label": [0, 1] * 3}, features=features)
    with pytest.raises(DataError, match=r"^image 4 \(class 0\) cannot be decoded"):
        ViewDataset(rows, COLUMNS)


def test_a_missing_image_is_named_by_index():
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"img": [whole_png(), None], "fine_label": [0, 1]}, features=features)
    with pytest.raises(DataError, match=r"^image 1 \(class 1\) cannot be decoded"):
        ViewDataset(rows, COLUMNS)


def test_labels_are_the_students_outputs_in_the_order_of_the_classes(image_folder):
    data = load_subtask(str(image_folder), [NAMES[2], NAMES[0]])
    assert data.subtask.names == (NAMES[2], NAMES[0])
    for part, split in ((data.train, "train"), (data.validation, "train"), (data.test, "test")):
        assert part.features["label"].names == [NAMES[2], NAMES[0]]
        for label, class_id in ((0, CLASS_IDS[2]), (1, CLASS_IDS[0])):
            expected = {np.asarray(render(0, split, class_id, index)).tobytes() for index in range(6)}
            found = [image for image, own in zip(pixels(part), part["label"], strict=True) if own == label]
            assert found
            assert set(found) <= expected


def test_splits_are_disjoint_stratified_and_the_same_for_a_seed(image_folder):
    data = load_subtask(str(image_folder), NAMES, validation_fraction=0.5)
    train, validation = set(pixels(data.train)), set(pixels(data.validation))
    assert len(train) == len(validation) == 9
    assert not train & validation
    assert np.bincount(data.train["label"]).tolist() == np.bincount(data.validation["label"]).tolist() == [3, 3, 3]
    again = load_subtask(str(image_folder), NAMES, validation_fraction=0.5)
    assert pixels(again.train) == pixels(data.train)
    assert pixels(again.validation) == pixels(data.validation)
    other = load_subtask(str(image_folder), NAMES, validation_fraction=0.5, seed=1)
    assert set(pixels(other.train)) != train


def test_the_choice_of_a_classs_images_does_not_depend_on_the_other_classes(image_folder):
    alone = load_subtask(str(image_folder), NAMES[:2], validation_fraction=0.5)
    more = load_subtask(str(image_folder), NAMES, validation_fraction=0.5)
    assert set(pixels(alone.train)) == {
        image for image, label in zip(pixels(more.train), more.train["label"], strict=True) if label < 2
    }


def test_a_limit_counts_validation_images_and_takes_a_part_of_what_there_is(image_folder):
    data = load_subtask(str(image_folder), NAMES, train_images_per_class=4, validation_fraction=0.25)
    assert np.bincount(data.train["label"]).tolist() == [3, 3, 3]
    assert np.bincount(data.validation["label"]).tolist() == [1, 1, 1]
    whole = load_subtask(str(image_folder), NAMES)
    assert set(pixels(data.train)) <= set(pixels(whole.train)) | set(pixels(whole.validation))
    assert len(data.test) == 9


def test_every_class_keeps_an_image_on_each_side_of_the_split(image_folder):
    for fraction in (0.01, 0.99):
        data = load_subtask(str(image_folder), NAMES, train_images_per_class=2, validation_fraction=fraction)
        assert np.bincount(data.train["label"]).tolist() == np.bincount(data.validation["label"]).tolist() == [1, 1, 1]


def test_a_class_without_training_images_is_refused(image_folder):
    with pytest.raises(SubtaskError, match="class 'untrained' has 0 training images: expected at least 2"):
        load_subtask(str(image_folder), [NAMES[0], "untrained"])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_validation_share_that_leaves_one_side_empty_is_refused(image_folder, fraction):
    with pytest.raises(DataError, match="validation_fraction"):
        load_subtask(str(image_folder), NAMES, validation_fraction=fraction)


def test_a_limit_of_one_image_is_refused(image_folder):
    with pytest.raises(DataError, match="train_images_per_class=1: expected at least 2"):
        load_subtask(str(image_folder), NAMES, train_images_per_class=1)


def test_a_folder_without_images_or_test_split_is_refused(tmp_path, image_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty' cannot be loaded: .*Expected glyphs-100 or digits, a folder"):
        load_subtask(str(tmp_path / "empty"), NAMES)
    shutil.copytree(image_folder / "train", tmp_path / "flat")
    with pytest.raises(DataError, match="has no test or validation split, only train"):
        load_subtask(str(tmp_path / "flat"), NAMES)


def test_a_dataset_on_the_hub_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="dataset 'nobody/nothing' cannot be loaded"):
        load_subtask("nobody/nothing", NAMES)


def test_a_superclass_stands_for_its_classes():
    data = load_subtask("digits", ["superclass:odd"], train_images_per_class=5)
    assert data.subtask.names == ("one", "three", "five", "seven", "nine")
    assert data.subtask.dataset_ids == (1, 3, 5, 7, 9)
    assert (data.name, data.hub_id, data.test_split) == ("digits", None, "test")


def test_superclasses_are_read_from_the_coarse_column():
    chess_and_dice = glyph_rows((10, 14, 21, 12, 20), 2)
    names, superclasses = _class_names(datasets.DatasetDict(train=chess_and_dice))
    assert names == list(CLASS_NAMES)
    assert superclasses["chess_pieces"] == [CLASS_NAMES[class_id] for class_id in (10, 12, 14)]
    assert superclasses["dice"] == [CLASS_NAMES[20], CLASS_NAMES[21]]
    assert resolve_classes(["superclass:dice"], names, superclasses).dataset_ids == (20, 21)


def test_a_test_split_with_secret_labels_gives_way_to_the_validation_split():
    secret = glyph_rows().map(lambda row: {"fine_label": -1}, load_from_cache_file=False, keep_in_memory=True)
    splits = datasets.DatasetDict(train=glyph_rows(), test=secret, validation=glyph_rows(CLASS_IDS, 4))
    subtask = resolve_classes([CLASS_IDS[1], CLASS_IDS[0]], CLASS_NAMES)
    name, rows = _test_rows(splits, COLUMNS, subtask, "mine")
    assert name == "validation"
    assert rows.tolist() == list(range(8))
    del splits["validation"]
    with pytest.raises(DataError, match="the test split of 'mine' has no image of the subtask's classes"):
        _test_rows(splits, COLUMNS, subtask, "mine")


def test_columns_are_found_by_their_types():
    assert ImageColumns.of(glyph_rows().features) == COLUMNS
    swapped = {name: glyph_rows().features[name] for name in ("coarse_label", "fine_label", "img")}
    assert ImageColumns.of(datasets.Features(swapped)) == COLUMNS
    with pytest.raises(DataError, match="expected an Image and a ClassLabel column, found text"):
        ImageColumns.of(datasets.Features({"text": datasets.Value("string")}))


# Views


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_view_depends_only_on_seed_view_and_image(augmentation):
    options = {"augmentation": augmentation, "flip": True, "seed": 5}
    one, other = views(**options), views(**options)
    for view in (3, 0):
        one.set_epoch(view)
        other.set_epoch(view)
        together = one.__getitems__(list(range(12)))
        backwards = [other[index] for index in reversed(range(12))][::-1]
        for index in range(12):
            assert torch.equal(together[index]["image"], backwards[index]["image"])
            assert (together[index]["index"], together[index]["view"]) == (index, view)
            assert together[index]["labels"] == subtask_rows()["fine_label"][index]


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


def test_images_of_different_sizes_are_cropped_to_one_size():
    rows = [Image.fromarray(np.full((20 + 4 * index, 40, 3), 9 * index, dtype=np.uint8)) for index in range(4)]
    rows = datasets.Dataset.from_dict({"img": rows, "fine_label": [0, 1, 0, 1]}, features=two_classes())
    dataset = ViewDataset(rows, COLUMNS, "resized_crop", size=(24, 16))
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
