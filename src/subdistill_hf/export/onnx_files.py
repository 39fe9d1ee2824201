"""The ONNX files of a student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.export.device_files import Array, Runner
from subdistill_hf.export.device_folder import write_browser_folder, write_script
from subdistill_hf.export.graph import (
    as_bytes,
    network_graph,
    preprocessing_graph,
    with_metadata,
    with_pixels_of_bytes,
    with_preprocessing,
    with_probabilities,
)
from subdistill_hf.export.onnx_quantisation import quantised
from subdistill_hf.export.onnx_runtime import onnx_runner
from subdistill_hf.export.preprocessing import Step, described
from subdistill_hf.export.student import TorchStudent


@dataclass(frozen=True)
class OnnxFiles:
    """The files of one student, whose networks are `onnx.ModelProto`: see `device_files.DeviceFiles`.

    Attributes:
        student: the student.
        steps: of its preprocessing, which the files do; `None` where they take processed pixels.
        outside: the steps that are left to the device, see `outside.steps_for_device`.
    """

    student: TorchStudent
    steps: tuple[Step, ...] | None
    outside: tuple[Step, ...] = ()

    @property
    def runtime(self) -> str:
        """onnxruntime, with its version."""
        return f"onnxruntime {onnxruntime.__version__}"

    def float_network(self) -> onnx.ModelProto:
        """The student's network in float32."""
        return network_graph(self.student.loaded.model, self.student.size)

    def quantised(self, network: onnx.ModelProto, scheme: str, pixels: Sequence[Array]) -> onnx.ModelProto:
        """The network in 8 bits, see `onnx_quantisation.quantised`."""
        return quantised(network, scheme, pixels)

    def runner(self, network: onnx.ModelProto) -> Runner:
        """Runs a network, from pixels to logits."""
        return onnx_runner(as_bytes(network))

    def preprocessing_runner(self) -> Runner:
        """Runs the steps alone."""
        return onnx_runner(as_bytes(preprocessing_graph(self.steps or ())))

    def content(self, network: onnx.ModelProto) -> bytes:
        """The file of a network: images or pixels to logits and probabilities."""
        return as_bytes(self._whole(network))

    def browser_content(self, network: onnx.ModelProto) -> bytes:
        """The file of a network for transformers.js, which hands over `pixel_values` of float32."""
        whole = self._whole(network)
        return as_bytes(whole if self.steps is None else with_pixels_of_bytes(whole))

    def write_beside(self, folder: Path, networks: Mapping[str, onnx.ModelProto]) -> None:
        """Write the program that runs the files, and the folder of transformers.js."""
        write_script(folder, EXPORT_FORMATS["onnx"], self.steps is not None, self.outside)
        files = {name: self.browser_content(network) for name, network in networks.items()}
        write_browser_folder(folder, self.student, self.steps, files)

    def metadata(self) -> Mapping[str, Any]:
        """The facts that travel in each file."""
        facts: dict[str, Any] = {
            "labels": json.dumps(self.student.classes, ensure_ascii=False),
            "preprocessing": "outside" if self.steps is None else described(self.steps),
        }
        return facts | self.student.threshold

    def _whole(self, network: onnx.ModelProto) -> onnx.ModelProto:
        inner = network if self.steps is None else with_preprocessing(network, self.steps)
        return with_metadata(with_probabilities(inner), self.metadata())
