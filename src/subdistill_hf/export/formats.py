"""The code of each format for devices. Its packages are imported when it is used, and only then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.config.extras import require_extra
from subdistill_hf.errors import install_command
from subdistill_hf.export.errors import ExportError

if TYPE_CHECKING:
    from subdistill_hf.export.device_files import DeviceFiles, Runner
    from subdistill_hf.export.preprocessing import Step
    from subdistill_hf.export.student import TorchStudent

    MakeFiles = Callable[[TorchStudent, tuple[Step, ...] | None, tuple[Step, ...]], DeviceFiles]
    """Of a student, of the steps of the preprocessing that is inside of the files, `None` where it is outside, and of
    those that are left to the device, none where they are not known."""


@dataclass(frozen=True)
class FormatCode:
    """What a format does.

    Attributes:
        load: import the code that makes files.
        runner: runs a file, in a process that has not loaded torch unless the runtime does.
    """

    load: Callable[[], MakeFiles]
    runner: Callable[[Path], Runner]


def _load_onnx() -> MakeFiles:
    from subdistill_hf.export.onnx_files import OnnxFiles

    return OnnxFiles


def _onnx_runner(path: Path) -> Runner:
    from subdistill_hf.export.onnx_runtime import onnx_runner

    return onnx_runner(path)


def _load_executorch() -> MakeFiles:
    import executorch.exir
    import executorch.runtime  # noqa: F401 - what does not fit the installed torch is found before any work

    from subdistill_hf.export.executorch_files import ExecutorchFiles

    return lambda student, steps, outside: ExecutorchFiles(student, outside)


def _executorch_runner(path: Path) -> Runner:
    from subdistill_hf.export.executorch_runtime import executorch_runner

    return executorch_runner(path)


FORMATS: Final[Mapping[str, FormatCode]] = {
    "onnx": FormatCode(_load_onnx, _onnx_runner),
    "executorch": FormatCode(_load_executorch, _executorch_runner),
}
"""A key of `config.export_formats.EXPORT_FORMATS` to its code."""


def require_format(name: str) -> None:
    """Refuse a format whose packages are not installed; none is imported.

    Args:
        name: a key of `FORMATS`.

    Raises:
        MissingExtraError: which names the command that installs them.
    """
    known = EXPORT_FORMATS[name]
    require_extra(known.extra, f"the export to {known.title}")


def load_format(name: str) -> MakeFiles:
    """Import what makes the files of a format.

    Args:
        name: a key of `FORMATS`.

    Raises:
        ExportError: for packages that do not fit those beside them, as a wheel that is built for another torch.
    """
    try:
        return FORMATS[name].load()
    except ImportError as error:
        known = EXPORT_FORMATS[name]
        raise ExportError(
            f"the packages of the export to {known.title} do not load here ({error}): {install_command(known.extra)}"
        ) from error
