"""SubDistill for the Hugging Face ecosystem: distil a tiny expert for just the classes you need."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from subdistill_hf.config.options import DataOptions as DataOptions
    from subdistill_hf.config.options import TaskOptions as TaskOptions
    from subdistill_hf.config.training import SubDistillConfig as SubDistillConfig
    from subdistill_hf.core.moments import Moments as Moments
    from subdistill_hf.core.pairing import LayerPair as LayerPair
    from subdistill_hf.core.subspaces import Subspace as Subspace
    from subdistill_hf.data.loading import load_subtask as load_subtask
    from subdistill_hf.data.subtask import Subtask as Subtask
    from subdistill_hf.data.views import ViewCollator as ViewCollator
    from subdistill_hf.data.views import ViewDataset as ViewDataset
    from subdistill_hf.errors import SubDistillError as SubDistillError
    from subdistill_hf.losses.subspace import SubspaceAlignment as SubspaceAlignment
    from subdistill_hf.losses.subspace import logit_distillation as logit_distillation
    from subdistill_hf.models.loading import load_teacher as load_teacher
    from subdistill_hf.models.students import build_student as build_student
    from subdistill_hf.pipeline.run import distill as distill
    from subdistill_hf.training.trainer import SubDistillTrainer as SubDistillTrainer

_HOME = {
    "DataOptions": "config.options",
    "LayerPair": "core.pairing",
    "Moments": "core.subspaces",
    "SubDistillConfig": "config.training",
    "SubDistillError": "errors",
    "SubDistillTrainer": "training.trainer",
    "Subspace": "core.subspaces",
    "SubspaceAlignment": "losses.subspace",
    "Subtask": "data.subtask",
    "TaskOptions": "config.options",
    "ViewCollator": "data.views",
    "ViewDataset": "data.views",
    "build_student": "models.students",
    "distill": "pipeline.run",
    "load_subtask": "data.loading",
    "load_teacher": "models.loading",
    "logit_distillation": "losses.subspace",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` loads no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"subdistill_hf.{_HOME[name]}"), name)
    raise AttributeError(f"module 'subdistill_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
