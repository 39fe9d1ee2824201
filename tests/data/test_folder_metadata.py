"""What a metadata file says of images is taken as it is written."""

import json

import pytest

from pictures import write_pictures
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.loading import classes_of_dataset, load_subtask
from subdistill_hf.errors import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")

IMAGES = [f"{number:03}.png" for number in range(12)]


def options(folder, **more):
    return DataOptions(str(folder), ["all"], test_fraction=0.3, **more)


def with_table(folder, labels, header="file_name,label"):
    """A folder with a CSV file that gives the images these labels, by turns."""
    rows = [f"{name},{labels[place % len(labels)]}" for place, name in enumerate(IMAGES)]
    return with_file(folder, "metadata.csv", "\n".join([header, *rows]) + "\n")


def with_lines(folder, rows, begin=""):
    """A folder with a JSONL file of these rows."""
    return with_file(folder, "metadata.jsonl", begin + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def with_file(folder, name, text):
    write_pictures(folder, IMAGES)
    (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_is_read_as_spreadsheets_of_other_languages_write_it(tmp_path, separator):
    header = separator.join(["file_name", "label", "note, if any"])
    rows = [f'{name}{separator}"{"ab"[place % 2]}{separator}c"{separator}1,5' for place, name in enumerate(IMAGES)]
    folder = with_file(tmp_path / "set", "metadata.csv", "\r\n".join([header, *rows]) + "\r\n")
    assert classes_of_dataset(options(folder))[0] == (f"a{separator}c", f"b{separator}c")


def test_a_table_without_file_names_is_one_of_commas(tmp_path):
    folder = with_file(tmp_path / "set", "metadata.csv", "image;label\n" + "".join(f"{name};a\n" for name in IMAGES))
    with pytest.raises(DataError, match="file_name"):
        classes_of_dataset(options(folder))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["007", "012", "100"], ("007", "012", "100")),
        (["07", "7", "8"], ("07", "7", "8")),
        (["1", "2", "NA"], ("1", "2", "NA")),
        (["null", "nan", "x"], ("nan", "null", "x")),
        (["2020-01-01", "2021-01-01"], ("2020-01-01", "2021-01-01")),
        (["1.5", "2.0"], ("1.5", "2.0")),
        (["true", "false"], ("false", "true")),
        (["+1", "-0", "1e3"], ("+1", "-0", "1e3")),
        (["9" * 30, "9" * 29], ("9" * 29, "9" * 30)),
        (["2", "10", "1"], ("1", "2", "10")),
        (["2", "10", "", "1"], ("1", "2", "10")),
        (["2", "10", "-1", "1"], ("1", "2", "10")),
        (["b", "", "a"], ("a", "b")),
    ],
)
def test_labels_of_a_table_are_classes_as_they_are_written(tmp_path, labels, classes):
    folder = with_table(tmp_path / "set", labels)
    assert classes_of_dataset(options(folder))[0] == classes
    assert load_subtask(options(folder)).class_names == classes


def test_each_file_of_a_dataset_takes_part_in_what_a_column_holds(tmp_path):
    folder = write_pictures(tmp_path / "set", [f"{split}/{n}.png" for split in ("train", "test") for n in range(6)])
    for split, labels in (("train", "12"), ("test", ["1", "2", "none"])):
        rows = [f"{n}.png,{labels[n % len(labels)]}" for n in range(6)]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    data = load_subtask(DataOptions(str(folder), ["all"]))
    assert data.class_names == ("1", "2")
    assert len(data.test) == 4


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, "a", 2], ("1", "2", "a")),
        ([1.5, 2], ("1.5", "2")),
        ([True, False], ("false", "true")),
        ([10, 2], ("2", "10")),
    ],
)
def test_labels_of_lines_are_classes_of_any_plain_kind(tmp_path, labels, classes):
    rows = [{"file_name": name, "label": labels[place % len(labels)]} for place, name in enumerate(IMAGES)]
    assert classes_of_dataset(options(with_lines(tmp_path / "set", rows)))[0] == classes


@pytest.mark.parametrize("lacking", ["label", "coarse"])
def test_a_row_may_lack_what_others_have(tmp_path, lacking):
    rows = [{"file_name": name, "label": "abc"[place % 3], "coarse": "x"} for place, name in enumerate(IMAGES)]
    del rows[0][lacking]
    folder = with_lines(tmp_path / "set", rows)
    given = DataOptions(str(folder), ["superclass:x"], superclass_column="coarse", test_fraction=0.3)
    data = load_subtask(given)
    assert data.class_names == ("a", "b", "c")
    assert len(data.train) + len(data.validation) + len(data.test) == (11 if lacking == "label" else 12)


def test_a_row_without_a_file_is_refused(tmp_path):
    rows = [{"file_name": name, "label": "abc"[place % 3]} for place, name in enumerate(IMAGES)]
    folder = with_lines(tmp_path / "set", [*rows, {"label": "a"}])
    with pytest.raises(DataError, match=r"metadata.jsonl has a row without file_name, only label"):
        load_subtask(options(folder))


@pytest.mark.parametrize("sign", ["\u2028", "\x85"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path, sign):
    rows = [{"file_name": name, "label": [f"a{sign}b", "c"][place % 2]} for place, name in enumerate(IMAGES)]
    folder = with_lines(tmp_path / "set", rows)
    assert classes_of_dataset(options(folder))[0] == (f"a{sign}b", "c")


@pytest.mark.parametrize("begin", ["", "./", "../set/", "folder//../"])
def test_images_are_known_by_any_way_of_writing_their_place(tmp_path, begin):
    rows = [{"file_name": f"{begin}{name}", "label": "ab"[place % 2]} for place, name in enumerate(IMAGES)]
    with_lines(tmp_path / "all" / "set", rows)
    assert load_subtask(options(tmp_path / "all")).notices == ()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, kind):
    if kind == "csv":
        folder = with_table(tmp_path / "set", "ab", header="\ufefffile_name,label")
    else:
        rows = [{"file_name": name, "label": "ab"[place % 2]} for place, name in enumerate(IMAGES)]
        folder = with_lines(tmp_path / "set", rows, begin="\ufeff")
    assert classes_of_dataset(options(folder))[0] == ("a", "b")
