"""Random datasets: a run ends with every image counted and disjoint splits, or with one message of ours."""

import io
import random
import re
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transformers.image_utils import load_image

from pictures import encoded, picture
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.errors import SubDistillError

pytestmark = pytest.mark.usefixtures("datasets_cache")

FOLDERS = 60
TABLES = 40
PARTS = ("train", "validation", "test")
NAMES = [
    *("train", "test", "valid", "invalid", "eval kit", "test-tube", "Dev", "training 1"),
    *("cat", "Cat", "cat ", " cat", "the_cat", "the cat", "-1", "1", "01", "A", "a", "A-", "all", "superclass:x"),
    *("a\\b", "c|d", "$x$", "{e}", '"f"', "it's", "<g>", "a,b", "n01440764", "%20", "#", "x" * 200, "new\nline"),
    *("caf\u00e9", "cafe\u0301", "\u732b", "\u05db\u05dc\u05d1", "\u202eabc", "\U0001f408"),
]
SPLITS = [
    *(("train", "test"), ("Train", "Test"), ("training", "val"), ("trainset", "testset"), ("my_train", "my_test")),
    *(("data/train", "data/test"), ("train/images", "test/images"), ("", None), ("train", None), ("tr", "te")),
]
FORMATS = [
    *((".png", "PNG", mode) for mode in ("RGB", "L", "P", "1", "LA", "RGBA")),
    *((".jpg", "JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *((".TIF", "TIFF", mode) for mode in ("RGB", "LAB", "YCbCr", "CMYK", "PA")),
    *((".webp", "WEBP", "RGBA"), (".GIF", "GIF", "RGB"), (".bmp", "BMP", "L"), ("", "PNG", "RGB")),
]
COUNTED = re.compile(r"left out: (\d+) |not used: the split .* of (\d+) images")


def written(number, ending, kind, mode):
    image = picture(number, (9, 7))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    elif mode in ("PA", "LAB"):
        lab = Image.frombytes("LAB", image.size, image.tobytes())
        image = image.convert("P").convert("PA") if mode == "PA" else lab
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def random_folder(folder, draw):
    """A folder of images in classes, with a few things that go wrong; each file is an image or said not to be."""
    train, test = draw.choice(SPLITS)
    names = draw.sample(NAMES, draw.randint(2, 4))
    number = draw.randrange(10**6)
    for split in {train, test} - {None}:
        for name in names if draw.random() < 0.9 else names[:-1]:
            for place in range(draw.randint(2, 5)):
                number += 1
                below = draw.choice(["", "", "", "", "session 1/", "test/"])
                ending, kind, mode = draw.choice(FORMATS)
                path = folder / split / name / f"{below}{draw.choice(['', 'test ', 'in training '])}{place}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(written(number, ending, kind, mode))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(draw.choice([0, 0, 1, 2])):
        one, other = draw.sample(paths, 2)
        what = draw.choice(["copy", "loose", "heic", "hidden", "deep", "damaged", "link", "broken", "class"])
        if what == "copy":
            (other.parent / f"copy{one.suffix}").write_bytes(one.read_bytes())
        elif what == "loose":
            (folder / "loose.png").write_bytes(encoded(number + 1))
        elif what == "heic":
            (one.parent / "new.heic").write_bytes(b"no image")
        elif what == "hidden":
            (one.parent / ".hidden.png").write_bytes(encoded(number + 2))
        elif what == "deep":
            (one.parent / "deep.png").write_bytes(written(number + 3, ".png", "PNG", "I;16"))
        elif what == "damaged":
            one.write_bytes(one.read_bytes()[: draw.randrange(60)])
        elif what == "link" and not (other.parent / "linked.png").exists():
            (other.parent / "linked.png").symlink_to(one)
        elif what == "broken":
            (one.parent / "broken.png").unlink(missing_ok=True)
            (one.parent / "broken.png").symlink_to(folder / "nowhere")
        elif what == "class":
            (one.parent.parent / "nothing").mkdir(exist_ok=True)
    return folder


def rows_of(data):
    """Path and class of each image of each part."""
    found = {}
    for part in PARTS:
        rows = getattr(data, part).cast_column(data.columns.image, datasets.Image(decode=False))
        found[part] = [(row[data.columns.image], data.subtask.names[row[data.columns.label]]) for row in rows]
    return found


def counted(data):
    """How many images were used, or were said not to be."""
    numbers = [next(filter(None, found)) for notice in data.notices for found in COUNTED.findall(notice)]
    return sum(len(getattr(data, part)) for part in PARTS) + sum(map(int, numbers))


def check_pixels(data, found):
    """Each image is what transformers reads."""
    for part in PARTS:
        views = data.views(part)
        for place, (image, _) in enumerate(found[part]):
            file = image["path"] if image["bytes"] is None else Image.open(io.BytesIO(image["bytes"]))
            expected = np.asarray(load_image(file))
            assert np.array_equal(views.image(place).permute(1, 2, 0).numpy(), expected)


def loaded_or_refused(options, seed):
    """A subtask and its rows, all of whose images were decoded; or the message of why not."""
    try:
        data = load_subtask(options, seed)
        found = rows_of(data)
        check_pixels(data, found)
    except SubDistillError as error:
        return None, None, str(error)
    return data, found, None


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_every_image_of_a_random_folder_is_counted_or_there_is_one_message(tmp_path, seed):
    draw = random.Random(seed)
    folder = random_folder(tmp_path / "set", draw)
    options = DataOptions(str(folder), ["all"], streaming=draw.random() < 0.2)
    options.test_fraction = draw.choice([None, 0.3])
    data, found, refused = loaded_or_refused(options, seed)
    if data is None:
        assert 20 < len(refused) < 1500
        return
    paths = {part: [Path(image["path"]) for image, _ in found[part]] for part in PARTS}
    every = [path for part in PARTS for path in paths[part]]
    assert len({path.resolve() for path in every}) == len(every)
    contents = [path.read_bytes() for path in every]
    assert len(set(contents)) == len(contents)
    assert counted(data) == sum(path.is_file() or path.is_symlink() for path in folder.rglob("*"))
    if data.official_test:
        splits = [{path.relative_to(folder).parts[:2] for path in paths[part]} for part in PARTS]
        tops = [{parts[1 if parts[0] == "data" else 0] for parts in split} for split in splits]
        assert not (tops[0] | tops[1]) & tops[2]
    for part in PARTS:
        for path, (_, name) in zip(paths[part], found[part], strict=True):
            composed = {unicodedata.normalize("NFC", one) for one in path.relative_to(folder).parts[:-1]}
            assert name in composed


def random_labels(draw, names):
    """Labels of a split, and how many of them name a class."""
    kind = draw.choice(["names", "numbers", "texts"])
    labels = [place % len(names) for place in range(draw.randint(2 * len(names), 12))]
    draw.shuffle(labels)
    holes = {place: draw.choice([None, -1, -100]) for place in range(len(labels)) if draw.random() < 0.08}
    if kind == "texts":
        return kind, [names[label] if place not in holes else None for place, label in enumerate(labels)]
    return kind, [holes.get(place, label) for place, label in enumerate(labels)]


def random_tables(folder, draw):
    """Parquet files, or a dataset that was saved; returns the number of its rows."""
    names = draw.sample(NAMES, draw.randint(2, 4))
    column = draw.choice(["label", "class", "species"])
    style = draw.choice(["Image", "bytes", "struct"])
    numbers = iter(range(draw.randrange(10**6), 10**9))
    kind, _ = random_labels(draw, names)
    splits = {}
    for split in draw.choice([("train", "test"), ("train",), ("test", "train", "validation")]):
        for _ in range(draw.choice([1, 1, 2])):
            own = kind
            while True:
                own, labels = random_labels(draw, names)
                if own == kind or draw.random() < 0.03:
                    break
            drawn = [1 if draw.random() < 0.02 else next(numbers) for _ in labels]
            images = [encoded(number) for number in drawn]
            values = images if style == "bytes" else [{"bytes": image, "path": None} for image in images]
            table = datasets.Dataset.from_dict({"picture": values, column: labels})
            if own == "names":
                order = names if draw.random() < 0.9 else names[::-1]
                table = table.cast_column(column, datasets.Value("int64"))
                table = table.cast_column(column, datasets.ClassLabel(names=order))
            if style == "Image":
                table = table.cast_column("picture", datasets.Image())
            splits.setdefault(split, []).append(table)
    folder.mkdir()
    if draw.random() < 0.3:
        try:
            whole = {split: datasets.concatenate_datasets(tables) for split, tables in splits.items()}
        except (ValueError, TypeError):  # shards of other kinds: these are for files
            whole = {split: tables[0] for split, tables in splits.items()}
        datasets.DatasetDict(whole).save_to_disk(folder)
        return sum(map(len, whole.values()))
    for split, tables in splits.items():
        for place, table in enumerate(tables):
            table.to_parquet(folder / f"{split}-{place:05d}-of-{len(tables):05d}.parquet")
    return sum(len(table) for tables in splits.values() for table in tables)


@pytest.mark.parametrize("seed", range(TABLES))
def test_every_row_of_random_tables_is_counted_or_there_is_one_message(tmp_path, seed):
    draw = random.Random(1000 + seed)
    total = random_tables(tmp_path / "set", draw)
    options = DataOptions(str(tmp_path / "set"), ["all"], streaming=draw.random() < 0.4)
    options.test_fraction = draw.choice([None, 0.3])
    data, found, refused = loaded_or_refused(options, seed)
    if data is None:
        assert 20 < len(refused) < 1500
        return
    contents = [image["bytes"] for part in PARTS for image, _ in found[part]]
    assert len(set(contents)) == len(contents)
    unused = sum(notice.startswith("not used: the split") for notice in data.notices)
    if not unused:  # whose rows nobody counts where they are not read
        assert counted(data) == total
    assert pd.Series([name for part in PARTS for _, name in found[part]]).isin(data.class_names).all()
