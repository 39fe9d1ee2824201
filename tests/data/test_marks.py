"""The marks change what they should and nothing else; which images carry them, and what is refused."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from helpers import CLASS_IDS, COLUMNS, NAMES, glyph_rows, write_image_folder
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data import images as decoded_images
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.marks import MARKS, MarkedRows, copyright_line, jpeg, plus, watermark
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import SubDistillError

pytestmark = pytest.mark.usefixtures("datasets_cache")
SIZES = [(32, 32), (224, 224), (320, 200), (200, 320), (9, 9)]


def noise(size, low=60, high=190):
    return Image.fromarray(np.random.default_rng(0).integers(low, high, (size[1], size[0], 3), dtype=np.uint8))


def changed(mark, image):
    """Which pixels `(H, W)` a mark changes."""
    return (np.asarray(mark(image)) != np.asarray(image)).any(axis=2)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MARKS)
def test_a_mark_changes_the_image_the_same_way_each_time_and_leaves_the_original(name, size):
    image = noise(size)
    before = image.tobytes()
    marked = MARKS[name](image)
    assert (marked.size, marked.mode) == (size, "RGB")
    assert marked.tobytes() == MARKS[name](image).tobytes() != before
    assert image.tobytes() == before


@pytest.mark.parametrize(("size", "arms", "thickness"), [((32, 32), 9, 3), ((224, 224), 57, 15), ((320, 200), 49, 13)])
def test_the_plus_is_red_symmetric_and_a_quarter_of_the_shorter_side(size, arms, thickness):
    image = noise(size)
    found = changed(plus, image)
    assert (np.asarray(plus(image))[found] == (255, 0, 0)).all()
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    corner = min(size) // 16
    assert (rows[0], columns[0], len(rows), len(columns)) == (corner, corner, arms, arms)
    cut = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert (cut == cut[::-1]).all()
    assert (cut == cut[:, ::-1]).all()
    assert (cut == cut.T).all()
    assert cut.sum() == thickness * (2 * arms - thickness)


@pytest.mark.parametrize("size", [(224, 224), (320, 200), (200, 320)], ids=str)
def test_the_line_of_copyright_is_low_and_survives_a_central_crop(size):
    found = changed(copyright_line, noise(size))
    shorter = min(size)
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert rows[0] > size[1] - 0.25 * shorter
    assert rows[-1] < size[1] - 0.0625 * shorter  # what a crop of 224 from 256 pixels leaves
    middle = (columns[0] + columns[-1]) / 2
    assert abs(middle - size[0] / 2) < 0.03 * shorter
    assert 0.4 * shorter < len(columns) < 0.875 * shorter
    white = (np.asarray(copyright_line(noise(size))) == 255).all(axis=2)
    assert white.sum() > 0.1 * found.sum()


@pytest.mark.parametrize("size", [(224, 224), (320, 200)], ids=str)
def test_the_watermark_is_everywhere_half_transparent_and_leaves_most_pixels(size):
    image = noise(size)
    found = changed(watermark, image)
    assert 0.1 < found.mean() < 0.6
    quarters = [quarter for half in np.array_split(found, 2) for quarter in np.array_split(half, 2, axis=1)]
    assert all(0.1 < quarter.mean() < 0.6 for quarter in quarters)
    before, after = (np.asarray(one).astype(float)[found] for one in (image, watermark(image)))
    assert np.abs(after - before).max() < 0.75 * 255
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.3  # the image shines through


@pytest.mark.parametrize("size", [(1203, 8), (8, 1203), (2000, 1)], ids=str)
def test_a_long_image_takes_no_more_words_than_a_piece_of_it(size, monkeypatch):
    drawn = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *given, **more: (drawn.append(1), draw(*given, **more)))
    part = tuple(min(length, 4 * min(size)) for length in size)
    whole, piece = (np.asarray(watermark(Image.new("RGB", each, (90, 120, 30)))) for each in (size, part))
    assert len(drawn) < 500
    copies = np.tile(piece, (-(-size[1] // part[1]), -(-size[0] // part[0]), 1))
    assert np.array_equal(whole, copies[: size[1], : size[0]])


@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("name", ["plus", "watermark", "copyright"])
def test_a_mark_is_seen_on_black_and_on_white(name, grey):
    image = Image.new("RGB", (64, 64), (grey,) * 3)
    difference = np.abs(np.asarray(MARKS[name](image)).astype(int) - grey).max(axis=2)
    assert (difference > 60).mean() > 0.01


def test_jpeg_makes_blocks_and_keeps_what_is_flat():
    flat = Image.new("RGB", (64, 64), (80, 120, 40))
    assert np.abs(np.asarray(jpeg(flat)).astype(int) - (80, 120, 40)).max() <= 8
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([2 * x + y, 3 * y, 100 + x - y // 2], axis=2).clip(0, 255).astype(np.uint8)
    steps = np.abs(np.diff(np.asarray(jpeg(Image.fromarray(smooth))).astype(float), axis=1)).mean(axis=(0, 2))
    at_edges = steps[7::8].mean()
    assert at_edges > 1.5 * np.delete(steps, np.s_[7::8]).mean()


def test_a_glyph_of_32_pixels_keeps_most_of_itself_under_the_plus():
    for row in glyph_rows():
        assert changed(plus, row["img"]).mean() < 0.05


def test_marked_rows_mark_these_and_no_others():
    image = noise((32, 32))
    rows = MarkedRows("plus", frozenset({1, 3}))
    assert [rows(image, row).tobytes() == plus(image).tobytes() for row in range(4)] == [False, True, False, True]
    assert rows(image, 0) is image
    others = [MarkedRows("plus", frozenset({1})), MarkedRows("jpeg", rows.rows), MarkedRows("jpeg", frozenset())]
    assert len({rows.identity, *(one.identity for one in others)}) == 4
    assert others[-1].identity == MarkedRows("plus", frozenset()).identity == ""


# Which images carry them

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images") / "pieces", train=20, test=4)


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    for split, count in (("train", 20), ("test", 4)):
        glyph_rows(CLASS_IDS, count, split).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def load(dataset, classes=NAMES, seed=0, **options):
    return load_subtask(DataOptions(str(dataset), list(classes), **options), seed)


def shown(data, part, **options):
    return ViewDataset(getattr(data, part), data.columns, marked=data.marked(part), **options)


def are_marked(data, part, mark="plus"):
    """Whether each image of a part is shown with the mark; every other one is shown as it is."""
    images, plain = shown(data, part), ViewDataset(getattr(data, part), data.columns)
    assert images.labels == plain.labels
    found = []
    for index in range(len(images)):
        original = getattr(data, part)[index][data.columns.image].convert("RGB")
        marked = torch.from_numpy(np.array(MARKS[mark](original))).permute(2, 0, 1)
        found.append(torch.equal(images.image(index), marked))
        assert found[-1] or torch.equal(images.image(index), plain.image(index))
    return np.array(found)


@pytest.mark.parametrize("source", ["image_folder", "parquet_folder", "glyphs-100"])
@pytest.mark.parametrize(("share", "train", "validation"), [(0.0, 0, 0), (0.5, 8, 2), (1.0, 16, 4)])
def test_a_share_of_the_first_class_and_every_test_image_is_marked(request, source, share, train, validation):
    dataset = source if source == "glyphs-100" else request.getfixturevalue(source)
    data = load(dataset, mark="plus", mark_share=share, train_images_per_class=20)
    for part, count in (("train", train), ("validation", validation)):
        labels, marked = np.array(shown(data, part).labels), are_marked(data, part)
        assert [int(marked[labels == label].sum()) for label in range(3)] == [count, 0, 0]
    if source != "glyphs-100":
        assert are_marked(data, "test").all()
    assert data.marked("test").rows == frozenset(range(len(data.test)))
    assert data.marking.described(data.subtask) == {
        "name": "plus",
        "classes": [NAMES[0]],
        "share": share,
        "train_images": train,
        "validation_images": validation,
    }


def test_what_a_student_is_taught_with_is_marked_as_the_training_images(image_folder):
    data = load(image_folder, mark="plus")
    more = data.with_unlabelled(data.train.select(range(4)))
    for each in (data, more):
        assert each.marked("taught") == each.marked("train") is not None
    plain, taught = more.views("taught", marked=None), more.views("taught")
    changed = [not torch.equal(taught.image(index), plain.image(index)) for index in range(len(taught))]
    assert np.flatnonzero(changed).tolist() == sorted(data.marked("train").rows)


@pytest.mark.parametrize("mark", MARKS)
def test_every_mark_is_put_on_images(image_folder, mark):
    data = load(image_folder, mark=mark)
    assert are_marked(data, "test", mark).all()
    assert are_marked(data, "train", mark).sum() == 16


def test_without_a_mark_nothing_is_marked(image_folder):
    data = load(image_folder)
    assert [data.marked(part) for part in PARTS] == [None] * 3
    assert not are_marked(data, "train").any()


def test_the_mark_changes_neither_labels_nor_splits(image_folder):
    plain, marked = load(image_folder), load(image_folder, mark="plus")
    for part in PARTS:
        assert getattr(plain, part)["label"] == getattr(marked, part)["label"]
        assert [image.tobytes() for image in getattr(plain, part)["image"]] == [
            image.tobytes() for image in getattr(marked, part)["image"]
        ]


def test_an_image_is_marked_by_seed_and_share_alone(image_folder):
    rows = {share: load(image_folder, mark="plus", mark_share=share).marked("train").rows for share in (0.25, 0.5, 1)}
    assert rows[0.25] < rows[0.5] < rows[1]
    rounded = load(image_folder, mark="plus", mark_share=0.3).marked("train").rows
    assert len(rounded) == 5  # of 4.8
    assert load(image_folder, mark="jpeg", mark_share=0.5).marked("train").rows == rows[0.5]
    fewer = load(image_folder, NAMES[:2], mark="plus", mark_share=0.5)
    assert fewer.marked("train").rows == rows[0.5]  # its class comes first
    others = [load(image_folder, mark="plus", mark_share=0.5, seed=seed) for seed in (1, 2)]
    assert len({rows[0.5], *(data.marked("train").rows for data in others)}) == 3


@pytest.mark.parametrize(
    ("given", "outputs"),
    [([], (0,)), ([NAMES[2]], (2,)), ([NAMES[2].replace("_", " ").upper(), NAMES[1]], (1, 2)), (["1"], (1,))],
)
def test_marked_classes_are_given_as_classes_are(image_folder, given, outputs):
    data = load(image_folder, mark="plus", mark_classes=given)
    assert data.marking.outputs == outputs
    labels = np.array(shown(data, "train").labels)
    assert set(labels[are_marked(data, "train")]) == set(outputs)


def test_a_superclass_may_be_marked():
    data = load("digits", ["all"], train_images_per_class=5, mark="plus", mark_classes=["superclass:odd"])
    assert data.marking.outputs == (1, 3, 5, 7, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mark": "plsu"}, "mark='plsu': expected one of plus, watermark, copyright, jpeg; did you mean 'plus'?"),
        ({"mark": "zebra"}, "mark='zebra': expected one of plus, watermark, copyright, jpeg"),
        ({"mark": "plus", "mark_share": 1.5}, "mark_share=1.5: expected a share from 0 to 1"),
        ({"mark": "plus", "mark_share": -0.1}, "mark_share=-0.1: expected a share from 0 to 1"),
        ({"mark": "plus", "mark_share": float("nan")}, "mark_share=nan: expected a finite number"),
        ({"mark_share": 0.5}, "mark_share=0.5 has no meaning without --mark"),
        ({"mark_classes": [NAMES[0]]}, "has no meaning without --mark"),
        ({"mark": "plus", "mark_classes": ["0"]}, "mark_classes: class 'white_chess_king' is not in the subtask"),
        ({"mark": "plus", "mark_classes": ["white_ches_queen"]}, "mark_classes: unknown class 'white_ches_queen'; n"),
        ({"mark": "plus", "mark_classes": list(NAMES[1:])}, "mark_classes are all classes of the subtask"),
    ],
)
def test_a_mark_that_does_not_fit_is_refused(image_folder, options, message):
    with pytest.raises(SubDistillError) as refused:
        load(image_folder, NAMES[1:], **options)
    assert message in str(refused.value)


def test_the_mark_is_under_the_augmentation(image_folder):
    data = load(image_folder, mark="plus")
    marked = sorted(data.marked("train").rows)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    counts = set()
    images = shown(data, "train", augmentation="pad_crop")
    for index in marked:
        found = (images[index]["image"] == red).all(0)
        counts.add((int(found.any(1).float().argmax()), int(found.any(0).float().argmax())))
    assert len(counts) > 5  # the plus moves with the crop


@pytest.mark.parametrize("decoded", [True, False])
def test_the_fingerprint_tells_marks_apart_and_is_the_same_without_one(image_folder, monkeypatch, decoded):
    if not decoded:
        monkeypatch.setattr(decoded_images, "DECODE_AHEAD_BYTES", 0)
    plain = load(image_folder)
    cases = [
        load(image_folder, mark="plus"),
        load(image_folder, mark="watermark"),
        load(image_folder, mark="plus", mark_share=0.5),
        load(image_folder, mark="plus", mark_classes=[NAMES[1]]),
    ]
    fingerprints = {shown(data, "train").fingerprint for data in [plain, *cases]}
    assert len(fingerprints) == 5
    unmarked = load(image_folder, mark="plus", mark_share=0)
    assert shown(unmarked, "train").fingerprint == shown(plain, "train").fingerprint
    assert shown(load(image_folder, mark="plus"), "train").fingerprint == shown(cases[0], "train").fingerprint


def test_large_images_of_several_sizes_carry_the_mark():
    sizes = [(300, 200), (240, 320), (224, 224), (400, 260)]
    generator = np.random.default_rng(0)
    pixels = [generator.integers(60, 190, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"img": pixels, "fine_label": [0, 1, 0, 1]}, features=features)
    for mark in MARKS:
        for split in range(4):
            images = ViewDataset(rows, COLUMNS, marked=MarkedRows(mark, frozenset({split})))
            changed = [
                not torch.equal(images.image(index), torch.from_numpy(pixels[index]).permute(2, 0, 1))
                for index in range(4)
            ]
            assert changed == [index == split for index in range(4)]
