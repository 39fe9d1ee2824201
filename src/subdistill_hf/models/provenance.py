"""Where a model comes from: its commit on the Hub, and its license."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

from subdistill_hf.hub.errors import HTTPError
from subdistill_hf.hub.files import CARD_FILE


def hub_revision(name: str, revision: str | None = None) -> str | None:
    """The commit of a model's repository, as the cache of the Hub knows it; `None` for a folder.

    Recent transformers no longer write it into a model's configuration.
    """
    if Path(name).is_dir():
        return None
    commit: str | None = extract_commit_hash(cached_file(name, CONFIG_NAME, revision=revision), None)
    return commit


def license_of(model: str, revision: str | None = None) -> str | None:
    """Read the license from the metadata of a model's card.

    Args:
        model: a folder, or an id of the Hub.
        revision: the commit that the model was read from.

    Returns:
        The license's identifier; `None` when there is no card, or none can be had, or it names no license, or several.
    """
    card = Path(model) / CARD_FILE
    try:
        if not Path(model).is_dir():
            card = Path(hf_hub_download(model, CARD_FILE, revision=revision))
        found = (metadata_load(card) or {}).get("license")
    except (HTTPError, OSError, ValueError, yaml.YAMLError):  # no card, or none that can be read
        return None
    names = found if isinstance(found, list) else [found]
    return names[0] if len(names) == 1 and isinstance(names[0], str) else None
