"""Run ONNX files, with onnxruntime and numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnxruntime

from subdistill_hf.export.device_files import Runner

LOGITS: Final = "logits"


def session(path: Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A file or its content, ready to run on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # no warnings
    source = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def onnx_runner(path: Path | bytes) -> Runner:
    """Runs a file or its content."""
    running = session(path)
    name = running.get_inputs()[0].name

    def run(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        logits: npt.NDArray[Any] = running.run([LOGITS], {name: batch})[0]
        return logits

    return run
