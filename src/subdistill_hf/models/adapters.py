"""PEFT adapters on image classifiers: which modules take them, and how they are put on, saved, read and merged."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from subdistill_hf.core.hooks import evaluation_mode, hooked
from subdistill_hf.models.errors import AdapterError
from subdistill_hf.models.heads import expect_one_class, name_outputs, say_of_unknown

ADAPTER_FILE = "adapter_model.safetensors"
PLAIN_ADAPTER = "default"
"""The name of an adapter that was given none: readers look for no other."""
HEAD_DEVIATION = 0.02
# What a network of position differences computes is the same for every image.
POSITION_NETWORKS = ("continuous_position_bias_mlp", "cpb_mlp")
# Their convolutions are asked for their stride, which PEFT's layers do not have.
ASKED_FOR_STRIDE = ("mobilenet_v1", "mobilenet_v2")
# PEFT's word for an adapter that changes no module of the body.
NO_TARGETS = "dummy-target-modules"
IMAGE_CHANNELS = 3


def base_of(model: nn.Module) -> nn.Module:
    """The network under a PEFT adapter, where layers have the names of the plain model; any other model itself."""
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def head_weights(model: nn.Module) -> list[str]:
    """The names of the weights whose shape follows from the number of labels.

    Args:
        model: a model of transformers that is made of its configuration alone.
    """
    config: Any = copy.deepcopy(model.config)
    config.id2label = dict.fromkeys(range(len(config.id2label) + 1), "")
    with torch.device("meta"):
        other = type(model)(config)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    return [name for name, tensor in model.state_dict().items() if shapes.get(name) != tensor.shape]


def head_modules(model: nn.Module) -> list[str]:
    """The names of the modules whose shape follows from the number of labels.

    Args:
        model: see `head_weights`; one that is made otherwise says it in `head_names`.

    Raises:
        AdapterError: when none, or something other than linear maps and convolutions, depends on it.
    """
    own: Sequence[str] | None = getattr(model, "head_names", None)
    if own is not None:
        return list(own)
    heads = dict.fromkeys(name.rpartition(".")[0] for name in head_weights(model))
    modules = dict(model.named_modules())
    if not heads or not all(isinstance(modules.get(name), nn.Linear | nn.Conv2d) for name in heads):
        found = ", ".join(f"{name} ({type(modules.get(name)).__name__})" for name in heads) or "nothing"
        raise AdapterError(
            f"{type(model).__name__} cannot get a new head: expected linear maps or convolutions whose width is the "
            f"number of labels, found {found}"
        )
    return list(heads)


@torch.no_grad()
def replace_head(model: nn.Module, names: Sequence[str]) -> None:
    """Give a classifier a new, untrained head with one output per name, in place.

    What its configuration said of the answers of the old head is gone: several classes of an image, and none.

    Args:
        model: a classifier of transformers, timm-wrapped or not.
        names: class names, in the order of the outputs.

    Raises:
        AdapterError: see `head_modules`.
    """
    for name in head_modules(model):
        old: Any = model.get_submodule(name)
        new: nn.Linear | nn.Conv2d
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, len(names), old.bias is not None)
        else:
            new = nn.Conv2d(old.in_channels, len(names), old.kernel_size, bias=old.bias is not None)
        nn.init.normal_(new.weight, std=HEAD_DEVIATION)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        model.set_submodule(name, new.to(old.weight))
    described: Any = model
    name_outputs(described.config, names)
    expect_one_class(described.config)
    say_of_unknown(described.config, {})
    described.num_labels = len(names)


def heads_with_bias(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers of a classifier that give its logits; a few classifiers average those of two.

    Args:
        model: a classifier of transformers, or a `PeftModel` of one, whose trained heads are meant.

    Raises:
        AdapterError: for a head without a bias, and see `head_modules`.
    """
    layers: list[Any]
    if isinstance(model, PeftModel):
        wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
        layers = [wrapper.modules_to_save[wrapper.active_adapters[0]] for wrapper in wrappers]
    else:
        layers = [model.get_submodule(name) for name in head_modules(model)]
    if any(layer.bias is None for layer in layers):
        raise AdapterError(f"the head of {type(base_of(model)).__name__} has no bias: expected one")
    return layers


@torch.no_grad()
def shift_logit(model: nn.Module, output: int, amount: float) -> None:
    """Add a number to one logit of a classifier for good, in the bias of its head, in place.

    Args:
        model: see `heads_with_bias`.
        output: which logit; -1 is the last.
        amount: what is added.

    Raises:
        AdapterError: see `heads_with_bias`.
    """
    for layer in heads_with_bias(model):
        assert layer.bias is not None
        layer.bias[output] += amount


# Which modules take LoRA


def lora_targets(model: nn.Module, forward: Callable[[], Any], wanted: Sequence[str] | None = None) -> list[str]:
    """The modules of a classifier that get a low-rank change.

    Every linear map of the body (attention projections and MLPs), and every 1x1 or 3x3 convolution over all of its
    input channels, that is called in a forward pass. Left out are the head, the stem that reads pixels, depthwise
    and grouped convolutions (which PEFT cannot merge), layers that treat their weights before they use them, and
    networks of relative positions.

    Args:
        model: a classifier of transformers.
        forward: runs it on an example.
        wanted: module names, ends of names, or regular expressions to use instead; each must match modules that can
            take LoRA.

    Raises:
        AdapterError: when there are none.
    """
    heads = head_modules(model)
    called = _called(model, forward)
    able = [
        name
        for name, module in called.items()
        if name not in heads and (_is_linear(module) or _is_plain_convolution(module))
    ]
    if wanted:
        return _chosen(model, able, wanted)
    usual = [name for name in able if _is_usual(name, called[name])]
    if not usual:
        raise AdapterError(
            f"{type(model).__name__} has no linear map and no plain 1x1 or 3x3 convolution that could take LoRA: "
            "train its head alone"
        )
    return usual


def _called(model: nn.Module, forward: Callable[[], Any]) -> dict[str, nn.Module]:
    """The modules without children that a forward pass calls: some use a module's weights and pass it by."""
    childless = {name: module for name, module in model.named_modules() if not any(True for _ in module.children())}
    called: set[str] = set()
    with hooked(childless, lambda name, inputs, output: called.add(name)), evaluation_mode(model), torch.no_grad():
        forward()
    return {name: module for name, module in childless.items() if name in called}


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear


def _is_plain_convolution(module: nn.Module) -> bool:
    """Subclasses pad or standardise their weights in ways that the adapter beside them would not."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
    )


def _is_usual(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size in ((1, 1), (3, 3)) and module.in_channels > IMAGE_CHANNELS
    return not any(network in name.split(".") for network in POSITION_NETWORKS)


def _chosen(model: nn.Module, able: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The modules that an entry names, ends the name of, or matches as a regular expression."""
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: dict[str, None] = {}
    for entry in wanted:
        try:
            expression = re.compile(rf"(?:.*\.)?{re.escape(entry)}|(?:{entry})")
        except re.error as error:
            raise AdapterError(f"target module {entry!r} is not a regular expression: {error}") from error
        matches = [name for name in modules if expression.fullmatch(name)]
        if not matches:
            near = difflib.get_close_matches(entry, {end for name in able for end in (name, name.split(".")[-1])}, 5)
            hint = ", ".join(near or able[:5])
            raise AdapterError(f"no module of {type(model).__name__} is named or matches {entry!r}; such as {hint}")
        usable = [name for name in matches if name in able]
        if not usable:
            kinds = ", ".join(sorted({type(modules[name]).__name__ for name in matches}))
            raise AdapterError(
                f"{entry!r} matches {len(matches)} modules ({kinds}) of {type(model).__name__}, none of which can "
                "take LoRA: expected linear maps or ungrouped convolutions of the body, such as "
                f"{', '.join(able[:3]) or 'there are none'}"
            )
        chosen |= dict.fromkeys(usable)
    return list(chosen)


# Put on, save, read, merge


def with_adapter(
    model: nn.Module, targets: Sequence[str], rank: int, base: str | None = None, revision: str | None = None
) -> PeftModel:
    """Freeze a classifier and make a low-rank change of some modules, and its head, trainable (LoRA).

    Args:
        model: the classifier; it is changed in place.
        targets: see `lora_targets`; without any, the head alone is trained.
        rank: of the changes.
        base: what the adapter's configuration names as the model that it belongs to.
        revision: the commit of `base`.

    Raises:
        AdapterError: see `head_modules`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets) or NO_TARGETS,
        modules_to_save=head_modules(model),
        base_model_name_or_path=base,
        revision=revision,
    )
    return put_on(model, config)


def put_on(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Put an adapter of a configuration on a model, in place; its changes start as nothing."""
    with warnings.catch_warnings():
        # PEFT asks transformers for a property by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = PeftModel(model, config)
    for module in adapted.modules():
        convolution = getattr(module, "base_layer", None)
        if isinstance(convolution, nn.Conv2d):
            for name in ("kernel_size", "stride", "padding", "dilation"):
                setattr(module, name, getattr(convolution, name))
    return adapted


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write the adapters in PEFT's format, and nothing else, see `adapter_folders`."""
    card = Path(folder) / "README.md"
    kept = card.read_bytes() if card.is_file() else None
    # "auto" would ask the Hub whether the base has a vocabulary.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    card.unlink(missing_ok=True)  # PEFT's template of blanks
    if kept is not None:
        card.write_bytes(kept)


def load_adapter(model: PeftModel, folder: str | Path, name: str = PLAIN_ADAPTER, **where: Any) -> None:
    """Read the weights of an adapter into the one that a model has.

    Args:
        model: a model with an adapter of the same shape.
        folder: a folder, or a repository of the Hub.
        name: of the model's adapter.
        where: `revision` and the like, for a repository.

    Raises:
        AdapterError: when they are not those of the model's adapter, all of them and no other.
    """
    weights = load_peft_weights(str(folder), device="cpu", **where)
    kind = type(base_of(model)).__name__
    try:
        found = set_peft_model_state_dict(model, weights, name)
    except (KeyError, RuntimeError) as error:
        raise AdapterError(f"the adapter in {folder} does not fit {kind}: {error}") from error
    # PEFT reads loosely, and counts the weights of the frozen model as missing.
    missing = [key for key in found.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
    if missing or found.unexpected_keys:
        raise AdapterError(
            f"the adapter in {folder} does not fit {kind}: {len(missing)} weights are missing{_such_as(missing)}, "
            f"{len(found.unexpected_keys)} have no place{_such_as(found.unexpected_keys)}"
        )


def adapter_folders(model: PeftModel) -> dict[str, Path]:
    """Where `save_adapter` puts each adapter of a model, by its name: in the folder, or in one of its name there."""
    return {name: Path() if name == PLAIN_ADAPTER else Path(name) for name in model.peft_config}


def load_adapters(model: PeftModel, folder: str | Path) -> None:
    """Read all adapters of a model from where `save_adapter` put them."""
    for name, place in adapter_folders(model).items():
        load_adapter(model, Path(folder, place), name)


def frozen_names(model: PeftModel) -> list[str]:
    """The names of the weights and buffers that the adapters leave as they are, in the network under them."""
    base = base_of(model)
    trained = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    return [name for name in base.state_dict() if name not in trained and ".original_module." not in name]


def frozen_batch_norms(model: PeftModel) -> list[nn.Module]:
    """The batch norms whose statistics no adapter saves: in training they must stay as they are."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and ".modules_to_save." not in name
    ]


def _such_as(names: Sequence[str]) -> str:
    return f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""


def merged(model: nn.Module) -> nn.Module:
    """A plain model that computes what a model with an adapter computes; any other model itself.

    The adapter's model must not be used afterwards.
    """
    plain: nn.Module = model.merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else model
    return plain
