"""The subspaces of teacher layers: fitted to moments, projected on, saved and loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from subdistill_hf.config.bases import BASES
from subdistill_hf.core.bases import filled_by_variance, leading_eigenvectors, matrix_of
from subdistill_hf.core.moments import Moments
from subdistill_hf.errors import SubspaceError

SUBSPACES_FILE = "subspaces"
FEW_POSITIONS = 16  # below, a product for each image is slower than a copy and one product for all


@dataclass(frozen=True, eq=False)
class Subspace:
    """The K-dimensional subspace of a teacher layer that a student is made to match.

    Attributes:
        mean: mean activation μ `(d,)`.
        basis: orthonormal columns U `(d, K)`, leading direction first; the entry of largest magnitude of each
            column is positive.
        energies: variance of the activations along each column `(K,)`.
        eigenvalues: what the columns were sorted by `(K,)`.
        total_energy: variance of the activations in all d directions.
        count: number of positions the moments were taken over.
        kind: name of the basis (a key of `BASES`).
        energies_compared: the same as `energies`, of the layer's map as it is compared, which is pooled where the
            student's grid is smaller `(K,)`; `None` where it is compared as it is.
    """

    mean: Tensor
    basis: Tensor
    energies: Tensor
    eigenvalues: Tensor
    total_energy: float
    count: int
    kind: str = "prca"
    energies_compared: Tensor | None = None
    _cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    @classmethod
    def fit(
        cls,
        moments: Moments,
        dimensions: int | None = None,
        kind: str = "prca",
        seed: int = 0,
        pooled: Moments | None = None,
    ) -> Subspace:
        """The subspace of `dimensions` K directions (all d when `None` or larger than d).

        Args:
            moments: of activations and contexts at the layer's own positions.
            dimensions: K.
            kind: name of the basis.
            seed: of a seeded basis; the others are determined by the moments.
            pooled: moments of the activations as they are compared, where they are pooled to a smaller grid first.

        Raises:
            SubspaceError: for an unknown basis, fewer than one dimension, or fewer positions than K + 1.
        """
        if kind not in BASES:
            raise SubspaceError(f"unknown basis {kind!r}: expected one of {', '.join(BASES)}")
        dimensions = moments.width if dimensions is None else min(dimensions, moments.width)
        if dimensions < 1:
            raise SubspaceError(f"a subspace needs at least one dimension, found {dimensions}")
        if moments.count <= dimensions:
            raise SubspaceError(
                f"{moments.count} positions cannot determine a subspace of {dimensions} dimensions: expected "
                f"at least {dimensions + 1}. Use more images, more positions of each, or fewer dimensions "
                "(a narrower layer of the student)"
            )
        covariance = moments.covariance
        rounding = max(
            (64 * torch.finfo(torch.float64).eps) ** 2 * float(moments.mean.square().sum()),
            torch.finfo(torch.float32).tiny,  # the loss, in float32, divides by the variance
        )
        if not float(covariance.trace()) > rounding:
            raise SubspaceError("the layer's activations do not vary over the images: there is nothing to match")
        matrix = matrix_of(kind, moments, seed)
        values, vectors = leading_eigenvectors(matrix, dimensions)
        vectors = filled_by_variance(matrix, covariance, values, vectors, BASES[kind].rounding)
        basis = _with_fixed_signs(vectors)
        energies = _variances(covariance, basis)
        if not float(energies.sum()) > rounding:
            raise SubspaceError(
                f"the activations do not vary in the {dimensions} directions of the basis {kind!r}: there is "
                "nothing to match. Use another basis or more dimensions"
            )
        return cls(
            mean=moments.mean.cpu().clone(),
            basis=basis.cpu().contiguous(),
            energies=energies.cpu(),
            eigenvalues=values.cpu().contiguous(),
            total_energy=float(covariance.trace()),
            count=moments.count,
            kind=kind,
            energies_compared=None if pooled is None else _variances(pooled.covariance, basis).cpu(),
        )

    @property
    def width(self) -> int:
        """Number of channels d of the layer."""
        return int(self.basis.shape[0])

    @property
    def dimensions(self) -> int:
        """Number of directions K."""
        return int(self.basis.shape[1])

    @property
    def energy(self) -> float:
        """e: the variance that the subspace keeps (docs/method.md, "Energy")."""
        return float(self.energies.sum())

    @property
    def energy_compared(self) -> float:
        """e': the energy of the target at the positions where it is compared (docs/method.md, "Energy")."""
        return self.energy if self.energies_compared is None else float(self.energies_compared.sum())

    @property
    def energy_fraction(self) -> float:
        """e as a share of the layer's whole variance."""
        return self.energy / self.total_energy

    def truncated(self, dimensions: int) -> Subspace:
        """The subspace of the first `dimensions` directions."""
        if not 1 <= dimensions <= self.dimensions:
            raise SubspaceError(f"expected 1 to {self.dimensions} dimensions, found {dimensions}")
        return Subspace(
            self.mean,
            self.basis[:, :dimensions].contiguous(),
            self.energies[:dimensions].contiguous(),
            self.eigenvalues[:dimensions].contiguous(),
            self.total_energy,
            self.count,
            self.kind,
            None if self.energies_compared is None else self.energies_compared[:dimensions].contiguous(),
        )

    def _tensors(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U, μ and Uᵀμ in the dtype and on the device of `values`, converted once."""
        key = (values.device, values.dtype)
        if key not in self._cast:
            offset = torch.matmul(self.basis.T, self.mean)
            self._cast[key] = (self.basis.to(*key), self.mean.to(*key), offset.to(*key))
        return self._cast[key]

    def project(self, values: Tensor) -> Tensor:
        """t = Uᵀ(a - μ) (docs/method.md, "Target"): activations `(B, d, P)` to coordinates `(B, K, P)`."""
        basis, _, offset = self._tensors(values)  # Uᵀa - Uᵀμ: a - μ would be a copy of all activations
        if values.transpose(1, 2).is_contiguous() or values.shape[2] < FEW_POSITIONS:
            return F.linear(values.transpose(1, 2), basis.T, -offset).transpose(1, 2)
        maps = basis.T.expand(len(values), -1, -1)
        return torch.baddbmm(offset[:, None], maps, values, beta=-1)

    def reconstruct(self, coordinates: Tensor) -> Tensor:
        """μ + U t: coordinates `(B, K, P)` to the nearest activations in the subspace `(B, d, P)`."""
        basis, mean, _ = self._tensors(coordinates)
        return mean[:, None] + torch.matmul(basis, coordinates)

    @property
    def digest(self) -> str:
        """SHA-256 of mean and basis, in hexadecimal digits."""
        values = torch.cat([self.mean[:, None], self.basis], dim=1).cpu().contiguous()
        return hashlib.sha256(values.numpy().tobytes()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Every figure but the basis itself, JSON-able."""
        return {
            "kind": self.kind,
            "width": self.width,
            "dimensions": self.dimensions,
            "count": self.count,
            "total_energy": self.total_energy,
            "energy_fraction": self.energy_fraction,
            "energies": self.energies.tolist(),
            "eigenvalues": self.eigenvalues.tolist(),
        }

    def save(self, folder: str | Path) -> None:
        """Write the subspace to `folder` (safetensors and JSON)."""
        save_subspaces({"": self}, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Subspace:
        """Read what `save` wrote."""
        return load_subspaces(folder)[""]


def fit_layer(
    layer: str,
    moments: Moments,
    dimensions: int | None = None,
    kind: str = "prca",
    seed: int = 0,
    pooled: Moments | None = None,
) -> Subspace:
    """`Subspace.fit`, with errors that name the layer."""
    try:
        return Subspace.fit(moments, dimensions, kind, seed, pooled)
    except SubspaceError as error:
        raise SubspaceError(f"layer {layer!r}: {error}") from error


def _variances(covariance: Tensor, basis: Tensor) -> Tensor:
    """The variance along each column of a basis `(d, K)`, `(K,)`."""
    return ((covariance @ basis) * basis).sum(dim=0)


def _with_fixed_signs(basis: Tensor) -> Tensor:
    """Flip columns so that the entry of largest magnitude of each is positive."""
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0)


def save_subspaces(subspaces: Mapping[str, Subspace], folder: str | Path) -> None:
    """Write subspaces, keyed by layer, as `subspaces.safetensors` and `subspaces.json` in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}/{name}": getattr(subspace, name).clone()  # truncations share memory, which safetensors refuses
        for layer, subspace in subspaces.items()
        for name in ("mean", "basis", "energies", "eigenvalues", "energies_compared")
        if getattr(subspace, name) is not None
    }
    described = {
        layer: {
            "kind": subspace.kind,
            "count": subspace.count,
            "total_energy": subspace.total_energy,
            "dimensions": subspace.dimensions,
            "energy": subspace.energy,
        }
        for layer, subspace in subspaces.items()
    }
    save_file(tensors, folder / f"{SUBSPACES_FILE}.safetensors")
    (folder / f"{SUBSPACES_FILE}.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_subspaces(folder: str | Path) -> dict[str, Subspace]:
    """Read what `save_subspaces` wrote, in the order it was written."""
    folder = Path(folder)
    tensors = load_file(folder / f"{SUBSPACES_FILE}.safetensors")
    described = json.loads((folder / f"{SUBSPACES_FILE}.json").read_text(encoding="utf-8"))
    return {
        layer: Subspace(
            mean=tensors[f"{layer}/mean"],
            basis=tensors[f"{layer}/basis"],
            energies=tensors[f"{layer}/energies"],
            eigenvalues=tensors[f"{layer}/eigenvalues"],
            total_energy=entry["total_energy"],
            count=entry["count"],
            kind=entry["kind"],
            energies_compared=tensors.get(f"{layer}/energies_compared"),
        )
        for layer, entry in described.items()
    }
