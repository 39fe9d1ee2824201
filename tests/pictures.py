"""Small pictures, no two of which are alike, and folders of them."""

import io

import numpy as np
from PIL import Image


def picture(number, size=(8, 8), mode="RGB"):
    pixels = np.random.default_rng([number]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(number, kind="PNG", **options):
    buffer = io.BytesIO()
    picture(number, **options).save(buffer, kind)
    return buffer.getvalue()


def write_pictures(folder, paths, begin=0):
    """Write a picture of its own under each path."""
    for number, path in enumerate(paths):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(begin + number))
    return folder


def class_folders(folder, classes=("cat", "dog"), train=6, test=3, kind="png"):
    """`train/CLASS/NUMBER.png` and `test/CLASS/NUMBER.png`."""
    paths = [
        f"{split}/{name}/{number}.{kind}"
        for split, count in (("train", train), ("test", test))
        for name in classes
        for number in range(count)
    ]
    return write_pictures(folder, paths)
