"""Run ExecuTorch files, with ExecuTorch's package for Python, which takes torch's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from subdistill_hf.export.device_files import Runner


def executorch_runner(source: Path | bytes) -> Runner:
    """Runs a file or its content on one thread, one image after the other: the files take no more at once."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(source).load_method("forward")
    if method is None:
        raise RuntimeError("the file has no method forward")
    held = (method, source)  # ExecuTorch reads a content where it lies, and does not keep it alive

    def run(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        method, _ = held
        images = torch.from_numpy(np.ascontiguousarray(batch))  # ExecuTorch reads memory in its order
        # copied, for the next run writes over what one has given
        answers = [method.execute([images[place : place + 1]])[0].numpy().copy() for place in range(len(images))]
        return np.concatenate(answers)

    return run
