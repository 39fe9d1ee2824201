"""The configuration of a model, as it is loaded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

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
