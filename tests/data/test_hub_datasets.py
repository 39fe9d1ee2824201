"""Datasets of the Hub, through the real clients: what is loaded, what is asked for, and what is said when it fails."""

import io
import json

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from timm.data import ImageNetInfo

from helpers import CLASS_IDS, glyph_rows
from loopback_hub import ALWAYS
from subdistill_hf.data.class_names import IMAGENET_SUBTASKS
from subdistill_hf.data.errors import explained
from subdistill_hf.errors import DataError

CATS = IMAGENET_SUBTASKS["domestic-cat"]
LOAD = """
import hashlib, json, sys
import datasets
from subdistill_hf import DataOptions, SubDistillError, load_subtask

def load(name, **options):
    try:
        data = load_subtask(DataOptions(name, **options))
    except SubDistillError as error:
        return str(error)
    images = {}
    for part in ("train", "validation", "test"):
        rows = getattr(data, part).cast_column(data.columns.image, datasets.Image(decode=False))
        images[part] = [[row[data.columns.label], hashlib.sha256(row[data.columns.image]["bytes"]).hexdigest()]
                        for row in rows]
    return {
        "hub_id": data.hub_id, "revision": data.revision, "names": data.subtask.names, "ids": data.subtask.dataset_ids,
        "test_split": data.test_split, "images": images,
    }

print(json.dumps([load(**options) for options in json.loads(sys.argv[1])]))
"""


def parquet(rows):
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


def card(features, download_size=10**6, **examples):
    """A card that tells the columns and how many rows each split has, as `push_to_hub` writes it."""
    info = datasets.DatasetInfo(features=features)
    info.splits = datasets.SplitDict()
    for split, count in examples.items():
        info.splits.add(datasets.SplitInfo(split, num_bytes=10**14, num_examples=count))
    info.download_size, info.dataset_size = download_size, 10**14
    text = yaml.dump({"dataset_info": info._to_yaml_dict()})
    return f"---\n{text}---\n".encode()


def cifar(hub):
    """Some glyphs as if they were CIFAR-100: in its columns, under its id."""
    train, test = glyph_rows((*CLASS_IDS, 20, 21), 6), glyph_rows((*CLASS_IDS, 20, 21), 2, "test")
    return hub.put(
        "uoft-cs/cifar100",
        {
            "cifar100/train-00000-of-00001.parquet": parquet(train.shuffle(seed=0)),
            "cifar100/test-00000-of-00001.parquet": parquet(test),
            "README.md": card(train.features, train=50_000, test=10_000),
        },
        "dataset",
    )


def imagenet(hub):
    """Tiny images of the paper's cats and two other classes, as if they were ImageNet-1k; its test is secret."""
    names = ["crane2" if place == 517 else name for place, name in enumerate(ImageNetInfo().label_descriptions())]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    random = np.random.default_rng(0)

    def rows(labels):
        images = [Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in labels]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    shards = [rows([*CATS, 134, 517] * 2) for _ in range(2)]
    return hub.put(
        "ILSVRC/imagenet-1k",
        {
            **{f"data/train-0000{index}-of-00002.parquet": parquet(shard) for index, shard in enumerate(shards)},
            "data/validation-00000-of-00001.parquet": parquet(rows([*CATS, 134])),
            "data/test-00000-of-00001.parquet": parquet(rows([-1] * 5)),
            "README.md": card(features, train=1_281_167, validation=50_000, test=100_000),
        },
        "dataset",
    )


def run(hub, *loads, **environment):
    return hub.answer(LOAD, json.dumps(loads), **environment)


def test_cifars_superclasses_and_imagenets_subtasks_are_loaded_and_streamed(hub):
    first, imagenet_commit = cifar(hub), imagenet(hub).at("main").oid
    commit = first.at("main").oid
    hub.put("uoft-cs/cifar100", {"README.md": b"nothing"}, "dataset")
    superclass = {"name": "uoft-cs/cifar100", "classes": ["superclass:chess_pieces"], "dataset_revision": commit}
    cats = {"name": "ILSVRC/imagenet-1k", "classes": ["subtask:domestic-cat", "crane"]}
    few = cats | {"classes": ["tabby", "n02123394", "crane2"]}
    streaming = {"streaming": True}
    *streamed, chess, few_cats, others = run(hub, superclass | streaming, cats | streaming, superclass, cats, few)
    assert streamed == [chess, few_cats]
    assert (chess["hub_id"], chess["revision"], chess["test_split"]) == ("uoft-cs/cifar100", commit, "test")
    assert chess["ids"] == list(CLASS_IDS)
    assert {part: len(images) for part, images in chess["images"].items()} == {"train": 15, "validation": 3, "test": 6}
    assert (few_cats["ids"], few_cats["revision"]) == ([*CATS, 134], imagenet_commit)
    assert few_cats["names"][:2] == ["tabby, tabby cat", "tiger cat"]
    assert few_cats["test_split"] == "validation"
    assert others["ids"] == [281, 283, 517]
    assert others["images"]["test"][0] == few_cats["images"]["test"][0]
    offline = run(hub, few, cats, few | {"classes": ["tabby", "crane"]}, HF_HUB_OFFLINE="1")
    assert offline[:2] == [others, few_cats]
    assert "'ILSVRC/imagenet-1k' cannot be loaded: the Hub cannot be reached" in offline[2]
    tabbies = [[image for label, image in data["images"]["train"] if label == 0] for data in (few_cats, others)]
    assert tabbies[0] == tabbies[1]
    assert len(tabbies[0]) == 3


def test_configurations_and_splits_of_a_hub_dataset_can_be_chosen(hub):
    rows = glyph_rows(CLASS_IDS, 4)
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.parquet"}]}
        for name in ("large", "small")
    ]
    files = {"README.md": f"---\n{yaml.dump({'configs': configs})}---\n".encode()}
    files |= {"large/0.parquet": parquet(rows), "small/0.parquet": parquet(rows.select(range(0, 12, 2)))}
    hub.put("user/two", files, "dataset")
    wanted = {"name": "user/two", "classes": [str(class_id) for class_id in CLASS_IDS], "test_fraction": 0.25}
    large, unnamed, unknown = run(
        hub, wanted | {"dataset_config": "large"}, wanted, wanted | {"dataset_revision": "nowhere"}
    )
    assert {part: len(images) for part, images in large["images"].items()} == {"train": 6, "validation": 3, "test": 3}
    assert "dataset 'user/two' cannot be loaded" in unnamed
    assert "large" in unnamed
    assert "small" in unnamed
    assert "'user/two' cannot be loaded at revision 'nowhere': it has no such branch, tag or commit" in unknown


def test_a_revision_that_is_not_there_is_no_other_one_of_the_cache(hub):
    hub.put("user/one", {"train.parquet": parquet(glyph_rows(CLASS_IDS, 4))}, "dataset")
    wanted = {"name": "user/one", "classes": [str(class_id) for class_id in CLASS_IDS], "test_fraction": 0.25}
    loaded, unknown = run(hub, wanted, wanted | {"dataset_revision": "nowhere"})
    assert len(loaded["images"]["train"]) == 6
    assert "'user/one' cannot be loaded at revision 'nowhere': it has no such branch, tag or commit" in unknown


def test_what_keeps_a_dataset_from_being_loaded_is_said_with_what_to_do(hub):
    rows = glyph_rows(CLASS_IDS, 4)
    for name in ("user/gated", "user/limited", "user/broken", "user/large", "user/cut"):
        hub.put(name, {"train.parquet": parquet(rows)}, "dataset")
    for name, size in (("user/large", 10**15), ("user/cut", 10**6)):
        hub.put(name, {"README.md": card(rows.features, size, train=12)}, "dataset")
    hub.fail("user/gated", 403, times=ALWAYS)
    hub.fail("user/broken/resolve", 500, times=ALWAYS)
    hub.fail("user/limited", 401, times=ALWAYS)
    hub.cut("GET /storage", times=ALWAYS)
    classes = {"classes": ["10", "11"], "test_fraction": 0.25}
    gated, limited, missing, broken, nameless, large, cut = run(
        hub,
        *(
            {"name": name} | classes
            for name in (
                "user/gated",
                "user/limited",
                "user/missing",
                "user/broken",
                "no such name!",
                "user/large",
                "user/cut",
            )
        ),
    )
    assert gated == (
        f"dataset 'user/gated' is gated: accept its terms at {hub.url}/datasets/user/gated, log in with "
        "`hf auth login` and try again, or choose another --dataset"
    )
    refused = "dataset 'user/limited' cannot be loaded: the Hub refuses your token. Log in with `hf auth login`"
    assert limited == refused
    absent = "dataset 'user/missing' cannot be loaded: it is not on the Hub, or is private. Check its name"
    assert missing.startswith(absent)
    assert missing.endswith("or the id of an image dataset on the Hub")
    assert "dataset 'user/broken' cannot be loaded: " in broken
    assert "dataset 'no such name!' cannot be loaded: " in nameless
    assert "--streaming reads it without" in large
    assert "dataset 'user/cut' cannot be loaded: " in cut

    hub.faults.clear()  # what was left behind does not stand in the way
    (data,) = run(hub, {"name": "user/cut"} | classes)
    assert len(data["images"]["train"]) == 4


def test_no_network_is_said(hub, monkeypatch):
    (offline,) = run(hub, {"name": "user/some", "classes": ["10", "11"]}, HF_HUB_OFFLINE="1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError) as unreachable, explained("user/some"):
        raise ConnectionError("no answer")
    for message in (offline, str(unreachable.value)):
        assert message.startswith("dataset 'user/some' cannot be loaded: the Hub cannot be reached (")
        assert "Check the network and HF_HUB_OFFLINE, or choose a dataset of this machine" in message
