"""The configuration of a model, and what transformers says while it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

GIVEN_BY_TRANSFORMERS = ("num_classes",)
"""Arguments of timm's `create_model` that transformers gives itself, by the names of the classes."""


def read_configuration(source: str | Path, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """The configuration of a folder, or of a model of the Hub.

    timm writes the arguments that a model was made with. Those that transformers gives too would be there twice, and
    the model could not be made.

    Args:
        source: the folder, or the id.
        trust_remote_code: run model code from the repository.
        revision: the commit, if it is not the newest.
    """
    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    if arguments := getattr(config, "model_args", None):
        config.model_args = {name: value for name, value in arguments.items() if name not in GIVEN_BY_TRANSFORMERS}
    return config


@contextmanager
def without_loading_reports() -> Iterator[None]:
    """No tables of transformers about weights that are missing: what matters of them is said by who loads."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
