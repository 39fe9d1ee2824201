"""The formats of files for devices: what is known of each before any of its packages is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Preprocessing = Literal["inside", "outside"]


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A format of files for devices.

    Attributes:
        title: its name in sentences.
        extra: of this package, which installs what the export needs; a key of `extras.EXTRAS`.
        runtime: what runs the files.
        float_file: name of the file in float32.
        int8_file: name of the file in 8 bits.
        int8_ways: the ways to 8 bits that are tried, with what each does in words.
        preprocessing: where scaling, cutting and normalisation can be done, the default first.
        without_inside: why they cannot be inside of the files, for a format where they cannot.
        suffix: how its files end.
        script: the program beside the files that classifies images with them, and with `script_packages` alone.
        script_packages: what `pip install` takes.
        figure: name of the figure of the files, beside the card.
        tells_memory: whether the memory of a process that runs a file in Python is that of the runtime alone.
    """

    title: str
    extra: str
    runtime: str
    float_file: str
    int8_file: str
    int8_ways: Mapping[str, str]
    preprocessing: tuple[Preprocessing, ...]
    without_inside: str = ""
    suffix: str
    script: str
    script_packages: str
    figure: str
    tells_memory: bool


EXPORT_FORMATS: Final[Mapping[str, ExportFormat]] = {
    "onnx": ExportFormat(
        title="ONNX",
        extra="onnx",
        runtime="onnxruntime",
        float_file="model.onnx",  # these two names are those that the Hub and transformers.js know
        int8_file="model_quantized.onnx",
        int8_ways={
            "static": "fixed ranges of weights and activations, weights of 7 bits so that no CPU overflows",
            "dynamic": "fixed ranges of the weights of matrix products, activations in the range of each image",
        },
        preprocessing=("inside", "outside"),
        suffix=".onnx",
        script="run_onnx.py",
        script_packages="onnxruntime numpy pillow",
        figure="on_device.png",
        tells_memory=True,
    ),
    "executorch": ExportFormat(
        title="ExecuTorch",
        extra="executorch",
        runtime="ExecuTorch",
        float_file="model.pte",
        int8_file="model_quantized.pte",
        int8_ways={
            "static": "fixed ranges of weights and activations",
            "dynamic": "fixed ranges of the weights of matrix products, activations in the range of each image",
        },
        preprocessing=("outside",),
        without_inside="its runtime has no bicubic scaling, and reserves memory for the largest image",
        suffix=".pte",
        script="run_executorch.py",
        script_packages="executorch torch numpy pillow",
        figure="on_device_executorch.png",
        tells_memory=False,  # its Python package loads torch
    ),
}
"""Value of `--format`, which is also the name of the folder beside the student, to what is known of it."""
