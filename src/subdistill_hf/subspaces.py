"""Streaming moments of activations and contexts, and the subspaces that follow from them."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from subdistill_hf.activations import Features
from subdistill_hf.errors import SubDistillError

SUBSPACES_FILE = "subspaces"


class SubspaceError(SubDistillError):
    """Moments from which the asked subspace cannot be estimated."""


@dataclass
class Moments:
    """First and second moments of one layer's activations a and contexts c, in float64.

    Updated batch by batch and merged across shards; the memory is three d-by-d matrices, whatever the number
    of images. Sums are kept about the running mean, so that a large mean costs no digits.

    Attributes:
        count: number of positions seen, n.
        mean: mean activation `(d,)`, μ.
        scatter: `(d, d)`, the sum of (a - μ)(a - μ)ᵀ.
        context_sum: `(d,)`, the sum of c.
        context_scatter: `(d, d)`, the sum of c cᵀ (not centred: METHOD step 1).
        cross_scatter: `(d, d)`, the sum of (a - μ) cᵀ.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    context_sum: Tensor
    context_scatter: Tensor
    cross_scatter: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        """Moments of nothing, for activations of `width` channels."""
        vector, matrix = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in (width, (width, width)))
        return cls(0, vector, matrix, vector.clone(), matrix.clone(), matrix.clone())

    @classmethod
    def of(cls, activation: Tensor, context: Tensor | None = None) -> Moments:
        """The moments of one batch.

        Args:
            activation: `(B, d, P)`, or `(d, N)` positions side by side.
            context: the margin's derivative, same shape; `None` counts as zero.

        Raises:
            SubspaceError: for values that are not finite.
        """
        a = _columns(activation)
        mean = a.mean(dim=1)
        centred = a - mean[:, None]
        scatter = centred @ centred.T
        if context is None:
            zero = torch.zeros_like(scatter)
            moments = cls(a.shape[1], mean, scatter, torch.zeros_like(mean), zero, zero.clone())
        else:
            c = _columns(context)
            moments = cls(a.shape[1], mean, scatter, c.sum(dim=1), c @ c.T, centred @ c.T)
        if not (
            math.isfinite(float(moments.scatter.trace())) and math.isfinite(float(moments.context_scatter.trace()))
        ):
            raise SubspaceError("an activation or a context is NaN or infinite: check the teacher and its input")
        return moments

    @property
    def width(self) -> int:
        """Number of channels d."""
        return int(self.mean.shape[0])

    def update(self, activation: Tensor, context: Tensor | None = None) -> None:
        """Add one batch, in place; arguments as for `of`."""
        self.add(Moments.of(activation, context))

    def add(self, other: Moments) -> None:
        """Add the positions of `other`, in place."""
        if other.count == 0:
            return
        total = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * (other.count / total)
        self.scatter = self.scatter + other.scatter
        self.cross_scatter = self.cross_scatter + other.cross_scatter
        for part in (self, other):  # sums about the part's mean become sums about the common mean
            shift = part.mean - mean
            self.scatter += part.count * torch.outer(shift, shift)
            self.cross_scatter += torch.outer(shift, part.context_sum)
        self.context_sum = self.context_sum + other.context_sum
        self.context_scatter = self.context_scatter + other.context_scatter
        self.count, self.mean = total, mean

    @classmethod
    def merged(cls, shards: Iterable[Moments]) -> Moments:
        """The moments of all shards together, as if one process had seen all positions."""
        shards = list(shards)
        total = cls.empty(shards[0].width, shards[0].mean.device)
        for shard in shards:
            total.add(shard)
        return total

    def synchronised(self) -> Moments:
        """The moments over all processes of the default process group (itself when there is only one)."""
        if not several_processes():
            return self
        names = ("mean", "scatter", "context_sum", "context_scatter", "cross_scatter")
        parts: list[list[Tensor]] = []
        for tensor in (
            torch.tensor([self.count], device=self.mean.device),
            *(getattr(self, name) for name in names),
        ):
            gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(gathered, tensor.contiguous())
            parts.append(gathered)
        return Moments.merged(Moments(int(shard[0]), *shard[1:]) for shard in zip(*parts, strict=True))

    @property
    def covariance(self) -> Tensor:
        """C_a = E[(a - μ)(a - μ)ᵀ], `(d, d)`."""
        return self.scatter / self.count

    @property
    def context_covariance(self) -> Tensor:
        """C_c = E[c cᵀ], `(d, d)`."""
        return self.context_scatter / self.count

    @property
    def cross_covariance(self) -> Tensor:
        """C_ac = E[(a - μ) cᵀ], `(d, d)`."""
        return self.cross_scatter / self.count


def several_processes() -> bool:
    """Whether a process group is up, whose processes share their statistics."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _columns(values: Tensor) -> Tensor:
    """`(B, d, P)` or `(d, N)` as `(d, N)` in float64 (on the CPU where the device has no float64)."""
    if values.device.type == "mps":
        values = values.cpu()
    if values.dim() == 3:
        values = values.transpose(0, 1).flatten(1)
    return values.to(torch.float64)


# Bases: each maps moments to a symmetric matrix whose leading eigenvectors span the subspace.


def prca_matrix(moments: Moments) -> Tensor:
    """M = C_ac + C_acᵀ + 2√(τ_c/τ_a) C_a + 2√(τ_a/τ_c) C_c (METHOD step 1.5), positive semi-definite.

    Where the contexts vanish everywhere the ratio is undefined: C_a is used alone, with a warning.
    """
    if _contexts_vanish(moments):
        return moments.covariance
    ratio = torch.sqrt(moments.context_covariance.trace() / moments.covariance.trace())
    cross = moments.cross_covariance
    return cross + cross.T + 2 * ratio * moments.covariance + (2 / ratio) * moments.context_covariance


def prca_signed_matrix(moments: Moments) -> Tensor:
    """C_ac + C_acᵀ: plain PRCA; eigenvalues have both signs and are sorted from the largest down."""
    if _contexts_vanish(moments):
        return moments.covariance
    return moments.cross_covariance + moments.cross_covariance.T


def pca_matrix(moments: Moments) -> Tensor:
    """C_a: principal component analysis."""
    return moments.covariance


def gradient_pca_matrix(moments: Moments) -> Tensor:
    """C_c: the directions of the margin's gradient alone."""
    return moments.covariance if _contexts_vanish(moments) else moments.context_covariance


def _contexts_vanish(moments: Moments) -> bool:
    """Whether the contexts are zero at every position; warns, since a basis made of them is then C_a's."""
    activation_trace = float(moments.covariance.trace())
    context_trace = float(moments.context_covariance.trace())
    if context_trace > 0 and math.isfinite(activation_trace / context_trace):
        return False
    warnings.warn(
        "the contexts are zero at every position of this layer (a saturated margin, a zero head, or tokens "
        "that the logits do not depend on): the basis falls back to the covariance of the activations",
        stacklevel=3,
    )
    return True


def random_matrix(moments: Moments, seed: int = 0) -> Tensor:
    """A random symmetric matrix: its eigenvectors are a uniformly random basis, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(moments.width, moments.width, dtype=torch.float64, generator=generator)
    return (noise + noise.T).to(moments.mean.device)


def identity_matrix(moments: Moments) -> Tensor:
    """Diagonal with descending entries: the subspace is the layer's first K channels."""
    return torch.arange(moments.width, 0, -1, dtype=torch.float64, device=moments.mean.device).diag()


BASES: dict[str, Callable[[Moments], Tensor]] = {
    "prca": prca_matrix,
    "prca_signed": prca_signed_matrix,
    "pca": pca_matrix,
    "gradient_pca": gradient_pca_matrix,
    "random": random_matrix,
    "identity": identity_matrix,
}


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
    """

    mean: Tensor
    basis: Tensor
    energies: Tensor
    eigenvalues: Tensor
    total_energy: float
    count: int
    kind: str = "prca"
    _cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    @classmethod
    def fit(cls, moments: Moments, dimensions: int | None = None, kind: str = "prca", seed: int = 0) -> Subspace:
        """The subspace of `dimensions` K directions (all d when `None` or larger than d).

        `seed` is that of the `random` basis; the others are determined by the moments.

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
                f"at least {dimensions + 1}. Use more images, more positions of each, or a narrower student "
                "layer"
            )
        covariance = moments.covariance
        rounding = max(
            (64 * torch.finfo(torch.float64).eps) ** 2 * float(moments.mean.square().sum()),
            torch.finfo(torch.float32).tiny,  # the loss, in float32, divides by the variance
        )
        if not float(covariance.trace()) > rounding:
            raise SubspaceError("the layer's activations do not vary over the images: there is nothing to match")
        matrix = random_matrix(moments, seed) if kind == "random" else BASES[kind](moments)
        values, vectors = torch.linalg.eigh(matrix)
        basis = _with_fixed_signs(vectors.flip(1)[:, :dimensions])
        energies = ((covariance @ basis) * basis).sum(dim=0)
        if not float(energies.sum()) > rounding:
            raise SubspaceError(
                f"the activations do not vary in the {dimensions} directions of the basis {kind!r}: there is "
                "nothing to match. Use another basis or more dimensions"
            )
        return cls(
            mean=moments.mean.cpu().clone(),
            basis=basis.cpu().contiguous(),
            energies=energies.cpu(),
            eigenvalues=values.flip(0)[:dimensions].cpu().contiguous(),
            total_energy=float(covariance.trace()),
            count=moments.count,
            kind=kind,
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
        """e: the variance that the subspace keeps (METHOD step 1.6)."""
        return float(self.energies.sum())

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
        )

    def _tensors(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U, μ and Uᵀμ in the dtype and on the device of `values`, converted once."""
        key = (values.device, values.dtype)
        if key not in self._cast:
            offset = torch.matmul(self.basis.T, self.mean)
            self._cast[key] = (self.basis.to(*key), self.mean.to(*key), offset.to(*key))
        return self._cast[key]

    def project(self, values: Tensor) -> Tensor:
        """t = Uᵀ(a - μ) (METHOD step 2): activations `(B, d, P)` to coordinates `(B, K, P)`."""
        basis, _, offset = self._tensors(values)  # Uᵀa - Uᵀμ: a - μ would be a copy of all activations
        if values.transpose(1, 2).is_contiguous():
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


def _with_fixed_signs(basis: Tensor) -> Tensor:
    """Flip columns so that the entry of largest magnitude of each is positive."""
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0)


def collect_moments(
    stream: Iterable[Mapping[str, tuple[Features, Features | None]]],
    without_prefix: Collection[str] = (),
    positions: int | None = None,
    seed: int = 0,
) -> dict[str, Moments]:
    """Accumulate the moments of every layer over a stream of activations and contexts.

    Args:
        stream: batches of layer name to `(activation, context)`, as `relevance.activations_and_contexts`
            yields.
        without_prefix: layers whose class and register tokens are left out, because the loss leaves them out.
        positions: how many positions to draw per image, without replacement and the same for a and c (the
            released code draws 20); all of them with `None`.
        seed: of the draw; it does not depend on how the images are batched.

    Raises:
        SubspaceError: when the stream is empty.
    """
    moments: dict[str, Moments] = {}
    generators: dict[str, torch.Generator] = {}
    for batch in stream:
        for name, (activation, context) in batch.items():
            if name in without_prefix:
                activation = activation.without_prefix()
                context = None if context is None else context.without_prefix()
            a, c = activation.values, None if context is None else context.values
            if positions is not None and positions < a.shape[2]:
                generator = generators.setdefault(name, torch.Generator().manual_seed(seed))
                drawn = torch.stack(
                    [torch.randperm(a.shape[2], generator=generator)[:positions] for _ in range(a.shape[0])]
                )
                index = drawn.to(a.device)[:, None, :].expand(-1, a.shape[1], -1)
                a, c = a.gather(2, index), None if c is None else c.gather(2, index)
            if name in moments:
                moments[name].update(a, c)
            else:
                moments[name] = Moments.of(a, c)
    if not moments:
        raise SubspaceError("there are no images to estimate the subspaces from")
    return {name: layer.synchronised() for name, layer in moments.items()}


def save_subspaces(subspaces: Mapping[str, Subspace], folder: str | Path) -> None:
    """Write subspaces, keyed by layer, as `subspaces.safetensors` and `subspaces.json` in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}/{name}": getattr(subspace, name).clone()  # truncations share memory, which safetensors refuses
        for layer, subspace in subspaces.items()
        for name in ("mean", "basis", "energies", "eigenvalues")
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
        )
        for layer, entry in described.items()
    }
