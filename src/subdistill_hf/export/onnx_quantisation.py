"""Weights and activations of a network in 8 bits for ONNX: the ways that are tried."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from subdistill_hf.export.graph import without_notes
from subdistill_hf.export.network_program import PIXELS

Array = npt.NDArray[np.float32]

CALIBRATION_BATCH: Final = 16


def quantised(network: onnx.ModelProto, scheme: str, pixels: Sequence[Array]) -> onnx.ModelProto:
    """A network in 8 bits.

    Args:
        network: see `graph.network_graph`.
        scheme: a key of `SCHEMES`.
        pixels: of calibration images, `(1, 3, H, W)` each.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "network.onnx"), Path(folder, "quantised.onnx")
        onnx.save(network, source)
        SCHEMES[scheme](source, target, pixels)
        return without_notes(onnx.load(target))


def _static(source: Path, target: Path, pixels: Sequence[Array]) -> None:
    """Weights and activations in fixed ranges.

    Weights have 7 bits of 8 (`reduce_range`): on CPUs without VNNI sums of two products of 8 bits each overflow.
    """
    quantize_static(
        source,
        target,
        _Images(pixels),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _dynamic(source: Path, target: Path, pixels: Sequence[Array]) -> None:
    """Weights of matrix products in fixed ranges, their activations in the range of each image.

    Convolutions stay as they are: in this way they would take many times longer than in float32.
    """
    products = ["MatMul", "Gemm"]
    quantize_dynamic(source, target, products, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


SCHEMES: Final[dict[str, Callable[[Path, Path, Sequence[Array]], None]]] = {
    "static": _static,
    "dynamic": _dynamic,
}
"""Name to a function of the network's file, the file to write, and the pixels of calibration images."""


class _Images(CalibrationDataReader):
    """Calibration images, in batches."""

    def __init__(self, pixels: Sequence[Array]) -> None:
        self._batches = self._in_batches(pixels)

    def get_next(self) -> dict[str, Any] | None:
        """The inputs of the next run; `None` at the end."""
        return next(self._batches, None)

    @staticmethod
    def _in_batches(pixels: Sequence[Array]) -> Iterator[dict[str, Array]]:
        for first in range(0, len(pixels), CALIBRATION_BATCH):
            yield {PIXELS: np.concatenate(pixels[first : first + CALIBRATION_BATCH])}


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser logs advice to the root logger, which it follows here already."""
    logger = logging.getLogger()
    disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled
