"""The leading eigenvectors are those of the full decomposition, however they are found."""

import pytest
import torch

from subdistill_hf.core import eigenvectors
from subdistill_hf.core.eigenvectors import leading_eigenvectors

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
    monkeypatch.setattr(eigenvectors, "LARGE", 300)
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
    monkeypatch.setattr(eigenvectors, "LARGE", 300)
    monkeypatch.setattr(eigenvectors, "RESTARTS", 0)
    matrix, values, _ = made(320, "slowly falling")
    torch.testing.assert_close(leading_eigenvectors(matrix, 4)[0], values[:4], rtol=0, atol=1e-12)
