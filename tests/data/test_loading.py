"""The images of a subtask: which are read, and how they are split."""

import shutil

import datasets
import numpy as np
import pytest

from helpers import CLASS_IDS, COLUMNS, NAMES, damaged_png, whole_png, write_image_folder
from pictures import encoded, write_pictures
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.subtask import SubtaskError
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Three good classes, one whose images are all damaged, and one that only the test split has."""
    folder = write_image_folder(tmp_path_factory.mktemp("images") / "pieces")
    for split in ("train", "test"):
        (folder / split / "damaged").mkdir()
        for index in range(3):
            (folder / split / "damaged" / f"{index}.png").write_bytes(damaged_png() + f"{split} {index}".encode())
    shutil.copytree(folder / "test" / NAMES[0], folder / "test" / "untrained")
    return folder


def load(dataset, classes=NAMES, seed=0, **options):
    return load_subtask(DataOptions(str(dataset), list(classes), **options), seed)


def pixels(dataset, column="image"):
    return [np.asarray(image.convert("RGB")).tobytes() for image in dataset[column]]


# Loading


def test_images_of_other_classes_are_never_decoded(image_folder):
    data = load(image_folder, NAMES)
    assert [len(ViewDataset(part, data.columns)) for part in (data.train, data.validation, data.test)] == [15, 3, 9]
    assert data.class_names == ("damaged", "untrained", *NAMES)
    assert data.images_per_class() == dict.fromkeys(NAMES, 5)


def test_a_damaged_image_of_a_chosen_class_is_named_by_index_and_file(image_folder):
    data = load(image_folder, [NAMES[0], "damaged"])
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
    data = load(image_folder, [NAMES[2], NAMES[0]])
    assert data.subtask.names == (NAMES[2], NAMES[0])
    for part, split in ((data.train, "train"), (data.validation, "train"), (data.test, "test")):
        assert part.features["label"].names == [NAMES[2], NAMES[0]]
        for label, class_id in ((0, CLASS_IDS[2]), (1, CLASS_IDS[0])):
            expected = {np.asarray(render(0, split, class_id, index)).tobytes() for index in range(6)}
            found = [image for image, own in zip(pixels(part), part["label"], strict=True) if own == label]
            assert found
            assert set(found) <= expected


def test_splits_are_disjoint_stratified_and_the_same_for_a_seed(image_folder):
    data = load(image_folder, NAMES, validation_fraction=0.5)
    train, validation = set(pixels(data.train)), set(pixels(data.validation))
    assert len(train) == len(validation) == 9
    assert not train & validation
    assert np.bincount(data.train["label"]).tolist() == np.bincount(data.validation["label"]).tolist() == [3, 3, 3]
    again = load(image_folder, NAMES, validation_fraction=0.5)
    assert pixels(again.train) == pixels(data.train)
    assert pixels(again.validation) == pixels(data.validation)
    other = load(image_folder, NAMES, validation_fraction=0.5, seed=1)
    assert set(pixels(other.train)) != train


def test_the_choice_of_a_classs_images_does_not_depend_on_the_other_classes(image_folder):
    alone = load(image_folder, NAMES[:2], validation_fraction=0.5)
    more = load(image_folder, NAMES, validation_fraction=0.5)
    assert set(pixels(alone.train)) == {
        image for image, label in zip(pixels(more.train), more.train["label"], strict=True) if label < 2
    }


def test_a_limit_counts_validation_images_and_takes_a_part_of_what_there_is(image_folder):
    data = load(image_folder, NAMES, train_images_per_class=4, validation_fraction=0.25)
    assert np.bincount(data.train["label"]).tolist() == [3, 3, 3]
    assert np.bincount(data.validation["label"]).tolist() == [1, 1, 1]
    whole = load(image_folder, NAMES)
    assert set(pixels(data.train)) <= set(pixels(whole.train)) | set(pixels(whole.validation))
    assert len(data.test) == 9


def test_every_class_keeps_an_image_on_each_side_of_the_split(image_folder):
    for fraction in (0.01, 0.99):
        data = load(image_folder, NAMES, train_images_per_class=2, validation_fraction=fraction)
        assert np.bincount(data.train["label"]).tolist() == np.bincount(data.validation["label"]).tolist() == [1, 1, 1]


def test_a_class_without_training_images_is_refused(image_folder):
    with pytest.raises(SubtaskError, match="class 'untrained' has 0 training images: expected at least 2"):
        load(image_folder, [NAMES[0], "untrained"])


@pytest.mark.parametrize("fraction", [1.0, -0.1])
def test_a_validation_share_that_leaves_nothing_to_train_is_refused(image_folder, fraction):
    with pytest.raises(DataError, match="validation_fraction"):
        load(image_folder, NAMES, validation_fraction=fraction)


def test_a_limit_of_one_image_is_refused(image_folder):
    with pytest.raises(DataError, match="train_images_per_class=1: expected at least 2"):
        load(image_folder, NAMES, train_images_per_class=1)


def test_a_folder_without_images_or_test_split_is_refused(tmp_path, image_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty' cannot be loaded: .*Expected glyphs-100 or digits, a folder"):
        load(tmp_path / "empty", NAMES)
    shutil.copytree(image_folder / "train", tmp_path / "flat")
    with pytest.raises(DataError, match="has no test or validation split, only train"):
        load(tmp_path / "flat", NAMES)


def test_a_dataset_on_the_hub_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="dataset 'nobody/nothing' cannot be loaded: the Hub cannot be reached"):
        load("nobody/nothing", NAMES)


def test_a_superclass_stands_for_its_classes():
    data = load("digits", ["superclass:odd"], train_images_per_class=5)
    assert data.subtask.names == ("one", "three", "five", "seven", "nine")
    assert data.subtask.dataset_ids == (1, 3, 5, 7, 9)
    assert (data.name, data.hub_id, data.test_split, data.official_test) == ("digits", None, "test", True)


def test_classes_without_test_images_are_named(tmp_path, caplog):
    folder = write_image_folder(tmp_path / "images")
    shutil.rmtree(folder / "test" / CLASS_NAMES[CLASS_IDS[1]])
    load_subtask(DataOptions(str(folder), ["all"]))
    assert f"no test images of {CLASS_NAMES[CLASS_IDS[1]]}: each figure is that of the other classes" in caplog.text


def table_with(column, values):
    rows = {"image": [{"bytes": encoded(number), "path": None} for number in range(len(values))]}
    rows |= {"label": ["cat", "dog"] * (len(values) // 2), column: values}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


@pytest.mark.parametrize(
    ("column", "values", "refused"),
    [
        ("split", ["train"] * 6 + ["test"] * 6, True),
        ("Usage", ["Training"] * 8 + ["PublicTest"] * 4, True),
        ("split", ["train"] * 12, False),
        ("set", ["blue", "red"] * 6, False),
        ("note", ["train", "test"] * 6, False),
    ],
)
def test_a_table_whose_column_tells_several_splits_is_refused(tmp_path, column, values, refused):
    table_with(column, values).to_parquet(tmp_path / "all.parquet")
    if not refused:
        assert len(load(tmp_path, ["all"], test_fraction=0.5, label_column="label").test) == 6
        return
    with pytest.raises(DataError, match=f"column '{column}' says that the rows of the train split are of several spl"):
        load(tmp_path, ["all"], test_fraction=0.5, label_column="label")


def test_metadata_with_a_column_of_splits_are_refused(tmp_path):
    write_pictures(tmp_path, [f"images/{number}.png" for number in range(12)])
    lines = [f"images/{number}.png,{'ab'[number % 2]},{'train' if number < 8 else 'test'}" for number in range(12)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,split", *lines]), encoding="utf-8")
    with pytest.raises(DataError, match=r"column 'split' says .* \('test', 'train'\), which would be mixed"):
        load(tmp_path, ["all"], test_fraction=0.5)


def test_the_training_split_is_no_test_split(image_folder):
    with pytest.raises(DataError, match="test_split=train is the split that is trained on"):
        load(image_folder, test_split="train")
