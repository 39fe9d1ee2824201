"""glyphs-100: the embedded image dataset, 100 classes of symbols in 20 superclasses of five.

Each image depends on `(seed, split, class, index)` alone, so a subtask that is generated alone holds
exactly the rows it has in the whole dataset. The schema is CIFAR-100's: `img`, `fine_label`,
`coarse_label`. The glyphs come from the DejaVu fonts that matplotlib ships.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = [
    "CLASS_NAMES",
    "FONT_FACES",
    "GENERATOR_VERSION",
    "GLYPHS",
    "IMAGE_SIZE",
    "SUPERCLASSES",
    "SUPERCLASS_NAMES",
    "Split",
    "faces_of",
    "load_glyphs",
    "render",
]

Split = Literal["train", "test"]

GENERATOR_VERSION: Final = 2
"""Part of the cache key; raise it with every change that alters a pixel."""

IMAGE_SIZE: Final = 32

_GLYPHS_BY_SUPERCLASS: Final[dict[str, dict[str, str]]] = {
    "arrows": {
        "arrow_left": "\u2190",
        "arrow_up": "\u2191",
        "arrow_right": "\u2192",
        "arrow_down": "\u2193",
        "arrow_left_right": "\u2194",
    },
    "double_arrows": {
        "double_arrow_left": "\u21d0",
        "double_arrow_up": "\u21d1",
        "double_arrow_right": "\u21d2",
        "double_arrow_down": "\u21d3",
        "double_arrow_left_right": "\u21d4",
    },
    "chess_pieces": {
        "white_chess_king": "\u2654",
        "white_chess_queen": "\u2655",
        "white_chess_rook": "\u2656",
        "white_chess_bishop": "\u2657",
        "white_chess_knight": "\u2658",
    },
    "card_suits": {
        "spade_suit": "\u2660",
        "heart_suit": "\u2665",
        "diamond_suit": "\u2666",
        "club_suit": "\u2663",
        "joker_star": "\u2605",
    },
    "dice": {
        "die_one": "\u2680",
        "die_two": "\u2681",
        "die_three": "\u2682",
        "die_four": "\u2683",
        "die_five": "\u2684",
    },
    "currency_signs": {
        "dollar_sign": "$",
        "euro_sign": "\u20ac",
        "pound_sign": "\u00a3",
        "yen_sign": "\u00a5",
        "won_sign": "\u20a9",
    },
    "operators": {
        "plus_sign": "+",
        "minus_sign": "\u2212",
        "times_sign": "\u00d7",
        "division_sign": "\u00f7",
        "plus_minus_sign": "\u00b1",
    },
    "relations": {
        "equal_sign": "=",
        "not_equal_sign": "\u2260",
        "almost_equal_sign": "\u2248",
        "less_or_equal_sign": "\u2264",
        "greater_or_equal_sign": "\u2265",
    },
    "greek_letters": {
        "greek_alpha": "\u03b1",
        "greek_beta": "\u03b2",
        "greek_gamma": "\u03b3",
        "greek_delta": "\u03b4",
        "greek_omega": "\u03c9",
    },
    "cyrillic_letters": {
        "cyrillic_zhe": "\u0416",
        "cyrillic_ef": "\u0424",
        "cyrillic_sha": "\u0428",
        "cyrillic_shcha": "\u0429",
        "cyrillic_tse": "\u0426",
    },
    "round_letters": {
        "letter_c": "C",
        "letter_d": "D",
        "letter_g": "G",
        "letter_o": "O",
        "letter_q": "Q",
    },
    "round_digits": {
        "digit_three": "3",
        "digit_five": "5",
        "digit_six": "6",
        "digit_eight": "8",
        "digit_nine": "9",
    },
    "accented_letters": {
        "e_acute": "\u00e9",
        "e_grave": "\u00e8",
        "e_circumflex": "\u00ea",
        "e_diaeresis": "\u00eb",
        "e_caron": "\u011b",
    },
    "set_signs": {
        "element_of": "\u2208",
        "not_element_of": "\u2209",
        "subset_of": "\u2282",
        "superset_of": "\u2283",
        "set_union": "\u222a",
    },
    "logic_signs": {
        "for_all": "\u2200",
        "there_exists": "\u2203",
        "logical_and": "\u2227",
        "logical_or": "\u2228",
        "logical_not": "\u00ac",
    },
    "filled_shapes": {
        "filled_square": "\u25a0",
        "filled_circle": "\u25cf",
        "filled_triangle": "\u25b2",
        "filled_diamond": "\u25c6",
        "filled_pentagon": "\u2b1f",
    },
    "zodiac_signs": {
        "zodiac_aries": "\u2648",
        "zodiac_taurus": "\u2649",
        "zodiac_gemini": "\u264a",
        "zodiac_cancer": "\u264b",
        "zodiac_leo": "\u264c",
    },
    "music_signs": {
        "quarter_note": "\u2669",
        "eighth_note": "\u266a",
        "beamed_eighth_notes": "\u266b",
        "beamed_sixteenth_notes": "\u266c",
        "music_flat": "\u266d",
    },
    "planet_signs": {
        "planet_mercury": "\u263f",
        "planet_venus": "\u2640",
        "planet_mars": "\u2642",
        "planet_jupiter": "\u2643",
        "planet_saturn": "\u2644",
    },
    "weather_signs": {
        "weather_sun": "\u2600",
        "weather_cloud": "\u2601",
        "weather_umbrella": "\u2602",
        "weather_snowman": "\u2603",
        "weather_comet": "\u2604",
    },
}

SUPERCLASSES: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(glyphs) for name, glyphs in _GLYPHS_BY_SUPERCLASS.items()
}
"""The five class names of each superclass, in the order of the class ids."""

SUPERCLASS_NAMES: Final[tuple[str, ...]] = tuple(SUPERCLASSES)

CLASS_NAMES: Final[tuple[str, ...]] = tuple(name for names in SUPERCLASSES.values() for name in names)
"""The 100 class names; a class's id is its place here and its superclass's id is `class_id // 5`."""

GLYPHS: Final[tuple[str, ...]] = tuple(glyph for glyphs in _GLYPHS_BY_SUPERCLASS.values() for glyph in glyphs.values())
"""The character of each class."""

FONT_FACES: Final[tuple[str, ...]] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
)

_FOLDER: Final = "subdistill_hf"
_MARKER: Final = "complete.json"
_CANVAS: Final = 2 * IMAGE_SIZE  # glyphs and lines are drawn at twice the size, then halved
_INK: Final = 42.0  # longer side of an unscaled glyph on that canvas
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Pixel centres in [-1, 1], for the background's gradient.
_ROWS, _COLUMNS = (
    ((np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5) / IMAGE_SIZE * 2 - 1).astype(np.float32)[axis] for axis in (0, 1)
)


@lru_cache(maxsize=1)
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=len(FONT_FACES))
def _code_points(face: str) -> frozenset[int]:
    """Read the code points that a face has a glyph for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_folder() / f"{face}.ttf")).get_charmap())


@lru_cache(maxsize=len(GLYPHS))
def faces_of(class_id: int) -> tuple[str, ...]:
    """Name the faces of `FONT_FACES` that have the glyph of a class: the others are never used for it."""
    faces = tuple(face for face in FONT_FACES if ord(GLYPHS[class_id]) in _code_points(face))
    if not faces:
        raise RuntimeError(
            f"expected a DejaVu face with {CLASS_NAMES[class_id]!r} (U+{ord(GLYPHS[class_id]):04X}) "
            f"in {_font_folder()}, found none: is matplotlib installed whole?"
        )
    return faces


@lru_cache(maxsize=len(GLYPHS) * len(FONT_FACES))
def _glyph_mask(class_id: int, face: str) -> Image.Image:
    """Draw a class's glyph upright and centred by its ink, its longer side `_INK` pixels long."""
    path = str(_font_folder() / f"{face}.ttf")
    glyph = GLYPHS[class_id]
    probe = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = probe.getbbox(glyph)
    size = 100 * _INK / max(right - left, bottom - top)
    font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(glyph)
    mask = Image.new("L", (_CANVAS, _CANVAS))
    place = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    ImageDraw.Draw(mask).text(place, glyph, fill=255, font=font)
    return mask


def _between(uniform: float, low: float, high: float) -> float:
    return low + (high - low) * float(uniform)


def _affine(draws: NDArray[np.float64]) -> tuple[float, float, float, float, float, float]:
    """Turn five uniform draws into Pillow's six numbers, which map an output pixel to its source."""
    scale = _between(draws[0], 0.55, 1.15)
    angle = math.radians(_between(draws[1], -20.0, 20.0))
    slant = _between(draws[2], -0.2, 0.2)
    # The whole glyph's box stays on the canvas, give or take two pixels of the final image.
    room = max(0.0, (_CANVAS - _INK * scale) / 2 - 2)
    shift_x, shift_y = (_between(draw, -room, room) for draw in draws[3:5])
    matrix = (
        scale
        * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        @ np.array([[1.0, slant], [0.0, 1.0]])
    )
    (a, b), (d, e) = np.linalg.inv(matrix).tolist()
    centre = _CANVAS / 2
    target_x, target_y = centre + shift_x, centre + shift_y
    return a, b, centre - a * target_x - b * target_y, d, e, centre - d * target_x - e * target_y


def _colour(draws: NDArray[np.float64], brightness: float) -> NDArray[np.float32]:
    """Turn three uniform draws into a random hue of the brightness asked for (0 to 255)."""
    tint = (draws * 150 - 75).astype(np.float32)
    return np.clip(tint - tint @ _LUMA + np.float32(brightness), 0, 255).astype(np.float32, copy=False)


def _lines(draws: NDArray[np.float64], most: int) -> NDArray[np.float32]:
    """Turn `2 + 4 * most` uniform draws into the coverage (0 to 1) of up to `most` random lines."""
    mask = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(mask)
    for ends in draws[2:].reshape(most, 4)[: int(draws[0] * (most + 1))]:
        pen.line([float(end) * _CANVAS for end in ends], fill=255, width=1 + int(draws[1] * 3))
    return np.asarray(mask.reduce(2), dtype=np.float32) / np.float32(255)


def _mix(canvas: NDArray[np.float32], coverage: NDArray[np.float32], colour: NDArray[np.float32]) -> None:
    """Paint a colour over the canvas in place, where `coverage` is 1."""
    canvas += coverage[:, :, None] * (colour - canvas)


def _check_ids(seed: int, split: str, class_id: int, index: int) -> None:
    if split not in get_args(Split):
        raise ValueError(f"expected split to be one of {get_args(Split)}, found {split!r}")
    if not 0 <= class_id < len(CLASS_NAMES):
        raise ValueError(f"expected a class id from 0 to {len(CLASS_NAMES) - 1}, found {class_id}")
    if seed < 0 or index < 0:
        raise ValueError(f"expected seed and index to be 0 or more, found seed={seed} and index={index}")


def render(seed: int, split: Split, class_id: int, index: int) -> Image.Image:
    """Draw one image, a pure function of its four arguments.

    Args:
        seed: The dataset's seed, 0 or more.
        split: `"train"` or `"test"`.
        class_id: The class, 0 to 99, see `CLASS_NAMES`.
        index: The image's number inside its class and split.

    Returns:
        A 32x32 RGB image.
    """
    _check_ids(seed, split, class_id, index)
    entropy = [seed, get_args(Split).index(split), class_id, index]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    draws = generator.random(64)

    faces = faces_of(class_id)
    mask = _glyph_mask(class_id, faces[int(draws[0] * len(faces))])
    mask = mask.transform(mask.size, Image.Transform.AFFINE, _affine(draws[1:6]), Image.Resampling.BILINEAR)
    coverage = np.asarray(mask.reduce(2), dtype=np.float32) / np.float32(255)

    # The background's brightness leaves room for the glyph's on at least one side.
    contrast = _between(draws[6], 36, 130)
    backdrop = _between(draws[7], 35, 220)
    darker = backdrop - contrast >= 5 and (draws[8] < 0.5 or backdrop + contrast > 250)
    brightness = backdrop - contrast if darker else min(backdrop + contrast, 250)
    start, end = _colour(draws[9:12], backdrop - 14), _colour(draws[12:15], backdrop + 14)
    direction = 2 * math.pi * float(draws[15])
    slope = (math.cos(direction) * _COLUMNS + math.sin(direction) * _ROWS) * np.float32(0.35)
    share = np.clip(slope + np.float32(0.5), 0, 1)
    canvas = (start + share[:, :, None] * (end - start)).astype(np.float32, copy=False)

    spread = 70 * (2 * draws[16:18] - 1)
    _mix(canvas, _lines(draws[18:36], 4) * np.float32(0.8), _colour(draws[36:39], backdrop + spread[0]))
    _mix(canvas, coverage, _colour(draws[39:42], brightness))
    _mix(canvas, _lines(draws[42:56], 3) * np.float32(0.8), _colour(draws[56:59], backdrop + spread[1]))

    noise = _between(draws[63] ** 1.15, 4, 39)
    blur = _between(draws[62], -0.6, 0.9)
    if blur > 0.1:
        blurred = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        canvas = np.asarray(blurred, dtype=np.float32)
    canvas = canvas + np.float32(noise) * generator.standard_normal(canvas.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))


def _encode_class(seed: int, split: Split, class_id: int, count: int) -> list[bytes]:
    """Render a class's images of one split as PNG files."""
    files = []
    for index in range(count):
        buffer = io.BytesIO()
        render(seed, split, class_id, index).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    return files


def _encode_all(jobs: Sequence[tuple[int, Split, int, int]], num_proc: int | None) -> list[list[bytes]]:
    """Run `_encode_class` on every job, in the jobs' order."""
    if num_proc is None or num_proc <= 1 or len(jobs) == 1:
        return [_encode_class(*job) for job in jobs]
    # Forked workers run numpy and Pillow only; the caller's script needs no `__name__ == "__main__"` guard.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(min(num_proc, len(jobs)), multiprocessing.get_context(method)) as pool:
        return list(pool.map(_encode_class, *zip(*jobs, strict=True)))


def _build(classes: Sequence[int], counts: dict[Split, int], seed: int, num_proc: int | None) -> Any:
    """Generate the `DatasetDict` in memory."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    features = Features(
        {
            "img": ImageFeature(),
            "fine_label": ClassLabel(names=list(CLASS_NAMES)),
            "coarse_label": ClassLabel(names=list(SUPERCLASS_NAMES)),
        }
    )
    jobs = [(seed, split, class_id, count) for split, count in counts.items() for class_id in classes]
    encoded = _encode_all(jobs, num_proc)
    splits = {}
    for split in counts:
        rows: dict[str, list[Any]] = {name: [] for name in features}
        for (_, job_split, class_id, count), files in zip(jobs, encoded, strict=True):
            if job_split == split:
                rows["img"] += [{"bytes": file, "path": None} for file in files]
                rows["fine_label"] += [class_id] * count
                rows["coarse_label"] += [class_id // 5] * count
        splits[split] = Dataset.from_dict(rows, features=features)
    return DatasetDict(splits)


def _check_arguments(classes: Sequence[int] | None, counts: dict[Split, int], seed: int) -> list[int]:
    """Validate the arguments of `load_glyphs` and return the class ids in rising order."""
    chosen = list(range(len(CLASS_NAMES))) if classes is None else [int(class_id) for class_id in classes]
    if not chosen:
        raise ValueError("expected at least one class id, found an empty sequence; None takes all 100 classes")
    wrong = [class_id for class_id in chosen if not 0 <= class_id < len(CLASS_NAMES)]
    if wrong:
        raise ValueError(f"expected class ids from 0 to {len(CLASS_NAMES) - 1}, found {wrong}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"expected each class id once, found {chosen}")
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {split}_images_per_class to be 1 or more, found {count}")
    if seed < 0:
        raise ValueError(f"expected seed to be 0 or more, found {seed}")
    return sorted(chosen)


def load_glyphs(
    classes: Sequence[int] | None = None,
    train_images_per_class: int = 500,
    test_images_per_class: int = 100,
    seed: int = 0,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Load glyphs-100, or some of its classes, generating them where the cache does not hold them yet.

    Args:
        classes: Class ids to load; `None` loads all 100. The labels stay the ids among the 100.
        train_images_per_class: Number of training images of each class.
        test_images_per_class: Number of test images of each class.
        seed: Seed of the images. The embedded teachers were trained with seed 0.
        num_proc: Number of processes that generate; `None` generates in this one.
        cache_dir: Folder of the cache; `None` takes `subdistill_hf` in the `datasets` cache.

    Returns:
        A `datasets.DatasetDict` with the splits `train` and `test`, rows ordered by class id, then index,
        and the features `img`, `fine_label` (100 names) and `coarse_label` (20 names).
    """
    import datasets

    counts: dict[Split, int] = {"train": train_images_per_class, "test": test_images_per_class}
    chosen = _check_arguments(classes, counts, seed)
    arguments: dict[str, Any] = {"version": GENERATOR_VERSION, "seed": seed, "classes": chosen}
    arguments |= {str(split): count for split, count in counts.items()}
    root = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / _FOLDER
    folder = root / f"glyphs-{datasets.fingerprint.Hasher.hash(json.dumps(arguments))}"
    if not (folder / _MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        _write(_build(chosen, counts, seed, num_proc), folder, arguments)
    return datasets.load_from_disk(str(folder))


def _write(dataset: Any, folder: Path, arguments: dict[str, Any]) -> None:
    """Save the dataset next to `folder` and move it there in one step, its marker file last."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        part = Path(name) / "dataset"
        dataset.save_to_disk(str(part))
        (part / _MARKER).write_text(json.dumps(arguments), encoding="utf-8")
        try:
            part.replace(folder)
        except OSError:
            # Another process that generated the same data was faster; its folder serves as well.
            if not (folder / _MARKER).is_file():
                raise
