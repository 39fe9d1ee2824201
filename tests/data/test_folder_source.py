"""Every image in a folder is used, or it is said that it is left out."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest

from pictures import class_folders, encoded, write_pictures
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.folder_source import scan_folder
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DataError, SubDistillError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def load(folder, classes=("all",), **options):
    return load_subtask(DataOptions(str(folder), list(classes), **options))


def files_of(data, *parts):
    """The class of each file of some splits, by its path."""
    found = {}
    for part in parts or ("train", "validation", "test"):
        rows = getattr(data, part)
        encoded_rows = rows.cast_column(data.columns.image, datasets.Image(decode=False))
        for row in encoded_rows:
            path = row[data.columns.image]["path"]
            assert path not in found
            found[path] = data.subtask.names[row[data.columns.label]]
        ViewDataset(rows, data.columns).check_images()
    return found


ODD_NAMES = [
    "a:b",
    "cat::dog",
    "new\nline",
    "per%20cent",
    "hash#",
    "what?",
    "star*[1]",
    "back\\slash",
    "ü",
    "猫 🐈",
]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_and_files_of_any_name_are_read(tmp_path, streaming):
    folder = class_folders(tmp_path / "odd [1] folder", ODD_NAMES, 3, 1)
    for number, name in enumerate(ODD_NAMES):
        (folder / "train" / ODD_NAMES[0] / f"{name} in training.png").write_bytes(encoded(1000 + number))
    data = load(folder, streaming=streaming)
    assert data.class_names == tuple(sorted(ODD_NAMES))
    assert files_of(data) == {str(path): path.parent.name for path in folder.rglob("*.png")}
    assert data.notices == ()


def test_files_of_other_formats_are_said_to_be_left_out_and_so_are_their_classes(tmp_path):
    folder = class_folders(tmp_path / "set", ["cat", "dog", "gnu"])
    for path in list(folder.rglob("gnu/*.png")):
        path.rename(path.with_suffix(".heic"))
    (folder / "notes.txt").write_text("nothing to say")
    data = load(folder)
    assert data.class_names == ("cat", "dog")
    assert data.notices == (
        "left out: 9 files of no image format that is read here (.heic), such as test/gnu/0.heic, test/gnu/1.heic, "
        "test/gnu/2.heic",
        "no class: gnu, none of whose files is read",
    )


@pytest.mark.parametrize("ending", ["", ".jpeg", ".JPG", ".webp", ".bmp", ".tiff", ".gif"])
def test_files_of_every_readable_format_are_used(tmp_path, ending):
    folder = class_folders(tmp_path / "set")
    kind = {"": "PNG", ".jpeg": "JPEG", ".JPG": "JPEG"}.get(ending, ending[1:].upper())
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.write_bytes(encoded(number, kind))
        path.rename(path.with_suffix(ending))
    data = load(folder)
    assert len(files_of(data)) == 18
    assert data.notices == ()


def test_links_are_followed_and_broken_ones_are_said(tmp_path):
    folder = class_folders(tmp_path / "set", ["cat", "dog", "emu"])
    for split in ("train", "test"):
        (folder / split / "emu").rename(tmp_path / f"elsewhere_{split}")
        (folder / split / "emu").symlink_to(tmp_path / f"elsewhere_{split}")
    (folder / "train" / "cat" / "0.png").rename(tmp_path / "moved.png")
    (folder / "train" / "cat" / "0.png").symlink_to(tmp_path / "moved.png")
    (folder / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "train" / "cat" / "round").symlink_to(folder)
    data = load(folder)
    assert len(files_of(data)) == 27
    assert "left out: 1 files whose links lead nowhere, such as train/cat/gone.png" in data.notices


def test_hidden_copies_are_said_to_be_left_out(tmp_path):
    folder = class_folders(tmp_path / "set")
    write_pictures(folder, ["train/cat/.ipynb_checkpoints/0-checkpoint.png", "train/cat/._1.png"], 500)
    (folder / ".DS_Store").write_bytes(b"\x00")
    data = load(folder)
    assert len(files_of(data)) == 18
    assert data.notices == (
        "left out: 2 files in hidden files or folders, such as train/cat/._1.png, "
        "train/cat/.ipynb_checkpoints/0-checkpoint.png",
    )


def test_names_that_are_not_utf8_are_said_to_be_left_out(tmp_path):
    folder = class_folders(tmp_path / "set")
    try:
        Path(os.fsdecode(os.fsencode(folder / "train" / "cat") + b"/\xff.png")).write_bytes(encoded(900))
    except OSError:
        pytest.skip("this file system takes no such names")
    data = load(folder)
    assert len(files_of(data)) == 18
    assert "left out: 1 files with names that are not UTF-8, such as train/cat/\\udcff.png" in data.notices


def test_an_unused_split_is_said(tmp_path):
    folder = class_folders(tmp_path / "set")
    write_pictures(folder, [f"val/{name}/{number}.png" for name in ("cat", "dog") for number in range(2)], 300)
    assert load(folder).notices == ("not used: the split validation of 4 images",)
    assert load(folder, test_split="validation").notices == ("not used: the split test of 6 images",)


def test_packed_files_are_said_or_refused(tmp_path):
    folder = class_folders(tmp_path / "set")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("train/cat/1.png", encoded(700))
    assert load(folder).notices == ("left out: 1 files packed, and not unpacked, such as more.zip",)
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "more.zip").rename(alone / "more.zip")
    with pytest.raises(DataError, match=r"holds packed files alone, such as more.zip. Unpack them"):
        load(alone)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/cat/1.png", "train/cat/2.png", "train/x.png"], "has one folder of a class alone, 'cat': expected at"),
        (["1.png"], "holds 1 images and no folders of classes. Expected train/CLASS/NAME.png"),
        (["cat/1.heic", "dog/2.heic"], r"holds no images that are read; left out: 2 files of no image format .*heic"),
    ],
)
def test_what_breaks_the_layout_is_said(tmp_path, paths, message):
    with pytest.raises(DataError, match=message):
        load(write_pictures(tmp_path / "set", paths))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "set")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"set cannot be read: Permission denied"):
        scan_folder(folder)


def test_folders_for_training_and_test_spelt_with_capitals_are_kept_apart(tmp_path):
    folder = class_folders(tmp_path / "set")
    for split in ("train", "test"):
        (folder / split).rename(folder / split.capitalize())
    data = load(folder)
    assert all("/Train/" in path for path in files_of(data, "train", "validation"))
    assert all("/Test/" in path for path in files_of(data, "test"))
    with_fraction = load(folder, test_fraction=0.3)
    assert all("/Train/" in path for path in files_of(with_fraction))
    assert with_fraction.notices == ("not used: the split test of 6 images",)


@pytest.mark.parametrize("ending", [".pdf", ".eps", ".txt", ".png.bak", None])
def test_a_class_folder_without_an_image_that_is_read_is_said(tmp_path, ending):
    folder = class_folders(tmp_path / "set", ["cat", "dog", "gnu"])
    for path in list(folder.rglob("gnu/*.png")):
        path.rename(path.with_suffix(ending)) if ending else path.unlink()
    data = load(folder)
    assert data.class_names == ("cat", "dog")
    assert data.notices[-1] == "no class: gnu, none of whose files is read"


def test_a_class_folder_that_is_a_broken_link_is_said(tmp_path):
    folder = class_folders(tmp_path / "set")
    (folder / "train" / "emu").symlink_to(tmp_path / "nowhere")
    assert load(folder).notices == ("left out: 1 files whose links lead nowhere, such as train/emu",)


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "SET.ZIP"])
def test_a_packed_file_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=f"{name} is packed: unpack it, and give the folder that this makes"):
        load(tmp_path / name)


@pytest.mark.parametrize(("train", "test"), [("Cat", "cat"), ("cat ", "cat"), ("big_cat", "big cat")])
def test_a_class_whose_folders_are_spelled_in_two_ways_is_said_to_be_two(tmp_path, train, test):
    folder = class_folders(tmp_path / "set", [train, "dog"])
    (folder / "test" / train).rename(folder / "test" / test)
    with pytest.raises(
        SubDistillError, match=f"class '{test}' has 0 training images: .*; '{train}' is another class: give"
    ):
        load(folder)


# A metadata file beside the images


def test_a_metadata_file_of_one_split_alone_is_refused(tmp_path):
    folder = class_folders(tmp_path / "set")
    rows = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(6)]
    (folder / "train" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    with pytest.raises(DataError, match=r"train/metadata.csv tells the classes of train, and no file those of test"):
        load(folder, test_fraction=0.3)


def test_a_metadata_file_that_contradicts_the_folders_is_said(tmp_path):
    folder = class_folders(tmp_path / "set")
    for split, count in (("train", 6), ("test", 3)):
        rows = [f"{name}/{n}.png,{other}" for name, other in (("cat", "dog"), ("dog", "cat")) for n in range(count)]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    data = load(folder)
    assert files_of(data) == {str(p): {"cat": "dog", "dog": "cat"}[p.parent.name] for p in folder.rglob("*.png")}
    assert data.notices == (
        "18 images lie in the folder of another class than the metadata file names, such as test/cat/0.png (dog): "
        "what the file names counts",
    )


def test_a_metadata_file_of_another_encoding_is_refused(tmp_path):
    folder = class_folders(tmp_path / "set")
    (folder / "metadata.csv").write_bytes("file_name,label\ntrain/cat/0.png,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata.csv cannot be read: expected a text in UTF-8"):
        load(folder)


def test_a_metadata_file_without_classes_leaves_them_to_the_folders(tmp_path):
    folder = class_folders(tmp_path / "set")
    (folder / "metadata.csv").write_text("file_name,caption\ntrain/cat/0.png,a cat\n")
    data = load(folder)
    assert len(files_of(data)) == 18
    assert data.notices == ("metadata.csv is not read: the folders of the images tell their classes",)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_metadata_file_with_classes_tells_them(tmp_path, kind):
    folder = write_pictures(tmp_path / "set", [f"{split}/{n}.png" for split in ("train", "test") for n in range(8)])
    names = [f"{split}/{n}.png" for split in ("train", "test") for n in range(7)]
    if kind == "csv":
        rows = ["file_name,label", *(f"{name},{'ab'[place % 2]}" for place, name in enumerate(names)), "gone.png,a"]
    else:
        rows = [f'{{"file_name": "{name}", "label": "{"ab"[place % 2]}"}}' for place, name in enumerate(names)]
        rows.append('{"file_name": "gone.png", "label": "a"}')
    (folder / f"metadata.{kind}").write_text("\n".join(rows) + "\n")
    data = load(folder)
    found = files_of(data)
    assert found == {str(folder / name): "ab"[place % 2] for place, name in enumerate(names)}
    assert len(data.test) == 7
    assert data.notices == (
        "left out: 2 files that no metadata file names, such as test/7.png, train/7.png",
        "1 entries of metadata files name images that are not there, such as gone.png",
    )


def test_packed_folders_of_classes_are_told_from_files_with_labels(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for number, name in enumerate(("cat", "dog")):
            content = encoded(number)
            entry = tarfile.TarInfo(f"train/{name}/0.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=r"no file such as NAME.cls beside them. Unpack packed folders of classes"):
        load(tmp_path)


def test_damaged_metadata_is_one_message(tmp_path):
    folder = class_folders(tmp_path / "set")
    (folder / "metadata.jsonl").write_text("{no json\n")
    with pytest.raises(SubDistillError, match=r"metadata.jsonl cannot be read: "):
        load(folder)
