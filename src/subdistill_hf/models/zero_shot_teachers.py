"""Zero-shot teachers: image-text models whose classes are the words of the user."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from subdistill_hf.config.options import EMBEDDED_TEACHERS
from subdistill_hf.formatting import last_part
from subdistill_hf.models.errors import LOADING_ERRORS
from subdistill_hf.models.loading import LoadedModel, freeze
from subdistill_hf.models.provenance import hub_revision, license_of
from subdistill_hf.models.words import Words
from subdistill_hf.models.zero_shot import read_zero_shot


def is_zero_shot(name: str, trust_remote_code: bool = False) -> bool:
    """Whether a teacher is an image-text model whose classes are words; one that cannot be read is none."""
    if name in EMBEDDED_TEACHERS:
        return False
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS:
        return False  # whoever loads it says why
    classifier = any(str(kind).endswith("ForImageClassification") for kind in config.architectures or ())
    return config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES and not classifier


def load_zero_shot(name: str, words: Words, trust_remote_code: bool = False) -> LoadedModel:
    """Load an image-text model as a frozen classifier of words; its text side is used once, and not kept.

    Args:
        name: a local folder, or an id of the Hub.
        words: the classes and prompts.
        trust_remote_code: run model code from the repository.

    Raises:
        ModelError: as `zero_shot.read_zero_shot` does.
    """
    local = Path(name).is_dir()
    classifier, processor, words = read_zero_shot(name, words, trust_remote_code)
    revision = hub_revision(name)
    return LoadedModel(
        freeze(classifier),
        processor,
        last_part(name) if local else name,
        None if local else name,
        revision,
        license_of(name, revision),
        words=words,
    )
