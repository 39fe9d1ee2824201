"""The registry of bases: one entry for each way to choose the directions of a subspace.

A basis is one function of moments in `core.bases` and one entry here, which names it as `module:name`, so that the
command line knows the bases without importing torch. An entry that is added at run time may hold the function itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Basis:
    """One way to choose the directions of a subspace.

    Attributes:
        label: what tables and plots call it.
        matrix: function of `Moments` that gives the symmetric matrix `(d, d)` whose leading eigenvectors are the
            directions; a seeded one takes the seed too.
        needs_context: whether the contexts matter, which cost a backward pass of the teacher.
        seeded: whether the directions are random.
        rounding: eigenvalues of at most this share of the largest are rounding of contexts in float32; such directions
            are chosen by the variance of the activations instead. 0 where the matrix is not of contexts alone.
    """

    label: str
    matrix: str | Callable[..., Any]
    needs_context: bool = True
    seeded: bool = False
    rounding: float = 0.0


BASES: dict[str, Basis] = {
    "prca": Basis("PRCA", "subdistill_hf.core.bases:prca_matrix"),
    "prca_signed": Basis("plain PRCA", "subdistill_hf.core.bases:prca_signed_matrix", rounding=1e-6),
    "pca": Basis("PCA", "subdistill_hf.core.bases:pca_matrix", needs_context=False),
    "gradient_pca": Basis("gradient PCA", "subdistill_hf.core.bases:gradient_pca_matrix", rounding=1e-12),
    "random": Basis("random", "subdistill_hf.core.bases:random_matrix", needs_context=False, seeded=True),
    "identity": Basis("first channels", "subdistill_hf.core.bases:identity_matrix", needs_context=False),
}
"""Name to basis, in the order of tables."""
