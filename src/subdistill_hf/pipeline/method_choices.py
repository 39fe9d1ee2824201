"""What is decided of a method's training: its learning rate, and the scale and the weight of its layer losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO
from subdistill_hf.config.training import SubDistillConfig, with_arguments
from subdistill_hf.pipeline.auto import Choice

Start = Literal["new", "pretrained", "adapter"]

OF_ONE_METHOD = ("layer_weight", "layer_weight_end", "task_weight", "kd_weight")

CAREFUL = 1e-3
LEARNING_RATES: dict[tuple[Start, str], tuple[float, float]] = {
    ("new", "with batch norms"): (1.6e-2, 4e-3),
    ("new", "without batch norms"): (4e-3, CAREFUL),
    ("new", "with attention"): (2e-3, CAREFUL),
    ("pretrained", "with batch norms"): (4e-3, CAREFUL),
}
"""Start and kind of a student to its learning rates with and without the teacher's layers; all others get `CAREFUL`.
See `suited_learning_rate`."""


def config_of_method(config: SubDistillConfig, method: str, folder: Path) -> SubDistillConfig:
    """The training arguments of one of the methods of a run.

    Args:
        config: of the run; the weights in it are those of its own method, others have their own.
        method: the method.
        folder: of its checkpoints.
    """
    weights: dict[str, Any] = {}
    if method != config.method:
        weights = {name: getattr(SubDistillConfig, name) for name in OF_ONE_METHOD}
        if config.layer_weight_end is None:
            weights["layer_weight_end"] = None  # each has its own
    # the finished student is pushed once, when the run is over
    return with_arguments(config, method=method, output_dir=str(folder), push_to_hub=False, **weights)


def resolve_layer_losses(config: SubDistillConfig) -> tuple[SubDistillConfig, list[Choice]]:
    """Choose the scale of the layer targets, and let the weight of the layers fall where the method gains by it.

    Args:
        config: the training arguments of a method. What is left open is `auto` (`target_scale`) or `None`
            (`layer_weight_end`).

    Returns:
        The arguments, and what was chosen.
    """
    method, choices = METHODS[config.method], []
    if config.target_scale == AUTO:
        config = with_arguments(config, target_scale=config.scale_of_targets())
        if config.target_scale != method.target_scale:
            reason = "a layer of the teacher times any factor teaches the same"
            choices.append(Choice("target_scale", config.target_scale, reason, config.method))
    if config.layer_weight_end is not None:
        return config, choices
    falling = method.falling_layer_weight.get(config.scale_of_targets())
    if falling is None or config.layer_weight is not None or not config.weights()["kd"]:
        return with_arguments(config, layer_weight_end=1.0), choices
    chosen = {"layer_weight": falling[0], "layer_weight_end": falling[1] / falling[0]}
    reason = "the layers teach early, and the logits late"
    choices += [Choice(name, one, reason, config.method) for name, one in chosen.items()]
    return with_arguments(config, **chosen), choices


def resolve_learning_rate(
    config: SubDistillConfig, student: nn.Module, start: Start
) -> tuple[SubDistillConfig, list[Choice]]:
    """Choose the learning rate that suits a student, if none was given.

    Args:
        config: the training arguments of a method.
        student: the network.
        start: whether its weights are random, pretrained, or pretrained and stay, beside an adapter.

    Returns:
        A copy of the arguments, and what was chosen.
    """
    if config.learning_rate > 0:
        return with_arguments(config), []
    rate, reason = suited_learning_rate(student, start, config.weights()["layer"] > 0)
    return with_arguments(config, learning_rate=rate), [Choice("learning_rate", rate, reason, config.method)]


def suited_learning_rate(student: nn.Module, start: Start, layers: bool) -> tuple[float, str]:
    """The initial learning rate of AdamW that suits a student and what it learns from.

    Batch norms let a network take large steps, and in a short training it needs them; the larger ones where the
    teacher's layers guide it. For a new network the first rate is what tuning chose for SubDistill in
    `benchmarks/results/glyphs`, the second what it chose for labels alone and for logit distillation in
    `benchmarks/results/glyphs_sizes`. A new network without batch norms gets a quarter of them
    (`benchmarks/results/glyphs_without_batch_norms`). One with attention gets half of that: a wider one than there
    collapsed at 4e-3 (`docs/defaults.md`).

    For a small pretrained network with batch norms tuning chose the rates of a new one
    (`benchmarks/results/glyphs_pretrained`). It gets a quarter of them, since one that has seen many photographs has
    more to forget, which was not measured. A pretrained one without batch norms may diverge, and so may adapters: they
    get the paper's 1e-3.

    Args:
        student: the network.
        start: whether its weights are random, pretrained, or pretrained and stay, beside an adapter.
        layers: whether it learns from the teacher's layers too.

    Returns:
        The rate, and why, in words.
    """
    if start == "adapter":
        return CAREFUL, "low-rank changes may diverge with larger ones"
    kind = _kind(student)
    if (start, kind) not in LEARNING_RATES:
        return CAREFUL, f"a {start} network without batch norms may diverge with larger ones"
    guided, not_guided = LEARNING_RATES[start, kind]
    if layers:
        return guided, f"a {start} network {kind}, guided by the teacher's layers"
    return not_guided, f"a {start} network {kind}, not guided by the teacher's layers"


def _kind(student: nn.Module) -> str:
    """What decides how large the steps of a network may be, as in `LEARNING_RATES`."""
    modules = list(student.modules())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        return "with batch norms"
    attends = any("attention" in type(module).__name__.lower() for module in modules)
    return "with attention" if attends else "without batch norms"
