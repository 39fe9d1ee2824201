"""What parquet files say before they are read: their splits, and that all mean the same classes by their labels."""

import os

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from pictures import encoded
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.parquet_files import check_guessed_splits, splits_of_files
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def load(folder, classes=("all",), **options):
    return load_subtask(DataOptions(str(folder), list(classes), **options))


def write_table(path, names, classes, count=5, begin=0, kind=None):
    """A parquet file of pictures whose file names begin with the class, and whose labels are the places in `names`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "image": {"bytes": encoded(begin + number), "path": f"{name}_{number}.png"},
            "label": names.index(name) if kind is None else kind(name),
        }
        for number, name in enumerate(classes * count)
    ]
    label = datasets.ClassLabel(names=names) if kind is None else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (["dog", "cat"], r"class 0 is 'cat' in the train split \(train-0.*\) and 'dog' in the train split \(train-1"),
        (["emu", "dog"], r"class 0 is 'cat' in the train split \(train-0.*\) and 'emu'"),
        (["cat", "dog", "emu"], r"class 2 is 'missing' in .* and 'emu' in"),
    ],
)
def test_shards_of_a_split_whose_labels_mean_other_classes_are_refused(tmp_path, second, message, streaming):
    write_table(tmp_path / "train-0.parquet", ["cat", "dog"], ["cat", "dog"])
    write_table(tmp_path / "train-1.parquet", second, second, begin=100)
    write_table(tmp_path / "test-0.parquet", ["cat", "dog"], ["cat", "dog"], begin=200)
    with pytest.raises(DataError, match=message):
        load(tmp_path, streaming=streaming)


def write_readme(folder, names):
    declared = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": {str(place): name for place, name in enumerate(names)}}}},
    ]
    files = [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")]
    text = {"dataset_info": {"features": declared}, "configs": [{"config_name": "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.dump(text)}---\n")


def test_files_whose_labels_mean_other_classes_than_in_the_readme_are_refused(tmp_path):
    write_table(tmp_path / "data" / "train-0.parquet", ["cat", "dog"], ["cat", "dog"])
    write_table(tmp_path / "data" / "test-0.parquet", ["dog", "cat"], ["cat", "dog"], begin=200)
    write_readme(tmp_path, ["cat", "dog"])
    with pytest.raises(DataError, match="class 0 is 'cat' in the README and 'dog' in the test split"):
        load(tmp_path)
    write_table(tmp_path / "data" / "test-0.parquet", ["cat", "dog"], ["cat", "dog"], begin=200)
    write_table(tmp_path / "more.parquet", ["cat", "dog"], ["cat"], begin=400)
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (8, 10)
    assert data.notices == ("left out: 1 files that the README gives to no split, such as more.parquet",)


def test_numbers_whose_meaning_a_readme_gives_are_read(tmp_path):
    for split, begin in (("train", 0), ("test", 200)):
        place = tmp_path / "data" / f"{split}-0.parquet"
        write_table(place, [], ["cat", "dog"], begin=begin, kind=lambda name: int(name == "dog"))
    write_readme(tmp_path, ["cat", "dog"])
    assert load(tmp_path).subtask.names == ("cat", "dog")


def test_a_shard_that_does_not_say_what_its_labels_mean_is_refused(tmp_path):
    write_table(tmp_path / "train-0.parquet", ["cat", "dog"], ["cat", "dog"])
    write_table(tmp_path / "train-1.parquet", [], ["cat"], begin=100, kind=lambda name: 0)
    with pytest.raises(DataError, match=r"train-0.parquet\) says which classes its labels are, .*train-1.* does not"):
        load(tmp_path, test_fraction=0.3)


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_beyond_the_names_are_refused(tmp_path, streaming):
    rows = [{"image": {"bytes": encoded(number), "path": None}, "label": number % 3} for number in range(12)]
    written = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    table = datasets.Dataset.from_list(rows, features=written)
    claimed = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pq.write_table(table.data.table.replace_schema_metadata(claimed.arrow_schema.metadata), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"column 'label' has the label 2, and names for 2 classes alone: a, b"):
        load(tmp_path, test_fraction=0.3, streaming=streaming)


@pytest.mark.parametrize("saved", [False, True])
def test_images_without_a_class_are_counted(tmp_path, saved):
    labels = [0, 1] * 5 + [-1, -100, None]
    rows = [{"image": {"bytes": encoded(n), "path": None}, "label": label} for n, label in enumerate(labels)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    whole = [{**row, "label": 0 if row["label"] is None else max(row["label"], 0)} for row in rows]
    table = datasets.Dataset.from_list(whole, features=features).to_dict()
    table["label"] = labels
    rows_without = datasets.Dataset.from_dict(
        table, features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    ).cast_column("label", features["label"])
    if saved:
        rows_without.save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        rows_without.to_parquet(tmp_path / "set" / "train.parquet")
    data = load(tmp_path / "set", test_fraction=0.3)
    assert data.notices == (
        "left out: 3 images of the split train without a class (no label, a blank one, or one below 0)",
    )
    assert len(data.train) + len(data.validation) + len(data.test) == 10


# Texts as labels


def write_texts(folder, **labels):
    """Parquet files `SPLIT.parquet` of images with these labels, no image twice."""
    folder.mkdir(exist_ok=True)
    for place, (split, own) in enumerate(labels.items()):
        images = [encoded(100 * place + number) for number in range(len(own))]
        pd.DataFrame({"image": images, "label": own}).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_test_images_of_classes_that_no_training_image_has_are_counted(tmp_path, streaming):
    folder = write_texts(tmp_path / "set", train=["cat", "dog"] * 4, test=["cat", "Dog", "dog", "emu", "emu"])
    data = load(folder, streaming=streaming)
    assert data.notices == (
        "left out: 3 images of the split test of classes that no training image has: 'Dog', 'emu'",
    )
    assert len(data.test) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_images_with_a_blank_label_have_no_class(tmp_path, streaming):
    folder = write_texts(tmp_path / "set", train=["cat", "dog"] * 4 + ["", " ", None], test=["cat", "dog", ""])
    data = load(folder, streaming=streaming)
    assert data.class_names == ("cat", "dog")
    assert data.notices == tuple(
        f"left out: {count} images of the split {split} without a class (no label, a blank one, or one below 0)"
        for split, count in (("train", 3), ("test", 1))
    )


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "train")])
def test_labels_that_look_the_same_are_refused(tmp_path, splits):
    labels = {"train": ["caf\u00e9", "dog"] * 4, "test": ["dog", "dog"]}
    labels[splits[1]] = [*labels[splits[1]], "cafe\u0301"]
    message = (
        r"column 'label' has the label .* in two spellings, 'caf\\xe9' and 'cafe\\u0301'|'cafe\\u0301' and 'caf\\xe9'"
    )
    with pytest.raises(DataError, match=message):
        load(write_texts(tmp_path / "set", **labels))


# Files whose columns differ


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"label": ["cat", "dog"] * 4},
            r"column 'label' holds texts in the train split \(train-1.parquet\), and elsewhere",
        ),
        ({"label": None}, r"column 'label' is not in the train split \(train-1.parquet\). Expected the same columns"),
        (
            {"image": [{"bytes": encoded(900 + n), "path": None} for n in range(8)]},
            r"column 'image' holds images in .*bytes",
        ),
        ({"image": None}, r"column 'image' is not in the train split \(train-1.parquet\)"),
    ],
)
def test_shards_with_other_columns_are_named(tmp_path, second, message, streaming):
    for number in range(2):
        columns = {"image": [encoded(10 * number + place) for place in range(8)], "label": [0, 1] * 4}
        columns |= second if number else {}
        table = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
        table.to_parquet(tmp_path / f"train-{number}.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path, streaming=streaming, test_fraction=0.3)


@pytest.mark.parametrize("saved", [False, True])
def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path, saved):
    tables = {
        split: {"image": [encoded(50 * place + n) for n in range(8)], "label": ["a", "b"] * 4}
        for place, split in enumerate(("test", "train", "validation"))
    }
    del tables["test"]["label"]
    if saved:
        splits = {name: datasets.Dataset.from_dict(table) for name, table in tables.items()}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        for name, table in tables.items():
            pd.DataFrame(table).to_parquet(tmp_path / "set" / f"{name}.parquet")
    data = load(tmp_path / "set")
    assert (data.test_split, len(data.test)) == ("validation", 8)
    with pytest.raises(DataError, match=r"column 'label' is not in the test split. Expected the same columns"):
        load(tmp_path / "set", test_split="test")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_without_rows_is_read(tmp_path, streaming):
    write_table(tmp_path / "train-0.parquet", ["a", "b"], ["a", "b"])
    whole = pq.read_table(tmp_path / "train-0.parquet")
    pq.write_table(whole.slice(0, 0), tmp_path / "train-1.parquet")
    data = load(tmp_path, streaming=streaming, test_fraction=0.3)
    assert len(data.train) + len(data.validation) + len(data.test) == len(whole)


def test_a_streamed_struct_without_an_image_is_named(tmp_path):
    images = [{"bytes": encoded(n) if n else None, "path": None} for n in range(8)]
    pd.DataFrame({"image": images, "label": ["a", "b"] * 4}).to_parquet(tmp_path / "train.parquet")
    messages = []
    for split in ("train", "validation", "test"):
        try:
            load(tmp_path, streaming=True, test_fraction=0.3).views(split).check_images()
        except DataError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert messages[0].endswith("(class 0) cannot be decoded: there is no image. Remove or replace it")


# Splits by names of files


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train-0.parquet", "train-1.parquet", "test-0.parquet"], {"train": 2, "test": 1}),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], {"train": 2}),
        (["0000.parquet", "0001.parquet"], {"train": 2}),
        (["default/train/0000.parquet", "default/test/0000.parquet"], {"train": 1, "test": 1}),
        (["cifar_train.parquet", "cifar_test.parquet"], {"train": 1, "test": 1}),
        (["Train.parquet", "TEST.parquet", "valid.parquet"], {"train": 1, "validation": 1, "test": 1}),
        (["train-00000-of-00001.parquet", "holdout-00000-of-00001.parquet"], {"train": 1, "holdout": 1}),
    ],
)
def test_files_are_of_the_split_that_they_name(files, splits):
    assert {split: len(names) for split, names in splits_of_files(files, "set").items()} == splits


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["data.parquet", "test.parquet"], "test.parquet names its split and data.parquet does not"),
        (["test/train.parquet"], "not clear which split test/train.parquet is of"),
        (["a/train-0.parquet", "b/train-0.parquet"], "are both named for the train split: give the folder of one"),
        (["small_train.parquet", "large_train.parquet"], "may all be the train split"),
    ],
)
def test_names_of_files_that_are_not_clear_are_refused(files, message):
    with pytest.raises(DataError, match=message):
        splits_of_files(files, "set")


def test_splits_that_were_guessed_from_other_words_are_refused():
    url = "hf://datasets/a/b@c/"
    check_guessed_splits({"train": [f"{url}train-0.tar"], "test": [f"{url}test-0.tar"]}, "a/b")
    check_guessed_splits({"train": [f"{url}0.csv", f"{url}1.csv"]}, "a/b")
    for guessed in (
        {"train": [f"{url}Train-0.tar", f"{url}Test-0.tar"]},
        {"train": [f"{url}train-0.tar"], "test": [f"{url}test-0.tar", f"{url}train-0.tar"]},
        {"train": [f"{url}big/train-0.tar"], "test": [f"{url}big/val-0.tar"]},
    ):
        with pytest.raises(DataError, match=r"names such as train-0|several splits"):
            check_guessed_splits(guessed, "a/b")


# Columns as others write them


def pandas_table(folder, images, labels=None):
    folder.mkdir(exist_ok=True)
    labels = ["ab"[number % 2] for number in range(len(images))] if labels is None else labels
    pd.DataFrame({"image": images, "label": labels}).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["structs", "bytes", "bytes alone", "more"])
def test_encoded_images_that_others_wrote_are_read(tmp_path, kind, streaming):
    images = [encoded(number) for number in range(12)]
    if kind == "structs":
        images = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    elif kind != "bytes":
        further = {} if kind == "bytes alone" else {"filename": "x.png", "height": 8}
        images = [{"bytes": image, **further} for image in images]
    data = load(pandas_table(tmp_path / "set", images), test_fraction=0.3, streaming=streaming)
    assert data.train.features["image"] == datasets.Image()
    assert data.train[0]["image"].size == (8, 8)
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 12
    contents = {
        row["image"]["bytes"]
        for part in (data.train, data.validation, data.test)
        for row in part.cast_column("image", datasets.Image(decode=False))
    }
    assert contents == {encoded(number) for number in range(12)}
    assert load(tmp_path / "set", test_fraction=0.3, image_column="image").columns.image == "image"


def test_categories_of_pandas_are_texts(tmp_path):
    images = [encoded(number) for number in range(12)]
    labels = pd.Categorical(["ab"[number % 2] for number in range(12)])
    data = load(pandas_table(tmp_path / "set", images, labels), test_fraction=0.3)
    assert data.subtask.names == ("a", "b")


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        ("a.png", "a", "found image: string, label: string: expected images .*Names of files become images with"),
        (b"", 0.5, r"found image: binary, label: float64: expected ClassLabel, .*Value\(\"int64\"\)"),
        (b"", True, r"found image: binary, label: bool: expected ClassLabel, .*truth values become texts with"),
        ([1, 2], "a", r"found image: List, label: string: expected images \(datasets.Image\)"),
    ],
)
def test_columns_that_are_neither_are_named_with_what_to_do(tmp_path, image, label, message):
    folder = pandas_table(tmp_path / "set", [image] * 4, [label] * 4)
    with pytest.raises(DataError, match=message):
        load(folder, test_fraction=0.3)


def test_a_column_of_another_type_that_was_asked_for_is_told_what_to_do(tmp_path):
    folder = pandas_table(tmp_path / "set", ["a.png"] * 4)
    with pytest.raises(DataError, match=r"image_column='image' has type string: expected images \(datasets.Image\)"):
        load(folder, test_fraction=0.3, image_column="image")


def test_a_dataset_that_was_saved_without_decoding_is_read(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = [{"image": {"bytes": encoded(n), "path": None}, "label": n % 2} for n in range(12)]
    table = datasets.Dataset.from_list(rows, features=features)
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "train.parquet")
    for folder in ("saved", "files"):
        assert load(tmp_path / folder, test_fraction=0.3).train[0]["image"].size == (8, 8)


# The cache


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_is_rewritten_in_the_same_instant_is_read_again(tmp_path, streaming):
    path = tmp_path / "train.parquet"
    seen = []
    for begin in (0, 500):
        write_table(path, ["cat", "dog"], ["cat", "dog"], begin=begin)
        os.utime(path, ns=(10**18, 10**18))
        seen.append(load(tmp_path, test_fraction=0.3, streaming=streaming).train[0]["image"].tobytes())
    assert seen[0] != seen[1]
