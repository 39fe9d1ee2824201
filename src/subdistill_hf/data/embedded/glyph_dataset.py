"""glyphs-100 as a dataset: generated once for each choice of classes, and kept in the cache of `datasets`.

The schema is CIFAR-100's: `img`, `fine_label`, `coarse_label`.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.data.embedded.glyphs import GENERATOR_VERSION, Split, render

_FOLDER: Final = "subdistill_hf"
_MARKER: Final = "complete.json"


def _encode_class(seed: int, split: Split, class_id: int, count: int) -> list[bytes]:
    """Render a class's images of one split as PNG files."""
    return [_encode(seed, split, class_id, index) for index in range(count)]


def _encode(seed: int, split: Split, class_id: int, index: int) -> bytes:
    """Render an image as a PNG file."""
    buffer = io.BytesIO()
    render(seed, split, class_id, index).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


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
        root.mkdir(parents=True, exist_ok=True)
        _write(_build(chosen, counts, seed, num_proc), folder, arguments)
    return datasets.load_from_disk(str(folder))


def glyphs_at(split: Split, places: Sequence[int], per_class: int) -> Any:
    """Images of all classes without their labels, made at once and not cached.

    Args:
        split: `"train"` or `"test"`.
        places: of images in the split, which is ordered by class, then number.
        per_class: Number of images of each class in the split.
    """
    import datasets

    files = [_encode(0, split, *divmod(place, per_class)) for place in places]
    return datasets.Dataset.from_dict(
        {"img": [{"bytes": file, "path": None} for file in files]},
        features=datasets.Features({"img": datasets.Image()}),
    )


def _write(dataset: Any, folder: Path, arguments: dict[str, Any]) -> None:
    """Save the dataset next to `folder` and move it there in one step, its marker file last."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        part = Path(name) / "dataset"
        dataset.save_to_disk(str(part))
        (part / _MARKER).write_text(json.dumps(arguments), encoding="utf-8")
        try:
            part.replace(folder)
        except OSError:
            if (folder / _MARKER).is_file():  # another process was faster; its folder serves as well
                return
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            part.replace(folder)
