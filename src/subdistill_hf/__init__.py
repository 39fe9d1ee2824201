"""SubDistill for the Hugging Face ecosystem: distil a tiny expert for just the classes you need."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from subdistill_hf.config import SubDistillConfig as SubDistillConfig
    from subdistill_hf.data import load_subtask as load_subtask
    from subdistill_hf.errors import SubDistillError as SubDistillError
    from subdistill_hf.layers import LayerPair as LayerPair
    from subdistill_hf.losses import SubspaceAlignment as SubspaceAlignment
    from subdistill_hf.losses import logit_distillation as logit_distillation
    from subdistill_hf.models import load_teacher as load_teacher
    from subdistill_hf.moments import Moments as Moments
    from subdistill_hf.options import DataOptions as DataOptions
    from subdistill_hf.options import TaskOptions as TaskOptions
    from subdistill_hf.run import distill as distill
    from subdistill_hf.students import build_student as build_student
    from subdistill_hf.subspaces import Subspace as Subspace
    from subdistill_hf.subtask import Subtask as Subtask
    from subdistill_hf.trainer import SubDistillTrainer as SubDistillTrainer
    from subdistill_hf.views import ViewCollator as ViewCollator
    from subdistill_hf.views import ViewDataset as ViewDataset

_HOME = {
    "DataOptions": "options",
    "LayerPair": "layers",
    "Moments": "subspaces",
    "SubDistillConfig": "config",
    "SubDistillError": "errors",
    "SubDistillTrainer": "trainer",
    "Subspace": "subspaces",
    "SubspaceAlignment": "losses",
    "Subtask": "subtask",
    "TaskOptions": "options",
    "ViewCollator": "views",
    "ViewDataset": "views",
    "build_student": "students",
    "distill": "run",
    "load_subtask": "data",
    "load_teacher": "models",
    "logit_distillation": "losses",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` loads no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"subdistill_hf.{_HOME[name]}"), name)
    raise AttributeError(f"module 'subdistill_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
