"""The packages that only some uses need, by the extra of this package that installs them."""

from __future__ import annotations

import importlib.util
import sys
from typing import Final

from subdistill_hf.errors import MissingExtraError, install_command

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "plots": ("matplotlib", "scipy"),
    "digits": ("sklearn",),
    "tensorboard": ("tensorboard",),
    "energy": ("codecarbon",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "executorch": ("executorch",),
    "explain": ("captum",),
    "ray": ("ray",),
}
"""Extra to the modules that its packages bring; `pyproject.toml` has the packages with their versions."""


def has_extra(extra: str) -> bool:
    """Whether all packages of an extra are installed; none is imported."""
    return all(importlib.util.find_spec(module) is not None for module in EXTRAS[extra])


def has_extra_or_note(extra: str, left_out: str) -> bool:
    """Whether all packages of an extra are installed; where they are not, a note says what is left out without them.

    Args:
        extra: a key of `EXTRAS`.
        left_out: the object of the note.
    """
    found = has_extra(extra)
    if not found:
        print(f"note: without {', '.join(EXTRAS[extra])}, {left_out}: {install_command(extra)}", file=sys.stderr)
    return found


def require_extra(extra: str, use: str) -> None:
    """Refuse a use whose packages are not installed.

    Args:
        extra: a key of `EXTRAS`.
        use: what needs it, the subject of the message.

    Raises:
        MissingExtraError: which names the command that installs them.
    """
    if not has_extra(extra):
        raise MissingExtraError(use, extra)
