"""The ExecuTorch files of a student, whose network runs on the CPU by XNNPACK."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.export.device_files import Array, Runner
from subdistill_hf.export.device_folder import write_script
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.executorch_quantisation import quantised_program
from subdistill_hf.export.executorch_runtime import executorch_runner
from subdistill_hf.export.network_program import (
    first_line,
    not_exported,
    single_image_program,
    without_counterpart,
)
from subdistill_hf.export.preprocessing import Step, described
from subdistill_hf.export.student import TorchStudent

_OPERATOR: Final = re.compile(
    r"Operator torch\._ops\.([\w.]+) is not in Core ATen|Missing out variants: \{'([\w:.]+)'"
)
"""How ExecuTorch's exporter names the operator that it has no kernel for."""


@dataclass(frozen=True)
class ExecutorchFiles:
    """The files of one student, whose networks are contents of files: see `device_files.DeviceFiles`.

    A file takes `pixel_values` of float32 `(1, 3, H, W)`, and gives logits and probabilities `(1, C)`. The memory that
    it needs is fixed when it is made, so it takes one image at a time, of the network's size.

    Attributes:
        student: the student.
        outside: the steps of its preprocessing, which is left to the device, see `outside.steps_for_device`.
    """

    student: TorchStudent
    outside: tuple[Step, ...] = ()

    @property
    def runtime(self) -> str:
        """ExecuTorch, with its version."""
        return f"ExecuTorch {version('executorch')} (XNNPACK)"

    def float_network(self) -> bytes:
        """The student's network in float32, as the content of its file."""
        return self._lowered(self._program())

    def quantised(self, network: bytes, scheme: str, pixels: Sequence[Array]) -> bytes:
        """The network in 8 bits, see `executorch_quantisation.quantised_program`; it is made of the student anew."""
        return self._lowered(quantised_program(self._program(), scheme, pixels))

    def runner(self, network: bytes) -> Runner:
        """Runs a network, from pixels to logits."""
        return executorch_runner(network)

    def preprocessing_runner(self) -> Runner:
        """There is none: the preprocessing is outside of the files."""
        raise ExportError("ExecuTorch files leave the preprocessing to the device")

    def content(self, network: bytes) -> bytes:
        """The file of a network, which it is already."""
        return network

    def write_beside(self, folder: Path, networks: Mapping[str, bytes]) -> None:
        """Write the program that runs the files."""
        write_script(folder, EXPORT_FORMATS["executorch"], inside=False, outside=self.outside)

    def metadata(self) -> Mapping[str, str]:
        """The facts that travel in each file, as methods without arguments that give texts."""
        facts = {"labels": json.dumps(self.student.classes, ensure_ascii=False), **self._steps()}
        return facts | {name: str(value) for name, value in self.student.threshold.items()}

    def _program(self) -> torch.export.ExportedProgram:
        return single_image_program(self.student.loaded.model, self.student.size)

    def _lowered(self, program: torch.export.ExportedProgram) -> bytes:
        """The content of the file of a program, whose operators are XNNPACK's where it has them."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of ExecuTorch's exporter about itself
            try:
                lowered = to_edge_transform_and_lower(
                    program, partitioner=[XnnpackPartitioner()], constant_methods=self.metadata()
                )
                return bytes(lowered.to_executorch().buffer)
            except Exception as error:  # ExecuTorch raises those of torch's verifier, and its own
                raise not_exported(self.student.loaded.model, _unsupported(program, error)) from error

    def _steps(self) -> dict[str, str]:
        """What the device has to do with images before, where the steps are known."""
        return {"preprocessing": json.dumps(described(self.outside))} if self.outside else {}


def _unsupported(program: torch.export.ExportedProgram, error: BaseException) -> str:
    """The operator that ExecuTorch does not have, and the layer that uses it."""
    found = _OPERATOR.search(str(error))
    if found is None:
        return first_line(error)
    name: Any = found[1] or found[2].replace("::", ".")
    return without_counterpart(program, name.removesuffix(".default"), "ExecuTorch")
