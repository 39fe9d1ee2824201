"""The optimiser of a training: one that the user made, and one that is read from a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import Trainer, TrainingArguments

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import DistillationError

Rate = float | list[float]
KIND = ("optim", "optim_args", "optim_target_modules")
RATES = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
"""The arguments that an optimiser is made of: its kind, and the numbers that its state keeps."""


class OptimizerOrigin:
    """The parts of an optimiser, so that the next training gets another where they have changed.

    Args:
        given: the optimiser that the user passed, if any: it stays.
    """

    def __init__(self, given: torch.optim.Optimizer | None) -> None:
        self.given = given
        self._module: nn.Module | None = None
        self._options: tuple[str, ...] = ()

    def kept(self, optimizer: Any, module: nn.Module, args: SubDistillConfig) -> Any:
        """The optimiser that there is, or `None` where the next training needs another one.

        Args:
            optimizer: what there is, if there is one.
            module: what will be trained.
            args: the arguments of the next training.

        Raises:
            DistillationError: when the one that the user passed holds none of what is trained.
        """
        options = tuple(repr(getattr(args, name, None)) for name in (*KIND, *RATES))
        first, same = self._module is None, self._module is module and self._options == options
        self._module, self._options = module, options
        if self.given is None:
            return optimizer if first or same else None
        held = {id(weight) for group in self.given.param_groups for weight in group["params"]}
        if not any(id(weight) in held for weight in module.parameters()):
            raise DistillationError(
                "the optimizer that was given holds no weight of the student: it was made for another model. Make one "
                "of this student's parameters, or pass optimizer_cls_and_kwargs=..."
            )
        return optimizer


def rates_of(optimizer: Any) -> dict[str, Rate]:
    """The arguments that a resumed optimiser keeps, whatever their new values, by name.

    Some optimisers take several numbers where others take one, such as the `eps` of Adafactor: these are a list.
    """
    group = optimizer.param_groups[0]
    rates = {"learning_rate": group.get("initial_lr", group["lr"]), "weight_decay": group.get("weight_decay")}
    rates["adam_beta1"], rates["adam_beta2"] = (*group.get("betas", ()), None, None)[:2]
    rates["adam_epsilon"] = group.get("eps")
    return {name: _rate(value) for name, value in rates.items() if value is not None}


def _rate(value: Any) -> Rate:
    return [float(each) for each in value] if isinstance(value, list | tuple) else float(value)


def sample_optimizer(args: TrainingArguments, rate: float) -> torch.optim.Optimizer:
    """The optimiser that arguments ask for, of a weight of its own; draws no random numbers.

    Args:
        args: the arguments.
        rate: the learning rate.
    """
    layer: nn.Module = skip_init(nn.Linear, 1, 1)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, layer)
    optimizer: torch.optim.Optimizer = kind(layer.parameters(), **{**options, "lr": rate})
    return optimizer


def rates_of_arguments(args: SubDistillConfig) -> dict[str, Rate]:
    """`rates_of` of the optimiser that arguments ask for: not all of them have an `eps`, or that of the arguments."""
    given: dict[str, Rate] = {name: getattr(args, name) for name in RATES}
    try:
        made = rates_of(sample_optimizer(args, args.learning_rate))
    except (TypeError, ValueError, LookupError):  # of optimisers that look for layers of the real model
        return given
    return made | {name: given[name] for name in ("learning_rate", "weight_decay")}  # the Trainer makes groups of them


def same_rate(first: Rate | None, second: Rate | None) -> bool:
    """Whether two rates are the same but for rounding, entry by entry where there are several."""
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(math.isclose, first, second))
    if isinstance(first, list) or isinstance(second, list) or first is None or second is None:
        return first == second
    return math.isclose(first, second)


def shown_rate(rate: Rate | None) -> str:
    """A rate as notices show it."""
    if isinstance(rate, list):
        return f"({', '.join(f'{each:g}' for each in rate)})"
    return str(rate) if rate is None else f"{rate:g}"


def add_learned(optimizer: torch.optim.Optimizer, schedule: Any | None, losses: nn.Module) -> None:
    """Give an optimiser what the layer losses learn, as a group of its own, where it does not have it.

    Args:
        optimizer: the optimiser, perhaps made by the user for the student alone.
        schedule: of its learning rates, if there is one already.
        losses: the layer losses.

    Raises:
        DistillationError: when there is a schedule, which knows nothing of that group.
    """
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    learned = [weight for weight in losses.parameters() if id(weight) not in known]
    if learned and schedule is not None:
        raise DistillationError(
            "what the layer losses learn cannot join an optimizer that has a schedule: pass "
            "optimizers=(optimizer, None), or optimizer_cls_and_kwargs=..."
        )
    if learned:
        optimizer.add_param_group({"params": learned, "weight_decay": 0.0})


def lay_out_state(optimizer: Any) -> None:
    """Let what an optimiser keeps of each weight lie in memory as the weight does.

    A checkpoint's state lies as it was saved, perhaps where convolutions lay otherwise, and fused optimisers go
    through weights and state in the order of memory, without a look at their strides.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def initial_rate(optimizer: torch.optim.Optimizer | None, args: SubDistillConfig) -> float:
    """The first learning rate of a training: of a resumed one its checkpoint decides, not the arguments."""
    first = {} if optimizer is None else optimizer.param_groups[0]
    return float(first.get("initial_lr", args.learning_rate))
