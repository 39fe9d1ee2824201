"""What is raised of models and adapters, and what the libraries raise that read them."""

from __future__ import annotations

from typing import Final

from safetensors import SafetensorError

from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.errors import HTTPError

LOADING_ERRORS: Final = (
    HTTPError,
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    ImportError,
    SafetensorError,
)
"""What reading a model, a tokenizer or an image processor may raise."""


class ModelError(SubDistillError):
    """A teacher or a student that cannot be loaded or built."""


class AdapterError(SubDistillError):
    """An adapter that cannot be put on a model, read or merged."""
