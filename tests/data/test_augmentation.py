"""Shifted, mirrored and mixed views are what they say they are."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as image_functional

from helpers import NAMES, subtask_rows, views
from subdistill_hf.data.augmentation import PAD, Partners, mirroring, resized_crop
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


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


@pytest.mark.parametrize(
    ("draw", "box"),
    [
        ((0.0, 0.0, 0.0, 0.0), (0, 0, 34, 25)),  # 8 % of 90 x 120, 3 wide to 4 high
        ((0.0, 1.0, 0.5, 0.5), (33, 43, 25, 34)),  # 4 wide to 3 high
        ((0.25, 0.5, 0.999, 0.999), (32, 62, 58, 58)),  # 31 %, square, in the last corner
        ((1.0, 0.5, 0.9, 0.2), (0, 3, 90, 104)),  # all of it would be a square that is too high
    ],
)
def test_a_resized_crop_has_the_share_of_the_area_the_proportions_and_the_place_that_were_drawn(draw, box):
    image = torch.randint(256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    top, left, height, width = box
    cut = image[:, top : top + height, left : left + width]
    expected = image_functional.resize(cut, [12, 16], InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resized_crop(image, np.array(draw), (12, 16)), expected)


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


def test_only_the_others_that_are_mixed_in_are_made(monkeypatch):
    monkeypatch.setattr("subdistill_hf.data.images.DECODE_AHEAD_BYTES", 0)
    dataset, made = views(mix=0.25), []
    blank = torch.zeros(3, 4, 4, dtype=torch.uint8)
    monkeypatch.setattr(dataset.images, "at", lambda indices: made.extend(indices) or [blank] * len(indices))
    dataset.__getitems__(list(range(24)))
    assert 24 < len(made) < 40


def test_a_rectangle_of_another_view_is_pasted_and_labelled_by_its_area():
    plain = views(per_class=8, augmentation="pad_crop", seed=2)
    pasted = views(per_class=8, augmentation="pad_crop", seed=2, cutmix=1.0)
    images = len(plain)
    own = torch.stack([item["image"] for item in plain.__getitems__(list(range(images)))])
    corners, sides = set(), set()
    for index, item in enumerate(pasted.__getitems__(list(range(images)))):
        # the pixels of exactly one other view, in one square, wherever the two differ
        fits = []
        for other in set(range(images)) - {index}:
            differs = (item["image"] != own[index]).any(0)
            if not differs.any() or (item["image"] != own[other]).any(0)[differs].any():
                continue
            rows, columns = torch.nonzero(differs.any(1))[:, 0], torch.nonzero(differs.any(0))[:, 0]
            top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
            inside = item["image"][:, top:bottom, left:right]
            if torch.equal(inside, own[other][:, top:bottom, left:right]):
                fits.append((other, top, left, max(bottom - top, right - left)))
        share = item["labels"].double()
        assert float(share.sum()) == pytest.approx(1)
        if not fits:  # an image that was drawn as its own partner, or a square that shows nothing else
            continue
        other, top, left, side = fits[0]
        assert side <= round(32 * 0.5**0.5)
        weight = float(1 - share[plain.labels[index]])
        if plain.labels[other] != plain.labels[index]:
            assert side <= round(32 * weight**0.5) + 1e-9
            assert weight == pytest.approx(float(share[plain.labels[other]]))
            sides.add((side, round(32 * weight**0.5)))
        corners.add((top, left))
    assert len(corners) > 10
    assert sum(side == expected for side, expected in sides) > len(sides) / 2


def test_a_rectangle_is_pasted_at_the_corner_that_was_drawn_for_its_row_and_its_column():
    partners = Partners(torch.tensor([1, 0]), torch.tensor([0.75, 1.0]), torch.tensor([[0.3, 0.99], [0.0, 0.0]]))
    views = [torch.zeros(3, 8, 16, dtype=torch.uint8), torch.ones(3, 8, 16, dtype=torch.uint8)]
    first, second = partners.mixed([0, 1], lambda indices: [views[index] for index in indices])
    expected = torch.zeros(3, 8, 16, dtype=torch.uint8)
    expected[:, 1:5, 8:16] = 1  # a quarter of the area, at 0.3 of 5 rows and 0.99 of 9 columns that it may begin in
    assert torch.equal(first, expected)
    assert torch.equal(second, torch.ones(3, 8, 16, dtype=torch.uint8))


def test_blended_and_pasted_views_are_shares_of_all_that_do_not_overlap():
    plain, blended, both = views(40), views(40, mix=0.3), views(40, mix=0.3, cutmix=0.3)
    count = len(plain)
    images = [[item["image"] for item in each.__getitems__(list(range(count)))] for each in (plain, blended, both)]
    is_blended = [not torch.equal(one, other) for one, other in zip(images[0], images[1], strict=True)]
    changed = sum(not torch.equal(one, other) for one, other in zip(images[0], images[2], strict=True))
    assert all(torch.equal(images[1][place], images[2][place]) for place in range(count) if is_blended[place])
    assert 0.2 < sum(is_blended) / count < 0.4
    assert 0.45 < changed / count < 0.7


@pytest.mark.parametrize("shares", [{"mix": -0.1}, {"mix": 1.1}, {"cutmix": 1.1}, {"mix": 0.6, "cutmix": 0.6}])
def test_mixing_needs_shares(shares):
    with pytest.raises(DataError, match=r"expected (a share|shares) of the views"):
        views(**shares)


@pytest.mark.parametrize(
    ("dataset", "names", "mirrored", "reason"),
    [
        ("glyphs-100", ["a", "b"], False, "a mirrored sign is another"),
        ("uoft-cs/cifar100", ["apple", "bear"], True, "photograph"),
        ("my/photographs", ["n02123045", "n02123159"], True, "photograph"),
        ("my/digits", ["3", "5", "7"], False, "letters, digits or signs"),
        ("my/letters", ["b", "d"], False, "letters, digits or signs"),
        ("my/words", ["digit_three", "digit_five"], False, "letters, digits or signs"),
        ("my/traffic", ["turn left", "turn right"], False, "left from right"),
        ("my/things", ["beaker", "flask"], False, "nobody knows"),
    ],
)
def test_images_are_mirrored_only_where_that_is_known_to_be_safe(dataset, names, mirrored, reason):
    found, why = mirroring(dataset, names)
    assert found is mirrored
    assert reason in why
