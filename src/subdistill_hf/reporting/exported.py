"""The part of a report that is about exported files: what they are, and how well they do where they run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds that a forward pass of one image takes.

    Attributes:
        median: of the runs.
        low: their lower quartile.
        high: their upper quartile.
        runs: their number.
    """

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """An exported file, and what was measured of it alone.

    Attributes:
        name: of the file, in the folder of its format.
        precision: `float32` or `int8`.
        scheme: how it was brought to 8 bits, if it was: see `config.export_formats.ExportFormat.int8_ways`.
        size_bytes: of the file.
        accuracy: share of the images that it classifies correctly; unknown without labels.
        agreement: share of the images that it puts in the same class as the student in torch.
        largest_difference: between a logit of the file and the same logit in torch.
        latency_ms: the time of one image on one thread.
        peak_memory_bytes: that a process takes at most which runs one image, where the system tells.
    """

    name: str
    precision: str
    scheme: str | None = None
    size_bytes: int
    accuracy: float | None = None
    agreement: float
    largest_difference: float
    latency_ms: Latency
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TriedScheme:
    """A way to 8 bits that was tried, and its answers on the validation images.

    Attributes:
        name: see `config.export_formats.ExportFormat.int8_ways`.
        accuracy: on these images; unknown without labels.
        agreement: share of them that it puts in the same class as the student in torch; unknown if it failed.
        size_bytes: of the file; unknown if it failed.
        failed: why there is no file that runs.
    """

    name: str
    accuracy: float | None = None
    agreement: float | None = None
    size_bytes: int | None = None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedExport:
    """A student in a format for devices, and how well it does there.

    Attributes:
        format: a key of `config.export_formats.EXPORT_FORMATS`.
        runtime: what ran the files, with its version.
        machine: the processor of the machine.
        preprocessing: `inside` or `outside` of the files.
        pixel_difference: between a pixel of the files' preprocessing and the same pixel of the student's image
            processor, the largest, in levels of 255; unknown where the preprocessing is outside.
        network_difference: the largest between a logit of the exported network and the same one in torch, of the
            same pixels.
        images: what was measured with, in words.
        image_count: their number.
        torch_accuracy: of the student in torch on them; unknown without labels.
        calibration_images: images that gave int8 its ranges.
        tried: the ways to 8 bits that were tried.
        chosen_on: the images by which one of them was chosen, in words.
        left_out: why there is no int8 file, though it was asked for.
        left_to_device: what is to be done with an image before, in words; empty where the files do it, or where the
            student's image processor cannot be told in steps.
        weights: digest of the student's weights, by which files of other weights are known; unknown of older exports.
        files: what was written.
    """

    format: str
    runtime: str
    machine: str
    preprocessing: str
    pixel_difference: float | None = None
    network_difference: float
    images: str
    image_count: int
    torch_accuracy: float | None = None
    calibration_images: int | None = None
    tried: tuple[TriedScheme, ...] = ()
    chosen_on: str = "validation images"
    left_out: str | None = None
    left_to_device: tuple[str, ...] = ()
    weights: str | None = None
    files: tuple[ExportedFile, ...]
