"""The ONNX files of a student: in float32, and in the best of the ways to 8 bits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx

from subdistill_hf.config.output_folder import disk_fault
from subdistill_hf.export.graph import (
    as_bytes,
    network_graph,
    with_metadata,
    with_pixels_of_bytes,
    with_preprocessing,
    with_probabilities,
)
from subdistill_hf.export.images import ExportImages
from subdistill_hf.export.parity import agreement
from subdistill_hf.export.preprocessing import Step, described
from subdistill_hf.export.quantisation import SCHEMES, quantised
from subdistill_hf.export.runtime import logits_of_images, session
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.reporting.exported import TriedScheme

FLOAT_FILE: Final = "model.onnx"
INT8_FILE: Final = "model_quantized.onnx"
"""The names that the Hub and transformers.js know."""
LONGEST_REASON: Final = 200
MOST_TIMES_LARGER: Final = 1.25
"""How large the file of a way to 8 bits may be, beside the smallest one, to be chosen."""


@dataclass(frozen=True)
class Graphs:
    """Makes files of the networks of one student.

    Attributes:
        student: the student.
        steps: of its preprocessing, which the files do; `None` where they take processed pixels.
    """

    student: TorchStudent
    steps: tuple[Step, ...] | None

    def file(self, network: onnx.ModelProto) -> bytes:
        """The file of a network: images or pixels to logits and probabilities."""
        return as_bytes(self._whole(network))

    def browser_file(self, network: onnx.ModelProto) -> bytes:
        """The file of a network for transformers.js, which hands over `pixel_values` of float32."""
        whole = self._whole(network)
        return as_bytes(whole if self.steps is None else with_pixels_of_bytes(whole))

    def _whole(self, network: onnx.ModelProto) -> onnx.ModelProto:
        inner = network if self.steps is None else with_preprocessing(network, self.steps)
        return with_metadata(with_probabilities(inner), self.metadata())

    def metadata(self) -> Mapping[str, Any]:
        """The facts that travel in each file."""
        facts: dict[str, Any] = {
            "labels": json.dumps(self.student.classes, ensure_ascii=False),
            "preprocessing": "outside" if self.steps is None else described(self.steps),
        }
        return facts | self.student.threshold


def float_network(student: TorchStudent) -> onnx.ModelProto:
    """The student's network as an ONNX graph in float32."""
    return network_graph(student.loaded.model, student.size)


@dataclass(frozen=True)
class Int8:
    """The network in 8 bits, as it was found.

    Attributes:
        network: in the best way; `None` where no way gave a file that runs.
        best: this way.
        tried: all ways.
    """

    network: onnx.ModelProto | None
    best: TriedScheme | None
    tried: tuple[TriedScheme, ...]


def best_int8(student: TorchStudent, network: onnx.ModelProto, images: ExportImages, graphs: Graphs) -> Int8:
    """The network in 8 bits, in the way whose answers to the validation images are the best.

    Ways are compared by accuracy where there are labels, then by agreement with torch, then by size. One whose file is
    much larger than another's has left much of the network in float32, and does not count.

    Args:
        student: the student in torch.
        network: its graph in float32.
        images: for calibration and validation.
        graphs: makes files, whose size is reported.
    """
    calibration = [pixels[None] for pixels in student.pixels(images.calibration.images)]
    pixels = student.pixels(images.validation.images)
    expected = student.logits(pixels)
    networks: dict[str, onnx.ModelProto] = {}
    tried: list[TriedScheme] = []
    for scheme in SCHEMES:
        try:
            small = quantised(network, scheme, calibration)
            answers = logits_of_images(session(as_bytes(small)), pixels)
        except (
            Exception
        ) as error:  # whatever onnxruntime's quantiser and runtime raise of a network: another way may do
            if disk_fault(error) is not None:
                raise
            tried.append(TriedScheme(name=scheme, failed=" ".join(str(error).split())[:LONGEST_REASON]))
            continue
        networks[scheme] = small
        tried.append(
            TriedScheme(
                name=scheme,
                accuracy=images.validation.accuracy(answers),
                agreement=agreement(answers, expected),
                size_bytes=len(graphs.file(small)),
            )
        )
    best = _best(tried)
    return Int8(None if best is None else networks[best.name], best, tuple(tried))


def _best(tried: Sequence[TriedScheme]) -> TriedScheme | None:
    sizes = {one.name: one.size_bytes for one in tried if one.size_bytes is not None}
    if not sizes:
        return None
    allowed = MOST_TIMES_LARGER * min(sizes.values())
    return max((one for one in tried if sizes.get(one.name, math.inf) <= allowed), key=_rank)


def _rank(tried: TriedScheme) -> tuple[float, float, float]:
    return (tried.accuracy or 0.0, tried.agreement or 0.0, -(tried.size_bytes or 0))
