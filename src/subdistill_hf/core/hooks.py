"""Find named layers, hook them, and record what they return: all hooks are registered here, and gone on exit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import LayerError, first_tensor

OUTPUT_HOOKS = "transformers.utils.output_capturing"  # idle unless hidden states or attentions are asked for


def resolve_layers(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Turn module names and regular expressions into module names of `model`.

    A pattern that names a module is taken as it is; any other is a regular expression that must match whole
    names, and stands for all modules that match, in the model's order.

    Raises:
        LayerError: when a pattern matches no module; the message lists the nearest names.
    """
    names = list(layer_modules(model))
    known = set(names)
    resolved: list[str] = []
    for pattern in patterns:
        if pattern in known:
            matches = [pattern]
        else:
            try:
                expression = re.compile(pattern)
            except re.error as error:
                raise LayerError(f"layer pattern {pattern!r} is not a regular expression: {error}") from error
            matches = [name for name in names if expression.fullmatch(name)]
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
            hint = f"nearest names: {', '.join(near)}" if near else f"names start with {', '.join(names[:5])}"
            raise LayerError(f"no module of {type(model).__name__} is named or matches {pattern!r}; {hint}")
        resolved += [name for name in matches if name not in resolved]
    return resolved


def layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` by name, without itself and without the insides of layers that hold a PEFT adapter.

    A model has the same layers under the same names with an adapter as without.
    """
    modules: dict[str, nn.Module] = {}
    inside: str | None = None
    for name, module in model.named_modules():
        if not name or (inside is not None and name.startswith(inside)):
            continue
        modules[name] = module
        replaced = hasattr(module, "base_layer") or hasattr(module, "original_module")
        inside = f"{name}." if replaced else None
    return modules


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules of `model` with these names.

    Raises:
        LayerError: for an unknown name.
    """
    modules = {}
    for name in names:
        try:
            modules[name] = model.get_submodule(name)
        except AttributeError:
            resolve_layers(model, [re.escape(name)])
            raise
    return modules


def has_hooks(module: nn.Module) -> bool:
    """Whether Python of the user's runs with a module."""
    if module._backward_hooks or module._backward_pre_hooks:
        return True
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != OUTPUT_HOOKS for hook in hooks)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; on exit every submodule gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(modules: Mapping[str, nn.Module], hook: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Call a function whenever one of some modules returns, inside the context.

    Args:
        modules: name to module.
        hook: called as `hook(name, inputs, output)`; what it returns takes the place of the output, unless it is
            `None`.
    """

    def named(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, inputs, output: hook(name, inputs, output)

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(named(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_before_trained_weights(model: nn.Module, layers: Sequence[str], forward: Callable[[], Any]) -> list[str]:
    """The layers that no trained weight reaches: those before them are frozen. There are none where all is trained.

    Args:
        model: any module.
        layers: module names.
        forward: runs the model on an example.

    Raises:
        LayerError: for an unknown name.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return []
    found: list[str] = []

    def look(name: str, inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and not tensor.requires_grad:
            found.append(name)

    with evaluation_mode(model), torch.enable_grad(), hooked(named_layers(model, layers), look):
        forward()
    return found


class ActivationRecorder:
    """The recorder that `record` yields: the latest output of each hooked layer.

    Attributes:
        outputs: layer name to what the layer returned last: its first tensor, or what `transform` made of it.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self._versions: dict[str, tuple[Tensor, int]] = {}

    def modified_in_place(self) -> list[str]:
        """The layers whose recorded tensor was changed by a later in-place operation."""
        return [name for name, (tensor, version) in self._versions.items() if tensor._version != version]

    def check(self, remedy: str = "record it with copy=True") -> None:
        """Raise `LayerError`, with a remedy, if a recorded tensor no longer holds what the layer returned."""
        if changed := self.modified_in_place():
            raise LayerError(
                f"the output of {', '.join(changed)} is changed in place by a later operation, so what was "
                f"recorded is not what the layer returned: {remedy}"
            )

    def _store(self, name: str, output: Any, copy: bool, transform: Callable[[str, Any], Any] | None) -> None:
        tensor = first_tensor(output)
        if transform is not None:
            self.outputs[name] = transform(name, output)
        elif tensor is not None and copy:
            self.outputs[name] = tensor.clone()
        else:
            # the tensor, not what holds it: a later layer may put another tensor into a list
            self.outputs[name] = output if tensor is None else tensor
            # a compiled model has no versions to compare, and must not be cut in pieces to ask for them
            if tensor is not None and not torch.compiler.is_compiling() and not tensor.is_inference():
                self._versions[name] = (tensor, tensor._version)


@contextmanager
def record(
    model: nn.Module,
    layers: Sequence[str],
    copy: Collection[str] | bool = (),
    transform: Callable[[str, Any], Any] | None = None,
) -> Iterator[ActivationRecorder]:
    """Record the outputs of `layers` during the forward passes inside the context; the hooks go on exit.

    Args:
        model: any module.
        layers: module names, as `model.named_modules()` gives them.
        copy: layers whose output is cloned when it is recorded (all with `True`), for outputs that a later
            operation changes in place.
        transform: called as `transform(name, output)` the moment a layer returns; its result is recorded in
            place of the output, so that nothing large is kept and later in-place changes do not matter.

    Raises:
        LayerError: for an unknown name.
    """
    recorder = ActivationRecorder()

    def store(name: str, inputs: Any, output: Any) -> None:
        recorder._store(name, output, copy if isinstance(copy, bool) else name in copy, transform)

    with hooked(named_layers(model, layers), store):
        yield recorder
