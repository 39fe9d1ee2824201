"""Run exported files as a device does: with their runtime and numpy alone, in a process of their own.

    python -m subdistill_hf.export.runtime FOLDER

reads FOLDER/task.json and FOLDER/images.safetensors, and writes FOLDER/answers.safetensors and FOLDER/measured.json.
`measure` does all of it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.export.device_files import Runner
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.formats import FORMATS

Array = npt.NDArray[Any]

WARM_UP: Final = 3
TASK_FILE: Final = "task.json"
IMAGES_FILE: Final = "images.safetensors"
ANSWERS_FILE: Final = "answers.safetensors"
MEASURED_FILE: Final = "measured.json"
BATCH: Final = 32


@dataclass(frozen=True)
class Measured:
    """What was measured of a file.

    Attributes:
        logits: of the images, `(N, C)`.
        milliseconds: of one image on one thread, of each run.
        peak_memory: bytes that the process took at most while it ran one image; unknown where it holds more than the
            runtime.
    """

    logits: Array
    milliseconds: tuple[float, ...]
    peak_memory: int | None


def logits_of_images(run: Runner, images: Sequence[Array]) -> Array:
    """The logits `(N, C)` of images `(H, W, 3)` or `(3, H, W)`; neighbours of one size go together."""
    answers, first = [], 0
    while first < len(images):
        last = first + 1
        while last < min(len(images), first + BATCH) and images[last].shape == images[first].shape:
            last += 1
        answers.append(run(np.stack(images[first:last])))
        first = last
    return np.concatenate(answers)


def measure(format: str, files: Mapping[str, Path], images: Sequence[Array], runs: int = 30) -> dict[str, Measured]:
    """Answers, speed and memory of files, each in fresh processes that import their runtime alone.

    Args:
        format: a key of `FORMATS`.
        files: name to file; they take turns where the time is measured, so that a busy machine is busy for all alike.
        images: what the files take, without the first axis.
        runs: of the measurement of time; the first image is taken.

    Raises:
        ExportError: for a file that its runtime cannot run, with what it says.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(
            {str(place): np.ascontiguousarray(image) for place, image in enumerate(images)}, folder / IMAGES_FILE
        )
        peaks = {}
        if EXPORT_FORMATS[format].tells_memory:
            peaks = {key: _in_process(folder, format, {key: path}, 0)["peak_memory"] for key, path in files.items()}
        measured = _in_process(folder, format, files, runs)
        answers = load_file(folder / ANSWERS_FILE)
    return {key: Measured(answers[key], tuple(measured["milliseconds"][key]), peaks.get(key)) for key in files}


def _in_process(folder: Path, format: str, files: Mapping[str, Path], runs: int) -> dict[str, Any]:
    """What the process finds; without runs, the memory alone."""
    task = {"format": format, "files": {key: str(path) for key, path in files.items()}, "runs": runs}
    (folder / TASK_FILE).write_text(json.dumps(task), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        runtime = EXPORT_FORMATS[format].runtime
        raise ExportError(f"{runtime} cannot run the exported {' or '.join(files)}: {reason}")
    found: dict[str, Any] = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    return found


def _work(folder: Path) -> None:
    """What the process does."""
    task = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
    stored = load_file(folder / IMAGES_FILE)
    images = [stored[str(place)] for place in range(len(stored))]
    runner = FORMATS[task["format"]].runner
    running = {key: runner(Path(path)) for key, path in task["files"].items()}
    times: dict[str, list[float]] = {key: [] for key in running}
    for run in range(WARM_UP + task["runs"]):
        for key, one in running.items():
            start = time.perf_counter()
            logits_of_images(one, images[:1])
            if run >= WARM_UP:
                times[key].append((time.perf_counter() - start) * 1e3)
    if task["runs"]:
        save_file({key: logits_of_images(one, images) for key, one in running.items()}, folder / ANSWERS_FILE)
    measured = {"milliseconds": times, "peak_memory": _peak_memory()}
    (folder / MEASURED_FILE).write_text(json.dumps(measured), encoding="utf-8")


def _peak_memory() -> int | None:
    """Bytes that this process has taken at most; unknown on Windows.

    Linux counts what the parent took at the fork, too, but in the status of the process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4)
    return low, median, high


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
