"""What a device has to do with images whose preprocessing is outside of the exported files."""

from __future__ import annotations

from collections.abc import Sequence

from subdistill_hf.export.device_folder import processing_runner
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.images import Bytes
from subdistill_hf.export.parity import check_preprocessing
from subdistill_hf.export.preprocessing import Step, steps_of
from subdistill_hf.export.student import TorchStudent


def steps_for_device(student: TorchStudent, images: Sequence[Bytes]) -> tuple[Step, ...]:
    """The steps with which a device makes the pixels of a student's image processor.

    The program beside the files takes them here, and its pixels are compared with the processor's.

    Args:
        student: with the processor.
        images: see `parity.check_preprocessing`.

    Returns:
        No steps for a processor that cannot be told in steps, or that does more than they say: `summary` says so.
    """
    try:
        steps = steps_of(student.loaded.processor)
        check_preprocessing(student, steps, processing_runner(steps), images)
    except ExportError:
        return ()
    return steps
