"""Images in folders on the Hub: the same splits, classes and notices as of a folder of this machine."""

import io
import json

import datasets
import pandas as pd

from pictures import encoded

LOAD = """
import json, sys
import datasets
from subdistill_hf import DataOptions, SubDistillError, load_subtask

def load(name, **options):
    try:
        data = load_subtask(DataOptions(name, ["all"], **options))
    except SubDistillError as error:
        return str(error)
    found = {}
    for part in ("train", "validation", "test"):
        rows = getattr(data, part).cast_column(data.columns.image, datasets.Image(decode=False))
        paths = [(row[data.columns.image]["path"] or "").split("/")[-3:] for row in rows]
        names = [data.subtask.names[label] for label in rows[data.columns.label]]
        found[part] = list(zip(paths, names))
    return {"found": found, "notices": data.notices, "revision": data.revision}

print(json.dumps([load(**options) for options in json.loads(sys.argv[1])]))
"""


def run(hub, *loads, **environment):
    return hub.answer(LOAD, json.dumps(loads), **environment)


def images(*paths):
    return {path: encoded(number) for number, path in enumerate(paths)}


def class_folders(*names):
    counts = {"train": 5, "test": 2}
    return images(*(f"{split}/{name}/{n}.png" for split in counts for name in names for n in range(counts[split])))


def table(labels, begin, **kinds):
    content = [encoded(begin + number) for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"image": content, "label": labels}).cast_column("image", datasets.Image())
    if kinds:
        rows = rows.cast_column("label", datasets.ClassLabel(names=kinds["names"]))
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


def test_a_folder_of_the_hub_whose_splits_are_not_clear_is_refused(hub):
    files = class_folders("train", "test-tube") | {"more.zip": b"zip"}
    nested = images(*(f"all/{split}/{name}/1.png" for split in ("train", "test") for name in "ab"), "x/y/1.png")
    told = class_folders("train", "test-tube") | {"train/metadata.csv": b"file_name,text\ntrain/0.png,a train\n"}
    hub.put("user/zipped", files, "dataset")
    hub.put("user/nested", nested, "dataset")
    hub.put("user/told", told, "dataset")
    zipped, nested, told = run(hub, *({"name": f"user/{name}"} for name in ("zipped", "nested", "told")))
    assert zipped.startswith("user/zipped: files are in several splits at once")  # as datasets guesses from words
    assert "the folder all has the folders test and train, and splits are told by the first folders alone" in nested
    assert told.startswith("user/told: files are in several splits at once")


def test_images_that_a_folder_of_the_hub_has_twice_are_counted(hub):
    files = class_folders("train", "test-tube")
    files |= {"train/test-tube/copy.png": files["test/test-tube/0.png"], "train/gnu/0.heic": b"heic"}
    hub.put("user/folders", files, "dataset")
    online, streamed = run(hub, {"name": "user/folders"}, {"name": "user/folders", "streaming": True})
    assert online == streamed
    assert {part: len(rows) for part, rows in online["found"].items()} == {"train": 8, "validation": 2, "test": 4}
    for part, rows in online["found"].items():
        for path, name in rows:
            assert path[:2] == ["test" if part == "test" else "train", name]
    left_out, no_class, twice = online["notices"]
    assert left_out == "left out: 1 files of no image format that is read here (.heic), such as train/gnu/0.heic"
    assert no_class == "no class: gnu, none of whose files is read"
    assert twice.startswith("left out: 1 training images are test images")
    (again,) = run(hub, {"name": "user/folders"}, HF_HUB_OFFLINE="1")
    assert again["found"] == online["found"]


def test_tables_of_the_hub_that_contradict_each_other_are_refused(hub):
    hub.put(
        "user/shards",
        {
            "data/train-00000-of-00002.parquet": table([0, 1] * 4, 0, names=["a", "b"]),
            "data/train-00001-of-00002.parquet": table([0, 1] * 4, 50, names=["b", "a"]),
            "data/test-00000-of-00001.parquet": table([0, 1], 90, names=["a", "b"]),
        },
        "dataset",
    )
    hub.put(
        "user/twice", {"train.parquet": table(["a", "b"] * 4, 0), "test.parquet": table(["a", "c", "b"], 0)}, "dataset"
    )
    rows = pd.DataFrame({"image": [encoded(n) for n in range(8)], "label": ["a", "b"] * 4}).to_parquet()
    hub.put("user/pandas", {"train.parquet": rows, "test.parquet": table(["a", "b"], 90)}, "dataset")
    for streaming in (False, True):
        shards, twice, pandas = run(
            hub, *({"name": f"user/{name}", "streaming": streaming} for name in ("shards", "twice", "pandas"))
        )
        assert "column 'label': class 0 is 'a' in the train split" in shards
        assert twice["notices"] == [
            "left out: 1 images of the split test of classes that no training image has: 'c'",
            "left out: 2 training images are test images",
        ]
        assert {part: len(rows) for part, rows in twice["found"].items()} == {"train": 4, "validation": 2, "test": 2}
        assert "column 'image' holds images in the test split, and elsewhere bytes" in pandas
