"""Which commit of the Hub a model is read from."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash


def hub_revision(name: str, revision: str | None = None) -> str | None:
    """The commit of a model's repository, as the cache of the Hub knows it; `None` for a folder.

    Recent transformers no longer write it into a model's configuration.
    """
    if Path(name).is_dir():
        return None
    commit: str | None = extract_commit_hash(cached_file(name, CONFIG_NAME, revision=revision), None)
    return commit
