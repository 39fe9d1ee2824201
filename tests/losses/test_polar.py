"""Polar factors by decomposition and by products, against an eigendecomposition in numpy."""

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from subdistill_hf.losses.polar import SMALLEST, STEPS, is_by_products, polar_factor, polar_factors_by_products


def orthonormal(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.linalg.qr(torch.randn(max(rows, columns), max(rows, columns), generator=generator).double()).Q
    return square[:rows, :columns]


def with_singular_values(values, rows, columns, seed=0):
    """A matrix with these singular values, and its polar factor."""
    count = min(rows, columns)
    left, right = orthonormal(rows, count, seed), orthonormal(columns, count, seed + 1)
    return left @ torch.diag(torch.as_tensor(values).double()) @ right.T, left @ right.T


def slow_polar_factor(matrix):
    """(C Cᵀ)^(-1/2) C, for rows that are independent."""
    squares, vectors = np.linalg.eigh((matrix @ matrix.T).numpy())
    return torch.from_numpy(vectors @ np.diag(squares**-0.5) @ vectors.T) @ matrix


def one(matrix):
    return polar_factors_by_products(matrix[None])[0]


@pytest.mark.parametrize("function", [polar_factor, one])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (3, 7), (48, 48)])
def test_it_is_what_an_eigendecomposition_gives(function, rows, columns):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    torch.testing.assert_close(function(matrix), slow_polar_factor(matrix), rtol=0, atol=1e-9)


@pytest.mark.parametrize("function", [polar_factor, one])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
@pytest.mark.parametrize("smallest", [1, 1e-3, 1e-6, 10 * SMALLEST])
@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (5, 9), (9, 5), (128, 128)])
def test_small_singular_values_have_their_direction(function, scale, smallest, rows, columns):
    values = np.geomspace(smallest, 1, min(rows, columns))
    matrix, expected = with_singular_values(values, rows, columns)
    torch.testing.assert_close(function(scale * matrix), expected, rtol=0, atol=1e-8)


def test_float32_comes_back_as_float32():
    matrix, expected = with_singular_values([1, 1e-1, 1e-2], 3, 3)
    for function in (polar_factor, one):
        found = function(matrix.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_stacked_matrices_are_each_by_itself_and_zeros_stay_behind():
    shapes = [(4, 4), (2, 3), (1, 5)]
    stack, alone = torch.zeros(3, 4, 5, dtype=torch.float64), []
    for index, (rows, columns) in enumerate(shapes):
        matrix, _ = with_singular_values(np.geomspace(1e-4, 1, rows), rows, columns, seed=index)
        stack[index, :rows, :columns] = matrix
        alone.append(one(matrix))
    found = polar_factors_by_products(stack)
    for matrix, expected, (rows, columns) in zip(found, alone, shapes, strict=True):
        torch.testing.assert_close(matrix[:rows, :columns], expected, rtol=0, atol=1e-12)
        assert matrix[rows:].count_nonzero() == matrix[:, columns:].count_nonzero() == 0


def test_open_directions_are_left_out_by_products_and_filled_by_decomposition():
    matrix, _ = with_singular_values([1, 0.5, 0, 0], 4, 4)
    found = one(matrix)
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values, torch.tensor([1, 1, 0, 0]).double(), rtol=0, atol=1e-8)
    filled = polar_factor(matrix)
    torch.testing.assert_close(filled @ filled.T, torch.eye(4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found @ matrix.T, filled @ matrix.T, rtol=0, atol=1e-8)  # alike where C is not zero
    assert one(torch.zeros(3, 3)).count_nonzero() == 0
    torch.testing.assert_close(polar_factor(torch.zeros(3, 3)).abs(), torch.eye(3))


def test_no_singular_value_exceeds_one_on_the_way():
    for value in np.geomspace(1e-12, 1, 200):
        assert 0 <= one(torch.tensor([[value, 0.0], [0.0, 1.0]]).double())[0, 0] <= 1 + 1e-12
    assert one(torch.diag(torch.tensor([SMALLEST, 1.0])).double())[0, 0] > 1 - 1e-6, STEPS


def test_by_products_no_value_is_looked_at():
    with FakeTensorMode():  # there are none
        assert polar_factors_by_products(torch.empty(2, 4, 6)).shape == (2, 4, 6)


def test_products_are_for_devices_that_would_wait():
    assert not is_by_products(torch.device("cpu"))
    assert is_by_products(torch.device("cuda"))
    assert not is_by_products(torch.device("mps"))  # which has no float64


def test_what_is_not_finite_stays_so_for_the_loss_to_tell():
    for function, value in itertools.product((polar_factor, one), (float("nan"), float("inf"), -float("inf"))):
        assert not function(torch.tensor([[1.0, value], [0.0, 1.0]])).isfinite().any()
