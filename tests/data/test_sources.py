"""Where rows come from: what is read, what is kept, and that it is what the slow way gives."""

import io
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers import CLASS_IDS, NAMES, damaged_png, glyph_rows, write_image_folder
from pictures import class_folders
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.sources import ParquetSource, open_source
from subdistill_hf.data.stored_images import digest_of_rows
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")

DICE = (20, 21)
KEPT = (21, 10, 12)


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory):
    """Five classes in shuffled order, in two shards of several row groups; a test file; images of one are damaged."""
    folder = tmp_path_factory.mktemp("parquet")
    train = with_damaged(glyph_rows((*CLASS_IDS, *DICE), 8), 11).shuffle(seed=1)
    for index in range(2):
        train.shard(2, index).to_parquet(folder / f"train-0000{index}-of-00002.parquet", batch_size=6)
    glyph_rows((*CLASS_IDS, *DICE), 3, "test").to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def with_damaged(rows, class_id):
    """The rows with encoded images, those of one class damaged."""
    rows = rows.cast_column("img", datasets.Image(decode=False))
    images = [
        {"bytes": damaged_png() + bytes([place]), "path": None} if row["fine_label"] == class_id else row["img"]
        for place, row in enumerate(rows)
    ]
    return datasets.Dataset.from_dict(rows.to_dict() | {"img": images}, features=glyph_rows().features)


def options(dataset, classes=KEPT, **further):
    return DataOptions(str(dataset), [str(name) for name in classes], **further)


def encoded(rows, columns):
    """Label and encoded image of each row."""
    rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    return [(row[columns.label], row[columns.image]["bytes"]) for row in rows]


def size_of(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


# Parquet


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_those_of_loading_everything_and_filtering(parquet_folder, streaming):
    everything = datasets.load_dataset(str(parquet_folder))
    source = open_source(options(parquet_folder, streaming=streaming))
    columns = ImageColumns.of(source.features)
    assert isinstance(source, ParquetSource)
    assert source.splits == ("train", "test")
    for split in source.splits:
        slow = everything[split].filter(lambda label: label in KEPT, input_columns=columns.label)
        rows = source.rows(split, columns, KEPT)
        assert rows.column_names == [columns.image, columns.label]
        assert encoded(rows, columns) == encoded(slow, columns)
        assert source.column(split, columns.label) == everything[split][columns.label][:]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_subtask_of_parquet_files_is_that_of_the_slow_way(parquet_folder, streaming, tmp_path):
    datasets.load_dataset(str(parquet_folder)).save_to_disk(tmp_path / "saved")
    slow = load_subtask(options(tmp_path / "saved"), seed=4)
    fast = load_subtask(options(parquet_folder, streaming=streaming), seed=4)
    assert fast.subtask == slow.subtask
    assert fast.subtask.names == tuple(CLASS_NAMES[class_id] for class_id in KEPT)
    for part in ("train", "validation", "test"):
        assert encoded(getattr(fast, part), fast.columns) == encoded(getattr(slow, part), slow.columns)
        assert len(ViewDataset(getattr(fast, part), fast.columns)) == {"train": 18, "validation": 6, "test": 9}[part]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_other_classes_are_not_copied_and_a_second_load_copies_nothing(
    parquet_folder, tmp_path, monkeypatch, streaming
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    first = load_subtask(options(parquet_folder, DICE, streaming=streaming))
    copied = size_of(tmp_path)
    parts = (first.train, first.validation, first.test)
    wanted = sum(len(image) for part in parts for _, image in encoded(part, first.columns))
    assert wanted < copied < 1.2 * wanted + 10_000
    load_subtask(options(parquet_folder, DICE, streaming=streaming))
    assert size_of(tmp_path) == copied


def test_a_changed_file_is_read_again(parquet_folder, tmp_path):
    shutil.copytree(parquet_folder, tmp_path / "mine")
    for streaming in (False, True):
        assert len(load_subtask(options(tmp_path / "mine", DICE, streaming=streaming)).train) == 12
    for index in range(2):
        changed = glyph_rows(DICE, 11).shard(2, index)
        changed.to_parquet(tmp_path / "mine" / f"train-0000{index}-of-00002.parquet")
    for streaming in (False, True):
        assert len(load_subtask(options(tmp_path / "mine", DICE, streaming=streaming)).train) == 18


@pytest.mark.parametrize("streaming", [False, True])
def test_a_test_split_with_secret_labels_gives_way_to_the_validation_split(tmp_path, streaming):
    test = glyph_rows(CLASS_IDS, 3, "test")
    secret = test.remove_columns("fine_label").add_column("fine_label", [-1] * 9, feature=test.features["fine_label"])
    glyph_rows(CLASS_IDS, 4).to_parquet(tmp_path / "train.parquet")
    secret.to_parquet(tmp_path / "test.parquet")
    wanted = options(tmp_path, CLASS_IDS[:2], streaming=streaming)
    with pytest.raises(DataError, match=r"the test split of '.*' has no image of the subtask's classes"):
        load_subtask(wanted)
    test.to_parquet(tmp_path / "validation.parquet")
    data = load_subtask(wanted)
    assert (data.test_split, len(data.test), data.official_test) == ("validation", 6, True)


def test_a_single_file_needs_a_held_out_test_share(tmp_path):
    glyph_rows(CLASS_IDS, 8).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(DataError, match=r"no test or validation split, only train: .* with --test_fraction 0.2"):
        load_subtask(options(tmp_path / "all.parquet", CLASS_IDS))
    data = load_subtask(options(tmp_path / "all.parquet", CLASS_IDS, test_fraction=0.25))
    assert (data.name, data.test_split, data.official_test) == ("all.parquet", "held out of train", False)
    assert (len(data.test), len(data.validation), len(data.train)) == (6, 3, 15)
    parts = [{image for _, image in encoded(part, data.columns)} for part in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == 24


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n")
    with pytest.raises(DataError, match=r"table.csv: expected a folder or a .parquet file"):
        load_subtask(options(tmp_path / "table.csv"))


def test_splits_can_be_chosen(tmp_path):
    for split, numbers in (("train", range(6)), ("test", range(6, 8)), ("validation", range(8, 11))):
        rows = glyph_rows(CLASS_IDS, 11, "test")
        rows.select([row for row in range(len(rows)) if row % 11 in numbers]).to_parquet(tmp_path / f"{split}.parquet")
    data = load_subtask(options(tmp_path, CLASS_IDS, train_split="test", test_split="train"))
    assert (len(data.train), len(data.validation), len(data.test), data.test_split) == (3, 3, 18, "train")
    data = load_subtask(options(tmp_path, CLASS_IDS, train_split="test"))
    assert data.test_split == "validation"
    with pytest.raises(DataError, match=r"expected a fit split, found train, .*: choose one with --train_split"):
        load_subtask(options(tmp_path, CLASS_IDS, train_split="fit"))
    with pytest.raises(DataError, match="has no held_back split, only train"):
        load_subtask(options(tmp_path, CLASS_IDS, test_split="held_back"))


# Labels


def table_of(folder, labels, kind, per_label=4):
    """A parquet file of tiny images whose labels are texts or numbers."""
    labels = [label for label in labels for _ in range(per_label)]
    buffers = [io.BytesIO() for _ in labels]
    for place, buffer in enumerate(buffers):
        Image.new("RGB", (4, 4), (place, 0, 0)).save(buffer, "PNG")
    features = datasets.Features({"picture": datasets.Image(), "species": datasets.Value(kind)})
    images = [{"bytes": buffer.getvalue(), "path": None} for buffer in buffers]
    datasets.Dataset.from_dict({"picture": images, "species": labels}, features=features).to_parquet(
        folder / "train.parquet"
    )
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_are_classes_in_alphabetical_order(tmp_path, streaming):
    folder = table_of(tmp_path, ["yak", "ant", None, "cow"], "string")
    data = load_subtask(options(folder, ["yak", "cow"], test_fraction=0.25, streaming=streaming))
    assert data.class_names == ("ant", "cow", "yak")
    assert data.subtask.dataset_ids == (2, 1)
    assert data.columns == ImageColumns("picture", "species")
    assert sorted(data.train["species"]) == [0, 0, 1, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_are_classes_in_rising_order_and_negative_ones_are_no_class(tmp_path, streaming):
    folder = table_of(tmp_path, [30, -1, 4, None, 7], "int32")
    data = load_subtask(options(folder, ["30", "4"], test_fraction=0.25, streaming=streaming))
    assert data.class_names == ("4", "7", "30")
    assert data.subtask.dataset_ids == (2, 0)
    assert sorted(data.train["species"]) == [0, 0, 1, 1]


# Superclasses


@pytest.mark.parametrize("streaming", [False, True])
def test_superclasses_are_read_from_both_label_columns(parquet_folder, streaming):
    data = load_subtask(options(parquet_folder, ["superclass:dice"], streaming=streaming))
    assert data.subtask.dataset_ids == DICE
    assert load_subtask(options(parquet_folder, ["superclass:Chess Pieces"])).subtask.names == NAMES


def test_a_column_that_cuts_through_classes_holds_no_superclasses(tmp_path):
    rows = glyph_rows(CLASS_IDS, 4)
    mixed = rows.remove_columns("coarse_label").add_column("coarse_label", ["new", "old"] * 6)
    mixed.to_parquet(tmp_path / "train.parquet")
    wanted = options(tmp_path, ["superclass:new"], superclass_column="coarse_label", test_fraction=0.2)
    with pytest.raises(DataError, match=f"'coarse_label' holds no superclasses .* '{NAMES[0]}' is in 'new' and 'old'"):
        load_subtask(wanted)


# Other formats


def test_a_streamed_folder_of_images_gives_the_same_images(tmp_path):
    folder = write_image_folder(tmp_path / "images")
    (folder / "train" / "damaged").mkdir()
    (folder / "train" / "damaged" / "0.png").write_bytes(damaged_png())
    downloaded, streamed = (load_subtask(options(folder, NAMES, streaming=streaming)) for streaming in (False, True))
    for part in ("train", "validation", "test"):
        one, other = (ViewDataset(getattr(data, part), data.columns) for data in (downloaded, streamed))
        assert one.labels == other.labels
        assert all(np.array_equal(one.image(index), other.image(index)) for index in range(len(one)))


def test_a_saved_dataset_is_read(tmp_path):
    glyph_rows(CLASS_IDS, 8).save_to_disk(tmp_path / "saved")
    data = load_subtask(options(tmp_path / "saved", CLASS_IDS, test_fraction=0.25))
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 3, 6)


def test_a_damaged_parquet_file_is_named(tmp_path):
    glyph_rows(CLASS_IDS, 4).to_parquet(tmp_path / "train.parquet")
    assert pq.read_metadata(tmp_path / "train.parquet").num_rows == 12
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cannot be loaded: .*[Pp]arquet"):
        load_subtask(options(tmp_path, CLASS_IDS, test_fraction=0.25))


def test_labels_that_mean_other_classes_in_another_split_are_refused(tmp_path):
    def table(names, split):
        rows = glyph_rows(CLASS_IDS, 4, split).select_columns(["img"])
        return rows.add_column("label", [0, 1, 2] * 4, feature=datasets.ClassLabel(names=names))

    saved = datasets.DatasetDict({"train": table(["a", "b", "c"], "train"), "test": table(["a", "c", "b"], "test")})
    saved.save_to_disk(tmp_path / "saved")
    message = "column 'label': class 1 is 'b' in the train split and 'c' in the test split"
    with pytest.raises(DataError, match=message):
        load_subtask(DataOptions(str(tmp_path / "saved"), ["a", "b"]), 0)
    (tmp_path / "files").mkdir()
    for split, rows in saved.items():
        rows.to_parquet(tmp_path / "files" / f"{split}.parquet")
    with pytest.raises(DataError, match=message):
        load_subtask(DataOptions(str(tmp_path / "files"), ["a", "b"]), 0)
    saved["test"] = table(["a", "b", "c"], "test")
    saved.save_to_disk(tmp_path / "alike")
    assert load_subtask(DataOptions(str(tmp_path / "alike"), ["a", "b"]), 0).subtask.names == ("a", "b")


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_dataset_that_was_saved_with_a_format_is_read(tmp_path, kind):
    datasets.DatasetDict({"train": glyph_rows(CLASS_IDS, 8).with_format(kind)}).save_to_disk(tmp_path / "saved")
    data = load_subtask(options(tmp_path / "saved", CLASS_IDS, test_fraction=0.25), 0)
    assert ViewDataset(data.train, data.columns)[0]["image"].shape == (3, 32, 32)


def test_the_digest_of_rows_is_of_images_and_labels():
    columns = ImageColumns("img", "fine_label")
    rows = glyph_rows(CLASS_IDS, 4)
    digests = {
        digest_of_rows(part, columns) for part in (rows, rows.select(range(11)), glyph_rows(CLASS_IDS, 4, "test"))
    }
    assert len(digests) == 3
    again = datasets.Dataset.from_dict(rows.to_dict(), features=rows.features)
    assert digest_of_rows(again, columns) == digest_of_rows(rows, columns)
    other = rows.to_dict() | {"fine_label": [CLASS_IDS[0]] * len(rows)}
    assert digest_of_rows(datasets.Dataset.from_dict(other, features=rows.features), columns) not in digests


def test_a_folder_with_the_name_of_an_embedded_dataset_is_said_not_to_be_read(tmp_path, monkeypatch):
    class_folders(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    embedded = load_subtask(DataOptions("digits", ["zero", "one"]))
    assert embedded.notices[0] == "digits is the embedded dataset: for the folder, give ./digits"
    assert (embedded.name, embedded.hub_id) == ("digits", None)
    folder = load_subtask(DataOptions("./digits", ["all"]))
    assert (folder.subtask.names, folder.notices) == (("cat", "dog"), ())


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_stream_whose_columns_nobody_declared_is_asked_for_them(tmp_path, kind):
    (tmp_path / "rows").mkdir()
    paths = sorted(class_folders(tmp_path / "images").rglob("*.png"))
    for split in ("train", "test"):
        own = [path for path in paths if f"/{split}/" in str(path)]
        rows = datasets.Dataset.from_dict({"image": [str(p) for p in own], "label": [p.parent.name for p in own]})
        getattr(rows, "to_csv" if kind == "csv" else "to_json")(tmp_path / "rows" / f"{split}.{kind}")
    with pytest.raises(DataError, match=r"found image: string, label: string: .*Names of files become images"):
        load_subtask(DataOptions(str(tmp_path / "rows"), ["cat", "dog"], streaming=True))


@pytest.mark.parametrize("name", ["./gone", "../gone", "/gone/for/ever", "gone/", "a/b/c", "C:\\gone", "~/gone"])
def test_a_path_that_is_not_there_is_no_question_for_the_hub(name):
    with pytest.raises(
        DataError, match=r"cannot be loaded: there is no such folder or file(; give the whole path in)?"
    ):
        load_subtask(DataOptions(name, ["all"]))
