"""Load teachers, and identify, measure and count models."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from subdistill_hf.config.options import EMBEDDED_TEACHERS
from subdistill_hf.formatting import last_part
from subdistill_hf.hub.errors import explain, missing_place
from subdistill_hf.hub.files import why_no_student
from subdistill_hf.models.adapter_loading import find_adapter, load_merged
from subdistill_hf.models.adapters import head_modules
from subdistill_hf.models.configuration import read_configuration, without_loading_reports
from subdistill_hf.models.errors import LOADING_ERRORS, ModelError
from subdistill_hf.models.heads import names_of
from subdistill_hf.models.provenance import hub_revision, license_of
from subdistill_hf.models.words import Words
from subdistill_hf.models.zero_shot import class_labels

logger = logging.getLogger(__name__)

RGB = 3
SHOWN = 3  # names in a message
TEACHERS_FOLDER = Path(__file__).parent / "embedded_teachers"


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        name: a Hub id, or the last part of a folder's name.
        hub_id: its id, when it came from the Hub.
        revision: the Hub commit, when known.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model with its image processor.

    Attributes:
        model: the classifier.
        processor: its image processor.
        name: what a person would call it: a Hub id, or the last part of a folder's name.
        hub_id: its id, when it came from the Hub.
        revision: the Hub commit, when known.
        license: when known.
        base: the model that it was adapted from, when it came as a PEFT adapter.
        without_head: whether its head is untrained.
        words: the classes of a zero-shot teacher, which are its first outputs, and its prompts.
        digest: of its weights, where it is known already, see `weights_digest`.
    """

    model: nn.Module
    processor: Any
    name: str
    hub_id: str | None = None
    revision: str | None = None
    license: str | None = None
    base: Origin | None = None
    without_head: bool = False
    words: Words | None = None
    digest: str | None = None

    @property
    def labels(self) -> dict[int, str]:
        """The model's outputs by name, `id2label` of its configuration."""
        config: Any = self.model.config
        return {int(output): str(name) for output, name in config.id2label.items()}

    @property
    def class_labels(self) -> dict[int, str]:
        """Those of them that stand for classes, see `zero_shot.class_labels`."""
        return class_labels(self.model)

    @property
    def identity(self) -> str:
        """What its answers to images depend on: a digest of the weights, and the settings of the image processor."""
        return f"{self.digest or weights_digest(self.model)} {self.processor}"


def load_teacher(name: str, trust_remote_code: bool = False, adaptable: bool = False) -> LoadedModel:
    """Load and freeze a teacher: evaluation mode, no gradients.

    Args:
        name: an embedded teacher, a local folder, or an id of the Hub; of a model, or of a PEFT adapter, which is
            merged into its base model.
        trust_remote_code: run model code from the repository.
        adaptable: take a model without a trained head, too.

    Raises:
        ModelError: when it cannot be loaded, or has no trained classification head.
    """
    path, local = _place(name)
    if name in EMBEDDED_TEACHERS and Path(name).is_dir():
        logger.warning(f"{name} is the embedded teacher: for the folder, give ./{name}")
    with _explained(name, path):
        adapter = find_adapter(path)
        if adapter is None:
            config = read_configuration(path, trust_remote_code)
            check_labels(config, f"teacher {name!r}")
            with without_loading_reports():
                model, loading = AutoModelForImageClassification.from_pretrained(
                    path,
                    config=config,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    dtype=torch.float32,
                )
            hint = f"Its id2label names {len(names_of(model.config))} classes"
            check_shapes(f"teacher {name!r}", loading["mismatched_keys"], hint)
            missing, revision, base, source = loading["missing_keys"], hub_revision(path), None, path
            source_of_base = path
        else:
            source_of_base, base_is_local = _place(adapter.base)
            model = load_merged(adapter, source_of_base, trust_remote_code)
            missing, revision = [], adapter.revision
            base_revision = hub_revision(source_of_base, adapter.base_revision)
            base = _origin(adapter.base, source_of_base, base_is_local, base_revision)
            source = str(adapter.folder) if adapter.has_processor else source_of_base
        processor = load_processor(source, model, trust_remote_code)
    check_image_channels(model, f"teacher {name!r}")
    replaceable = head_modules(model) if missing and adaptable else []
    if untrained := sorted(weight for weight in missing if weight.rpartition(".")[0] not in replaceable):
        raise ModelError(
            f"teacher {name!r} has no trained weights for {', '.join(untrained[:4])}: it is not a finished classifier "
            "(a random head would teach nothing). Fine-tune it on the classes first, as --adapt_teacher lora does"
        )
    origin = _origin(name, path, local, revision)
    return LoadedModel(
        freeze(model),
        processor,
        origin.name,
        origin.hub_id,
        origin.revision,
        license=license_of(path, revision) or (license_of(source_of_base, base.revision) if base else None),
        base=base,
        without_head=bool(missing),
    )


def check_teacher_is_there(name: str, trust_remote_code: bool = False) -> None:
    """Refuse a teacher whose configuration cannot be read, before anything large is.

    Args:
        name: see `load_teacher`.
        trust_remote_code: run model code from the repository.

    Raises:
        ModelError: as `load_teacher` does.
    """
    path, _ = _place(name)
    with _explained(name, path):
        adapter = find_adapter(path)
        source, revision = (path, None) if adapter is None else (_place(adapter.base)[0], adapter.base_revision)
        read_configuration(source, trust_remote_code, revision)


@contextmanager
def _explained(name: str, path: str) -> Iterator[None]:
    """Turn what the libraries raise of a teacher inside the context into one message."""
    try:
        yield
    except LOADING_ERRORS as error:
        reason = missing_place(path) or explain(error).rstrip(".")
        raise ModelError(
            f"teacher {name!r} cannot be loaded: {reason}. Expected an embedded teacher "
            f"({', '.join(EMBEDDED_TEACHERS)}), a folder, or the id of an image classifier on the Hub"
        ) from error


def load_student(folder: str | Path) -> LoadedModel:
    """Load and freeze a finished student: evaluation mode, no gradients.

    Args:
        folder: where `distill` or a trainer left it; of a PEFT adapter, which is merged into its base model.

    Raises:
        ModelError: when the folder holds no student, or one that cannot be loaded.
    """
    path = Path(folder)
    if (why := why_no_student(path)) is not None:
        raise ModelError(why)
    try:
        adapter = find_adapter(str(path))
        if adapter is None:
            config = read_configuration(path)
            check_labels(config, f"student {path.name!r}")
            with without_loading_reports():
                model, loading = AutoModelForImageClassification.from_pretrained(
                    path, config=config, output_loading_info=True, dtype=torch.float32
                )
            untrained = sorted(loading["missing_keys"])
        else:
            model, untrained = load_merged(adapter, _place(adapter.base)[0]), []
        processor = load_processor(str(path), model)
    except LOADING_ERRORS as error:
        raise ModelError(f"student {path.name!r} cannot be loaded: {explain(error).rstrip('.')}") from error
    check_image_channels(model, f"student {path.name!r}")
    if untrained:
        raise ModelError(
            f"student {path.name!r} has no trained weights for {', '.join(untrained[:4])}: it is not a finished "
            "classifier"
        )
    return LoadedModel(freeze(model), processor, last_part(path))


def load_processor(source: str, model: nn.Module, trust_remote_code: bool = False) -> Any:
    """The image processor of a model, in the form that its kind has: timm's work on PIL images alone."""
    config: Any = model.config
    form = {"backend": "pil"} if config.model_type == "timm_wrapper" else {}
    return AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **form)


def check_labels(config: Any, who: str) -> None:
    """Refuse names of outputs that are not counted from 0 on.

    Raises:
        ModelError: when `id2label` has gaps, or keys that are no numbers.
    """
    keys = [str(key) for key in getattr(config, "id2label", None) or {}]
    if sorted(keys) != sorted(map(str, range(len(keys)))):
        odd = [key for key in keys if key not in set(map(str, range(len(keys))))]
        raise ModelError(
            f"{who} names its outputs {', '.join(odd[:3])} (id2label in its config.json): expected the numbers from 0 "
            f"to {len(keys) - 1}, one for each of its {len(keys)} classes"
        )


def check_shapes(who: str, mismatched: Collection[Any], hint: str) -> None:
    """Refuse weights of other shapes than the configuration says: they would be left random.

    Args:
        who: the model, for the message.
        mismatched: of each such weight its name, its saved shape, and the shape that is expected.
        hint: what may help, the end of the message.

    Raises:
        ModelError: naming them.
    """
    if mismatched:
        first, *others = sorted(mismatched)
        key, saved, expected = first
        names = ", ".join(entry[0] for entry in others[:SHOWN])
        more = f"; so are {len(others)} more ({names}{', ...' if len(others) > SHOWN else ''})" if others else ""
        raise ModelError(
            f"{who} has weights of other shapes than its config.json says: {key} is {tuple(saved)}, "
            f"expected {tuple(expected)}{more}. {hint}"
        )


def _place(name: str) -> tuple[str, bool]:
    """Where a model is read, and whether that is a folder."""
    path = str(TEACHERS_FOLDER / name) if name in EMBEDDED_TEACHERS else name
    return path, Path(path).is_dir()


def _origin(name: str, path: str, local: bool, revision: str | None) -> Origin:
    return Origin(last_part(path)) if local else Origin(name, name, revision)


def freeze(model: nn.Module) -> nn.Module:
    """Put a model in evaluation mode and stop gradients to its parameters."""
    return model.eval().requires_grad_(False)


def input_size_of(processor: Any) -> tuple[int, int]:
    """Height and width of what a processor gives."""
    for name in ("crop_size" if getattr(processor, "do_center_crop", False) else "size", "size"):
        size = getattr(processor, name, None) or {}
        if "height" in size:
            return int(size["height"]), int(size["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    data_config = getattr(processor, "data_config", None)
    if data_config:
        return int(data_config["input_size"][1]), int(data_config["input_size"][2])
    raise ModelError(f"{type(processor).__name__} does not say the size of its images")


def check_image_channels(model: nn.Module, who: str) -> None:
    """Refuse a model of other images than RGB, as which all images are read.

    Raises:
        ModelError: when its configuration says so.
    """
    config: Any = model.config
    channels = getattr(config, "num_channels", None)
    if channels is None:  # timm's
        own = getattr(config, "model_args", None) or {}
        channels = own.get("in_chans") or (getattr(config, "pretrained_cfg", None) or {}).get("input_size", [RGB])[0]
    if channels != RGB:
        raise ModelError(f"{who} takes images of {channels} channels: expected {RGB}, since images are read as RGB")


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_digest(model: nn.Module, names: Collection[str] | None = None) -> str:
    """SHA-256 over names, shapes and values of all that a model's state holds, or of what is named of it.

    Raises:
        ModelError: for a state that holds what has no bytes.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if names is not None and name not in names:
            continue
        digest.update(name.encode())
        try:
            for part in _bytes_of(value):
                digest.update(part)
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"{type(model).__name__} cannot be told from other models: {name!r} of its state_dict() is a "
                f"{type(value).__name__} without bytes ({error}). Expected tensors and plain values"
            ) from error
    return digest.hexdigest()


def _bytes_of(value: Any) -> Iterator[bytes]:
    """The contents of a tensor, or of whatever else a module keeps in its state: the same in each process."""
    if isinstance(value, Tensor):
        values = value.detach().cpu()
        yield f"{tuple(values.shape)}{values.dtype}".encode()
        values = (values.dequantize() if values.is_quantized else values).contiguous()
        yield values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b""
    elif isinstance(value, Mapping):
        for name in sorted(value, key=repr):
            yield repr(name).encode()
            yield from _bytes_of(value[name])
    elif isinstance(value, tuple | list | set | frozenset):
        yield f"{len(value)}".encode()
        for part in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            yield from _bytes_of(part)
    else:
        yield pickle.dumps(value, protocol=4)
