"""The matrices of the bases, and their leading eigenvectors, however they are found."""

import numpy as np
import pytest
import torch

from sampled import draw, projector
from subdistill_hf.config.bases import BASES
from subdistill_hf.core import bases
from subdistill_hf.core.bases import leading_eigenvectors, matrix_of, prca_matrix, random_matrix
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace


@pytest.fixture(scope="module")
def moments():
    return Moments.of(*draw())


def test_the_prca_matrix_is_the_formula_and_positive_semi_definite():
    activation, _ = draw()
    for context in (-activation, -0.01 * activation, draw(seed=1)[1]):  # the first make C_ac + C_acT very negative
        moments = Moments.of(activation, context)
        a = activation.transpose(0, 1).flatten(1).numpy()
        c = context.transpose(0, 1).flatten(1).numpy()
        a = a - a.mean(axis=1, keepdims=True)
        c_a, c_c, c_ac = a @ a.T / 84, c @ c.T / 84, a @ c.T / 84
        t_a, t_c = np.trace(c_a), np.trace(c_c)
        expected = c_ac + c_ac.T + 2 * np.sqrt(t_c / t_a) * c_a + 2 * np.sqrt(t_a / t_c) * c_c
        found = prca_matrix(moments).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
        eigenvalues = np.linalg.eigvalsh(found)
        assert eigenvalues[0] > -1e-10 * eigenvalues[-1]


def test_the_prca_subspace_does_not_depend_on_the_contexts_scale():
    activation, context = draw()
    expected = Subspace.fit(Moments.of(activation, context), 3).basis
    for scale in (1e-6, 1e6):
        scaled = Subspace.fit(Moments.of(activation, scale * context), 3).basis
        torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-9)


def test_the_random_basis_is_the_same_for_a_seed_and_ignores_the_data(moments):
    other = Moments.of(*draw(seed=5))
    assert torch.equal(Subspace.fit(moments, 4, "random").basis, Subspace.fit(other, 4, "random").basis)
    assert torch.equal(random_matrix(moments, 3), random_matrix(other, 3))
    assert not torch.equal(random_matrix(moments, 3), random_matrix(moments, 4))


def test_the_identity_basis_is_the_first_channels(moments):
    for dimensions in (1, 4, 6):
        basis = Subspace.fit(moments, dimensions, "identity").basis
        assert torch.equal(basis, torch.eye(6, dtype=torch.float64)[:, :dimensions])


def test_bases_differ(moments):
    found = [Subspace.fit(moments, 2, kind).basis for kind in BASES]
    for index, basis in enumerate(found):
        for other in found[:index]:
            assert (projector(basis) - projector(other)).abs().max() > 1e-2


# Eigenvectors


SPECTRA = {
    "slowly falling": lambda places: 1 / places,
    "steeply falling": lambda places: 0.9**places,
    "of both signs": lambda places: torch.where(places % 2 == 0, -1, 1) / places,
    "of rank 12": lambda places: (places <= 12) / places,
}


def made(width, spectrum):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
    values = SPECTRA[spectrum](torch.arange(1, width + 1).double())
    matrix = (vectors * values) @ vectors.T
    order = values.argsort(descending=True)
    return (matrix + matrix.T) / 2, values[order], vectors[:, order]


@pytest.fixture
def partial(monkeypatch):
    """The block Krylov method at a size that a test can afford, and a full decomposition of large matrices refused."""
    monkeypatch.setattr(bases, "LARGE", 300)
    whole = torch.linalg.eigh

    def small(matrix):
        assert len(matrix) <= 300, "everything was decomposed"
        return whole(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", small)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_part_agrees_with_the_whole(partial, spectrum):
    matrix, values, vectors = made(320, spectrum)
    found, columns = leading_eigenvectors(matrix, 10)
    torch.testing.assert_close(found, values[:10], rtol=0, atol=1e-11)
    torch.testing.assert_close(columns.T @ columns, torch.eye(10).double(), rtol=0, atol=1e-11)
    expected = vectors[:, :10]
    torch.testing.assert_close(columns @ columns.T, expected @ expected.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("width", "count"), [(40, 3), (320, 200), (5, 5)])
def test_small_matrices_and_large_shares_are_decomposed_as_a_whole(width, count):
    matrix, values, vectors = made(width, "slowly falling")
    found, columns = leading_eigenvectors(matrix, count)
    torch.testing.assert_close(found, values[:count], rtol=0, atol=1e-12)
    torch.testing.assert_close(columns @ columns.T, vectors[:, :count] @ vectors[:, :count].T, rtol=0, atol=1e-9)


def test_where_the_part_is_not_found_the_whole_is_taken(monkeypatch):
    monkeypatch.setattr(bases, "LARGE", 300)
    monkeypatch.setattr(bases, "RESTARTS", 0)
    matrix, values, _ = made(320, "slowly falling")
    torch.testing.assert_close(leading_eigenvectors(matrix, 4)[0], values[:4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gradient_pca", "prca_signed"])
@pytest.mark.parametrize("dimensions", [3, 5, 12])
def test_directions_beyond_the_rank_of_the_contexts_are_those_of_most_variance(kind, dimensions):
    """Contexts of float32 span three of 12 directions, as at a last stage of four classes."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(3, 0.5, 12, dtype=torch.float64)
    activation = torch.randn(12, 400, generator=generator, dtype=torch.float64) * scales[:, None]
    span = torch.linalg.qr(torch.randn(12, 3, generator=generator, dtype=torch.float64)).Q
    mixed = torch.randn(3, 400, generator=generator, dtype=torch.float64) + span.T @ activation
    moments = Moments.of(activation, (span @ mixed).float().double())
    subspace = Subspace.fit(moments, dimensions, kind)
    # by hand: what is left of the activations outside of the span of the contexts, and of their image under C_ac
    matrix = matrix_of(kind, moments)
    values, vectors = torch.linalg.eigh(matrix)
    decided = vectors[:, values.abs() > 1e-5 * values.abs().max()]
    outside = torch.eye(12, dtype=torch.float64) - decided @ decided.T
    variances = torch.linalg.eigvalsh(outside @ moments.covariance @ outside).flip(0)
    positive = int((values > 1e-5 * values.abs().max()).sum())
    filled = min(dimensions - positive, 12 - decided.shape[1])
    assert filled >= 0
    found = ((moments.covariance @ subspace.basis) * subspace.basis).sum(dim=0)[positive : positive + filled]
    torch.testing.assert_close(found, variances[:filled], rtol=1e-6, atol=1e-9)
    identity = subspace.basis.T @ subspace.basis
    torch.testing.assert_close(identity, torch.eye(dimensions, dtype=torch.float64), rtol=0, atol=1e-9)
