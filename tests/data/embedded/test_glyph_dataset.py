"""glyphs-100 as a dataset: schema, order and cache."""

import json
import shutil

import pytest

from subdistill_hf.data.embedded import glyph_dataset
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.data.embedded.glyph_dataset import load_glyphs
from subdistill_hf.data.embedded.glyphs import render


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache):
    return load_glyphs(train_images_per_class=3, test_images_per_class=2, cache_dir=cache)


def test_schema_and_order(whole):
    for split, count in (("train", 3), ("test", 2)):
        rows = whole[split]
        assert list(rows.features) == ["img", "fine_label", "coarse_label"]
        assert rows.features["fine_label"].names == list(CLASS_NAMES)
        assert rows.features["coarse_label"].names == list(SUPERCLASS_NAMES)
        assert rows["fine_label"][:] == [class_id for class_id in range(100) for _ in range(count)]
        assert rows["coarse_label"][:] == [class_id // 5 for class_id in range(100) for _ in range(count)]
        image = rows[count * 42 + 1]["img"]
        assert image.convert("RGB").tobytes() == render(0, split, 42, 1).tobytes()


def test_a_subset_holds_the_same_rows_as_the_whole(whole, cache):
    subset = load_glyphs([61, 4], train_images_per_class=2, test_images_per_class=2, num_proc=2, cache_dir=cache)
    assert subset["train"]["fine_label"][:] == [4, 4, 61, 61]
    for row, place in zip(subset["train"], [12, 13, 183, 184], strict=True):
        assert row["img"].tobytes() == whole["train"][place]["img"].tobytes()
        assert row["fine_label"] == whole["train"][place]["fine_label"]
        assert row["coarse_label"] == whole["train"][place]["coarse_label"]


def test_cache_is_used_and_keyed_by_every_argument(tmp_path, monkeypatch):
    arguments = {
        "classes": [1],
        "train_images_per_class": 1,
        "test_images_per_class": 1,
        "cache_dir": tmp_path,
    }
    built = []
    original = glyph_dataset._build
    monkeypatch.setattr(glyph_dataset, "_build", lambda *args: built.append(args) or original(*args))
    load_glyphs(**arguments)
    load_glyphs(**arguments)
    assert len(built) == 1
    changes = [
        {"classes": [2]},
        {"train_images_per_class": 2},
        {"test_images_per_class": 2},
        {"seed": 1},
    ]
    for change in changes:
        load_glyphs(**arguments | change)
    monkeypatch.setattr(glyph_dataset, "GENERATOR_VERSION", -1)
    load_glyphs(**arguments)
    assert len(built) == len(list(tmp_path.iterdir())) == 6


def test_half_written_cache_is_generated_again(tmp_path):
    arguments = {
        "classes": [1],
        "train_images_per_class": 2,
        "test_images_per_class": 1,
        "cache_dir": tmp_path,
    }
    before = load_glyphs(**arguments)["train"][1]["img"].tobytes()
    (folder,) = tmp_path.iterdir()
    (folder / "complete.json").unlink()
    shutil.rmtree(folder / "test")
    assert load_glyphs(**arguments)["train"][1]["img"].tobytes() == before
    assert json.loads((folder / "complete.json").read_text())["classes"] == [1]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_another_process_finished_meanwhile_is_kept(tmp_path, monkeypatch):
    arguments = {"classes": [1], "train_images_per_class": 1, "test_images_per_class": 1, "cache_dir": tmp_path}
    original, others = glyph_dataset._build, []

    def slow(*given):
        monkeypatch.setattr(glyph_dataset, "_build", original)
        load_glyphs(**arguments)
        others.extend(path.stat().st_ino for path in tmp_path.glob("glyphs-*/complete.json"))
        return original(*given)

    monkeypatch.setattr(glyph_dataset, "_build", slow)
    assert len(load_glyphs(**arguments)["train"]) == 1
    assert [path.stat().st_ino for path in tmp_path.glob("glyphs-*/complete.json")] == others
    assert len(others) == len(list(tmp_path.iterdir())) == 1


def test_killed_generation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("datasets.DatasetDict.save_to_disk", fail)
    with pytest.raises(KeyboardInterrupt):
        load_glyphs([1], 1, 1, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [0, 100]}, r"class ids from 0 to 99, found \[100\]"),
        ({"classes": [-1]}, r"found \[-1\]"),
        ({"classes": [3, 3]}, r"each class id once, found \[3, 3\]"),
        ({"classes": []}, "at least one class id"),
        ({"train_images_per_class": 0}, "train_images_per_class to be 1 or more, found 0"),
        ({"test_images_per_class": -2}, "test_images_per_class to be 1 or more, found -2"),
        ({"seed": -1}, "seed to be 0 or more, found -1"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_glyphs(**arguments, cache_dir=tmp_path)
