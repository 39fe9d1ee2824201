"""Augmented views of images depend on seed, view and image alone."""

import hashlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from helpers import CLASS_IDS, COLUMNS, NAMES, subtask_rows, views
from subdistill_hf.data.augmentation import AUGMENTATIONS, PAD
from subdistill_hf.data.labelled_rows import with_outputs
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DataError

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


# Mixed views


def test_mixing_changes_what_views_depend_on():
    assert len({views(mix=mix, cutmix=cutmix).fingerprint for mix in (0, 0.5) for cutmix in (0, 0.3, 0.5)}) == 6
    images = b"".join(np.asarray(row["img"]).transpose(2, 0, 1).tobytes() for row in subtask_rows())
    # that of views which are not mixed: targets that were kept before there was any mixing stay valid
    assert (
        views(seed=3).fingerprint
        == hashlib.sha256(repr(("none", False, None, 3, PAD, 24)).encode() + images).hexdigest()
    )


def test_shares_are_of_all_classes_even_of_those_without_an_image():
    rows = subtask_rows().filter(lambda row: row["fine_label"] == 0)
    assert ViewDataset(rows, COLUMNS, mix=1)[0]["labels"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("how", [{"mix": 1.0}, {"cutmix": 1.0}])
def test_an_image_of_another_size_is_brought_to_that_of_the_image_it_is_mixed_with(monkeypatch, ahead, how):
    if not ahead:
        monkeypatch.setattr("subdistill_hf.data.images.DECODE_AHEAD_BYTES", 0)
    plain, mixed = ViewDataset(of_different_sizes(), COLUMNS), ViewDataset(of_different_sizes(), COLUMNS, **how)
    for index in range(len(plain)):
        assert mixed[index]["image"].shape == plain[index]["image"].shape
    cropped = ViewDataset(of_different_sizes(), COLUMNS, "resized_crop", size=(24, 16), **how)
    assert [tuple(item["image"].shape) for item in cropped.__getitems__([0, 3])] == [(3, 24, 16)] * 2


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


def test_an_image_without_a_class_has_the_label_that_losses_ignore_and_no_share_in_a_mixture():
    rows = subtask_rows(per_class=2)
    without = with_outputs(rows.select_columns([COLUMNS.image]), COLUMNS, Subtask(NAMES, CLASS_IDS), [-1] * 6)
    both = datasets.concatenate_datasets([rows, without])
    assert ViewDataset(both, COLUMNS).labels == [0, 0, 1, 1, 2, 2] + [-100] * 6
    mixed = ViewDataset(both, COLUMNS, mix=1.0)
    partners = mixed._partners
    for index in range(12):
        expected = torch.zeros(3)
        for image, share in ((index, partners.own[index]), (int(partners.other[index]), 1 - partners.own[index])):
            if image < 6:
                expected[image // 2] += share
        assert torch.allclose(mixed[index]["labels"], expected)


@pytest.mark.parametrize("form", ["torch", "numpy", "custom"])
def test_a_dataset_with_a_transform_or_a_format_is_refused(form):
    rows = subtask_rows(2)
    rows = rows.with_transform(lambda batch: batch) if form == "custom" else rows.with_format(form)
    with pytest.raises(
        DataError, match=r"the dataset has (a transform|the format '.*'): expected .*with_format\(None\)"
    ):
        ViewDataset(rows, COLUMNS)
