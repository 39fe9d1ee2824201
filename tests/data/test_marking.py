"""Which images carry a spurious mark, from every kind of dataset, and what is refused."""

import datasets
import numpy as np
import pytest
import torch

from helpers import CLASS_IDS, COLUMNS, NAMES, glyph_rows, write_image_folder
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data import images as decoded_images
from subdistill_hf.data import views
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.marks import MARKS
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import SubDistillError

pytestmark = pytest.mark.usefixtures("datasets_cache")
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
        ({"mark": "plus", "mark_share": float("nan")}, "mark_share=nan: expected a share from 0 to 1"),
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
            images = ViewDataset(rows, COLUMNS, marked=views.MarkedRows(mark, frozenset({split})))
            changed = [
                not torch.equal(images.image(index), torch.from_numpy(pixels[index]).permute(2, 0, 1))
                for index in range(4)
            ]
            assert changed == [index == split for index in range(4)]
