"""The closed-form rotation: against a slow float64 oracle, and against every other rotation."""

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from subdistill_hf.core.activations import to_features
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.losses import procrustes
from subdistill_hf.losses.procrustes import (
    PROCRUSTES,
    SMALLEST,
    STEPS,
    ProcrustesRotation,
    is_by_products,
    polar_factor,
    polar_factors_by_products,
    suited_rotation,
    update_rotations,
)
from subdistill_hf.losses.subspace import CENTRINGS, SubspaceAlignment


def batch(width, batch=6, positions=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, positions, generator=generator, dtype=torch.float64) + 0.7


def maps(width, seed):
    return torch.randn(5, width, 2, 3, generator=torch.Generator().manual_seed(seed)).double() + 1


def moments():
    collected = Moments.empty(6)
    collected.update(torch.randn(300, 6, 4, generator=torch.Generator().manual_seed(9)).double())
    return collected


def random_rotation(dimensions, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return square[:dimensions]


def moment(values, target, centre=True, divide=False):
    """E t hᵀ over images and positions, position by position."""
    h = [vector for image in values.numpy() for vector in image.T]
    t = [vector for image in target.numpy() for vector in image.T]
    if centre:
        mean = sum(h) / len(h)
        h = [vector - mean for vector in h]
    if divide:
        deviation = np.sqrt(sum(vector**2 for vector in h) / len(h) + 1e-5)
        h = [vector / deviation for vector in h]
    return torch.from_numpy(sum(np.outer(b, a) for a, b in zip(h, t, strict=True)) / len(h))


def slow_matrix(moments, momentum):
    """The polar factor of the running cross-moment, by an eigendecomposition."""
    running = 0.0
    for newest in moments:
        running = (1 - momentum) * running + momentum * newest.numpy()
    squares, vectors = np.linalg.eigh(running @ running.T)
    return torch.from_numpy(vectors @ np.diag(squares**-0.5) @ vectors.T @ running)


@pytest.mark.parametrize(("given", "momentum"), [({}, 0.1), ({"momentum": 0.3}, 0.3)])
@pytest.mark.parametrize(("dimensions", "width"), [(4, 4), (3, 5), (1, 2)])
def test_the_matrix_is_the_polar_factor_of_the_running_cross_moment(dimensions, width, given, momentum):
    rotation = ProcrustesRotation(width, dimensions, **given).double()
    batches = [moment(batch(width, seed=seed), batch(dimensions, seed=seed + 10)) for seed in range(3)]
    for newest in batches:
        rotation.update(newest)
    torch.testing.assert_close(rotation.matrix, slow_matrix(batches, momentum), rtol=0, atol=1e-10)


@pytest.mark.parametrize("products", [False, True], ids=["decomposed", "by products"])
def test_several_update_rotations_as_each_by_itself(products, monkeypatch):
    monkeypatch.setattr(procrustes, "is_by_products", lambda device: products)
    shapes = [(4, 4), (3, 5), (2, 2)]
    moments = [moment(batch(width, seed=width), batch(dimensions)) for dimensions, width in shapes]
    together, alone = ([ProcrustesRotation(width, dimensions).double() for dimensions, width in shapes] for _ in "ab")
    stack = torch.zeros(3, 4, 5, dtype=torch.float64)
    for newest, place in zip(moments, stack, strict=True):
        place[: newest.shape[0], : newest.shape[1]] = newest
    matrices = update_rotations(together, stack)
    assert matrices.shape == stack.shape
    for newest, rotation, other, matrix in zip(moments, alone, together, matrices, strict=True):
        rotation.update(newest)
        dimensions, width = newest.shape
        assert torch.equal(rotation.cross_moment, other.cross_moment)
        torch.testing.assert_close(matrix[:dimensions, :width], rotation.matrix, rtol=0, atol=1e-9)
        assert matrix[dimensions:].count_nonzero() == matrix[:, width:].count_nonzero() == 0


def error(matrix, values, target):
    centred = values - values.mean(dim=(0, 2))[:, None]
    return (matrix @ centred - target).square().sum(dim=1).mean().item()


def test_no_other_rotation_has_a_smaller_error():
    rotation, values, target = ProcrustesRotation(4, 4).double(), batch(4), batch(4, seed=1)
    rotation.update(moment(values, target))
    best = error(rotation.matrix, values, target)
    assert all(error(random_rotation(4, 4, seed), values, target) > best for seed in range(200))
    tilt = torch.matrix_exp(1e-3 * torch.triu(torch.ones(4, 4, dtype=torch.float64), 1).sub(torch.ones(4, 4).tril(-1)))
    assert error(rotation.matrix @ tilt, values, target) > best


@pytest.mark.parametrize(("dimensions", "width"), [(5, 5), (3, 5)])
def test_a_rotation_that_relates_the_two_is_found(dimensions, width):
    rotation, values = ProcrustesRotation(width, dimensions).double(), batch(width, batch=200)
    values = values - values.mean(dim=(0, 2))[:, None]
    spread = torch.linalg.cholesky(torch.einsum("bip,bjp->ij", values, values) / (200 * 5))
    white = torch.linalg.solve_triangular(spread, values, upper=False)
    truth = random_rotation(dimensions, width)
    rotation.update(moment(white, truth @ white))
    torch.testing.assert_close(rotation.matrix, truth, rtol=0, atol=1e-10)


def test_it_is_orthonormal_before_training_and_for_dead_channels():
    for values in (None, torch.zeros(2, 4, 3), batch(4).float() * torch.tensor([1.0, 0, 0, 1])[:, None]):
        rotation = ProcrustesRotation(4, 3)
        if values is not None:
            target = batch(3, batch=len(values), positions=values.shape[2]).float()
            rotation.update(moment(values, target))
        product = rotation.matrix @ rotation.matrix.T
        torch.testing.assert_close(product, torch.eye(3), rtol=0, atol=1e-6)


def test_the_scale_of_features_and_targets_does_not_matter():
    values, target = batch(4), batch(4, seed=1)
    first, second = ProcrustesRotation(4, 4).double(), ProcrustesRotation(4, 4).double()
    first.update(moment(values, target))
    second.update(moment(1e-4 * values, 1e3 * target))
    torch.testing.assert_close(first.matrix, second.matrix, rtol=0, atol=1e-9)


def test_small_singular_values_keep_their_direction_in_float32():
    values, target = batch(4, batch=400), torch.empty(0)
    values = values - values.mean(dim=(0, 2))[:, None]
    truth = random_rotation(4, 4)
    target = torch.diag(torch.tensor([1, 1e-1, 1e-2, 1e-3], dtype=torch.float64)) @ truth @ values
    precise, single = ProcrustesRotation(4, 4).double(), ProcrustesRotation(4, 4)
    precise.update(moment(values, target))
    single.update(moment(values.float(), target.float()))
    assert single.matrix.dtype == torch.float32
    torch.testing.assert_close(single.matrix.double(), precise.matrix, rtol=0, atol=1e-3)


def test_nothing_is_learned_and_the_statistics_are_state():
    rotation = ProcrustesRotation(4, 3)
    rotation.update(moment(batch(4), batch(3)).float().requires_grad_())
    assert list(rotation.parameters()) == []
    assert not rotation.matrix.requires_grad
    assert not rotation.cross_moment.requires_grad
    other = ProcrustesRotation(4, 3)
    other.load_state_dict(rotation.state_dict())
    assert torch.equal(other.matrix, rotation.matrix)


@pytest.mark.parametrize("width", [3, 4])  # as wide as the subspace, and wider
@pytest.mark.parametrize("centring", CENTRINGS)
def test_the_alignment_uses_the_best_rotation_of_each_batch_and_keeps_it_in_evaluation(centring, width):
    subspace = Subspace.fit(moments(), 3, "pca")
    alignment = SubspaceAlignment(subspace, width, centring, PROCRUSTES).double()
    by_hand = ProcrustesRotation(width, 3).double()
    for seed in range(3):
        student, teacher = to_features(maps(width, seed), "student"), to_features(maps(6, seed + 5), "teacher")
        student.values.requires_grad_()
        target = alignment.make_target(teacher)
        loss = alignment(student, target)
        h, t = student.values.detach(), target.values.double()
        by_hand.update(moment(h, t, centring != "none", centring == "batch_norm"))
        torch.testing.assert_close(alignment.rotation.matrix, by_hand.matrix, rtol=0, atol=1e-10)
        centred = {"none": student.values}.get(centring, student.values - student.values.mean((0, 2))[:, None])
        if centring == "batch_norm":
            centred = centred * (centred.square().mean((0, 2)) + 1e-5).rsqrt()[:, None]
        expected = (by_hand.matrix @ centred - target.values).square().sum(1).mean() / subspace.energy
        torch.testing.assert_close(loss, expected)
        ours, theirs = (torch.autograd.grad(value, student.values, retain_graph=True)[0] for value in (loss, expected))
        torch.testing.assert_close(ours, theirs)  # the rotation held constant
    before = alignment.rotation.matrix
    alignment.eval()(student, target)
    assert torch.equal(alignment.rotation.matrix, before)
    assert list(alignment.parameters()) == []


def test_more_dimensions_than_channels_are_refused():
    with pytest.raises(ValueError, match="4 channels cannot be rotated onto 6 dimensions"):
        ProcrustesRotation(4, 6)


@pytest.mark.parametrize(
    ("widths", "device", "expected"),
    [
        ([16, 128], "cpu", PROCRUSTES),
        ([16, 129], "cpu", "orthogonal"),
        ([16, 128], "cuda", PROCRUSTES),
        ([16, 129], "cuda", "orthogonal"),
        ([16], "mps", "orthogonal"),
        ([], "cpu", "orthogonal"),
    ],
)
def test_the_closed_form_suits_narrow_layers(widths, device, expected):
    assert suited_rotation(widths, torch.device(device)) == expected


# Polar factors by decomposition and by products, against an eigendecomposition in NumPy


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
