"""What a resumed run must share with the run that wrote the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from torch import nn

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.models.adapters import base_of, frozen_names
from subdistill_hf.models.heads import names_of
from subdistill_hf.models.loading import count_parameters, weights_digest
from subdistill_hf.teacher.teacher import Teaching

METHOD_OPTIONS = ("method", "basis", "centring", "normalise_energy", "positions")


class RunIdentity:
    """The identity of a run; it remembers the digest of weights that do not change."""

    def __init__(self) -> None:
        self._frozen: str | None = None

    def of(
        self,
        args: SubDistillConfig,
        teaching: Teaching | None,
        student: nn.Module,
        pairs: Sequence[LayerPair],
        views: Mapping[str, Any] | None,
        rotation: str,
    ) -> dict[str, Any]:
        """Teacher, student, classes, layers, losses and, where they are known, views, JSON-able."""
        class_ids = None if teaching is None or teaching.class_ids is None else teaching.class_ids.tolist()
        return {
            "teacher": {
                "name": None if teaching is None else teaching.name,
                "digest": None if teaching is None else teaching.digest,
            },
            "student": self._student(student),
            "classes": {"teacher_ids": class_ids, "names": names_of(getattr(student, "config", None))},
            "layers": [str(pair) for pair in pairs],
            "method": {name: getattr(args, name) for name in METHOD_OPTIONS} | {"rotation": rotation},
            "views": views,
            "weights": dict(args.weights(), temperature=args.temperature, dkd_beta=args.dkd_beta),
        }

    def _student(self, student: nn.Module) -> dict[str, Any]:
        """Its architecture; with an adapter, whose checkpoints hold no other weights, also the frozen ones."""
        base = base_of(student)
        identity = {"model": type(base).__name__, "parameters": count_parameters(student)}
        if isinstance(student, PeftModel):
            if self._frozen is None:
                self._frozen = weights_digest(base, frozen_names(student))
            identity["frozen"] = self._frozen
        return identity
