"""The network of a student in the best of a format's ways to 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from subdistill_hf.config.output_folder import disk_fault
from subdistill_hf.export.device_files import DeviceFiles
from subdistill_hf.export.images import ExportImages
from subdistill_hf.export.parity import agreement
from subdistill_hf.export.runtime import logits_of_images
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.reporting.exported import TriedScheme

LONGEST_REASON: Final = 200
MOST_TIMES_LARGER: Final = 1.25
"""How large the file of a way to 8 bits may be, beside the smallest one, to be chosen."""


@dataclass(frozen=True)
class Int8:
    """The network in 8 bits, as it was found.

    Attributes:
        network: in the best way; `None` where no way gave a file that runs.
        best: this way.
        tried: all ways.
    """

    network: Any = None
    best: TriedScheme | None = None
    tried: tuple[TriedScheme, ...] = ()


def best_int8(
    student: TorchStudent, network: Any, images: ExportImages, files: DeviceFiles, ways: Iterable[str]
) -> Int8:
    """The network in 8 bits, in the way whose answers to the validation images are the best.

    Ways are compared by accuracy where there are labels, then by agreement with torch, then by size. One whose file is
    much larger than another's has left much of the network in float32, and does not count.

    Args:
        student: the student in torch.
        network: in float32.
        images: for calibration and validation.
        files: of the format, which makes and runs them.
        ways: that are tried, see `ExportFormat.int8_ways`.
    """
    calibration = [pixels[None] for pixels in student.pixels(images.calibration.images)]
    pixels = student.pixels(images.validation.images)
    expected = student.logits(pixels)
    networks: dict[str, Any] = {}
    tried: list[TriedScheme] = []
    for scheme in ways:
        try:
            small = files.quantised(network, scheme, calibration)
            answers = logits_of_images(files.runner(small), pixels)
        except Exception as error:  # whatever a quantiser and a runtime raise of a network: another way may do
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
                size_bytes=len(files.content(small)),
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
