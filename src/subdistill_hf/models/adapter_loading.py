"""Read a classifier whose low-rank changes and head lie in a PEFT adapter, as one plain model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, load_peft_weights
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.utils import extract_commit_hash, find_adapter_config_file

from subdistill_hf.hub.files import ADAPTER_CONFIG_FILE
from subdistill_hf.models.adapters import head_modules, load_adapter, merged, put_on
from subdistill_hf.models.configuration import read_configuration, without_loading_reports
from subdistill_hf.models.errors import AdapterError
from subdistill_hf.models.heads import expect_one_class, in_order, name_outputs, names_of, of_unknown, say_of_unknown
from subdistill_hf.models.words import Words
from subdistill_hf.models.zero_shot import ZeroShotClassifier, add_outputs, of_first_outputs, read_zero_shot

RECORD_FILE = "adaptation.json"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
ADAPTER_FILES = (
    ADAPTER_CONFIG_FILE,
    "adapter_model.safetensors",
    "adapter_model.bin",
    RECORD_FILE,
    CONFIG_FILE,
    PROCESSOR_FILE,
)


@dataclass(frozen=True)
class AdapterPlace:
    """Where an adapter lies, and the model that it belongs to.

    Attributes:
        folder: with the adapter's files.
        revision: the adapter's commit on the Hub, if it comes from there.
        base: the model that it belongs to: a folder, or an id of the Hub.
        base_revision: the commit of `base`, where the adapter names one.
    """

    folder: Path
    revision: str | None
    base: str
    base_revision: str | None

    @property
    def has_processor(self) -> bool:
        """Whether the adapter brings an image processor of its own."""
        return (self.folder / PROCESSOR_FILE).is_file()


def find_adapter(name: str) -> AdapterPlace | None:
    """The adapter in a folder or a repository of the Hub, which is downloaded; `None` when there is none.

    Raises:
        AdapterError: for an adapter that names no base model.
        OSError: when the repository cannot be read.
    """
    found = find_adapter_config_file(name)
    if found is None:
        return None
    folder, revision = Path(found).parent, None
    if not Path(name).is_dir():
        revision = extract_commit_hash(found, None)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(ADAPTER_FILES)))
    described = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    base = described.get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"the {ADAPTER_CONFIG_FILE} of {name} names no base model (base_model_name_or_path)")
    return AdapterPlace(folder, revision, str(base), described.get("revision"))


def load_merged(place: AdapterPlace, base: str, trust_remote_code: bool = False) -> nn.Module:
    """The base model with the adapter's head and changes in its own weights, in float32.

    Args:
        place: see `find_adapter`.
        base: where the base model is to be read.
        trust_remote_code: run model code from the base's repository.

    Raises:
        AdapterError: when adapter and base do not fit, or there is no trained head for the adapter's classes.
    """
    where: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": place.base_revision}
    words = _saved_words(place.folder)
    if words is not None:
        return _merged_zero_shot(place, *read_zero_shot(base, words, **where)[::2])
    config = read_configuration(base, **where)
    with torch.device("meta"):
        heads = head_modules(AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code))
    names, brings_head = _labels(place.folder, heads, names_of(config))
    name_outputs(config, names)
    say_of_unknown(config, of_unknown(_saved_config(place.folder)))
    if brings_head:
        _take_problem(config, place.folder)
    with without_loading_reports():  # of a head that the adapter brings
        model, loading = AutoModelForImageClassification.from_pretrained(
            base, config=config, ignore_mismatched_sizes=brings_head, output_loading_info=True, **where
        )
    absent = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
    covered = heads if brings_head else []
    if missing := sorted(name for name in absent if name.rpartition(".")[0] not in covered):
        raise AdapterError(
            f"no trained weights for {', '.join(missing[:4])} in the base model {place.base} or in the adapter: it is "
            "not a finished classifier (a random head would teach nothing)"
        )
    return _merged(place, model.float())


def _merged(place: AdapterPlace, model: nn.Module) -> nn.Module:
    """A model with the changes of an adapter in its own weights.

    Raises:
        AdapterError: when they do not fit, or cannot be merged.
    """
    settings: Any = PeftConfig.from_pretrained(place.folder)
    adapted = put_on(model, settings)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise AdapterError(f"adapters of the kind {settings.peft_type} cannot be merged into their model")
    load_adapter(adapted, place.folder)
    return merged(adapted)


def _merged_zero_shot(place: AdapterPlace, model: ZeroShotClassifier, words: Words) -> ZeroShotClassifier:
    """A fitted zero-shot teacher: the adapter is of its vision side and of the outputs of its classes.

    Args:
        place: of the adapter.
        model: the classifier of its words, as its base gives it.
        words: with which it was fitted.
    """
    whole, names = model.word_head, names_of(model.config)
    fitted: ZeroShotClassifier = _merged(place, of_first_outputs(model, len(words.classes)))  # type: ignore[assignment]
    add_outputs(fitted, whole, names)
    return fitted


def _saved_words(folder: Path) -> Words | None:
    """The words of a zero-shot teacher that was fitted, with its prompts; `None` for any other adapter."""
    if not (folder / RECORD_FILE).is_file():
        return None
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    return None if "words" not in record else Words.from_json(record["words"])


def _labels(folder: Path, heads: Sequence[str], of_base: list[str]) -> tuple[list[str], bool]:
    """The class names of an adapter, and whether it brings a head of its own.

    The names are those that were saved with it, or else the base's; when it has another number of outputs, they are
    numbered.
    """
    weights = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in load_peft_weights(str(folder), device="cpu").items()
    }
    found = [weights.get(f"{head}.weight") for head in heads]
    outputs = [tensor.shape[0] for tensor in found if isinstance(tensor, Tensor)]
    saved = _saved_labels(folder)
    count = outputs[0] if outputs else len(of_base)
    if saved is not None and len(saved) != count:
        source = "its head has" if outputs else "it has no head, and that of its base model has"
        raise AdapterError(
            f"the adapter is for {len(saved)} classes ({', '.join(saved[:3])} ...), but {source} {count} outputs. "
            "Save adapters with modules_to_save, so that the head is among what is saved"
        )
    if 0 < len(outputs) < len(heads):
        raise AdapterError(f"the adapter has {len(outputs)} of the {len(heads)} heads: {', '.join(heads)}")
    names = saved or (of_base if len(of_base) == count else [f"LABEL_{output}" for output in range(count)])
    return names, bool(outputs)


def _saved_labels(folder: Path) -> list[str] | None:
    for file in (RECORD_FILE, CONFIG_FILE):
        if (folder / file).is_file():
            labels = json.loads((folder / file).read_text(encoding="utf-8")).get("id2label")
            if labels:
                return in_order(labels)
    return None


def _saved_config(folder: Path) -> dict[str, Any]:
    """The configuration that was saved with an adapter; an empty one where none was."""
    path = folder / CONFIG_FILE
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return saved


def _take_problem(config: Any, folder: Path) -> None:
    """Let a configuration say what an adapter's own head was trained for, where that is known, in place."""
    if (folder / RECORD_FILE).is_file():  # that of a fitted teacher
        expect_one_class(config)
    elif (folder / CONFIG_FILE).is_file():
        config.problem_type = _saved_config(folder).get("problem_type")
