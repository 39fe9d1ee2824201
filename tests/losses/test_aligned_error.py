"""The error from moments against the error written out position by position, and its gradients."""

import itertools

import pytest
import torch

from subdistill_hf.losses.aligned_error import aligned_errors

LAYOUTS = {
    "maps": lambda values: values,
    "tokens": lambda values: values.transpose(1, 2).contiguous().transpose(1, 2),
    "neither": lambda values: values.repeat_interleave(2, dim=2)[:, :, ::2],
}
SHAPES = [(3, 4, 4, 6), (2, 6, 4, 1), (2, 4, 6, 2), (1, 3, 3, 1)]  # images, K, K', positions


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def example(shape, layout="maps", target_layout="maps", seed=0):
    images, width, dimensions, positions = shape
    values = LAYOUTS[layout](random(images, width, positions, seed=seed) + 3)
    target = LAYOUTS[target_layout](random(images, dimensions, positions, seed=seed + 1))
    return values, target, random(dimensions, width, seed=seed + 2)


def orthogonal(matrix):
    return torch.linalg.qr(matrix).Q


def aligned_error(values, target, matrix, centre=None, *options):
    """Of a single layer."""
    errors, means = aligned_errors([values], [target], matrix[None], None if centre is None else [centre], *options)
    assert errors.shape == (1,)
    return errors[0], means[0]


def slow_error(values, target, matrix, centre, divide, eps=1e-5):
    """Sums written out over images and positions; plain autograd differentiates it."""
    rows = [values[image, :, position] for image, position in itertools.product(*map(range, values[:, 0].shape))]
    targets = [target[image, :, position] for image, position in itertools.product(*map(range, values[:, 0].shape))]
    if centre is None:
        centre = sum(rows) / len(rows)
    rows = [row - centre for row in rows]
    if divide:
        variance = sum(row.square() for row in rows) / len(rows)
        rows = [row / (variance + eps).sqrt() for row in rows]
    return sum((matrix @ row - t).square().sum() for row, t in zip(rows, targets, strict=True)) / len(rows)


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("divide", [True, False], ids=["divided", "undivided"])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed centre", "batch mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_slow_error_and_its_gradients(shape, fixed, divide, keeps_length):
    if keeps_length and shape[1] != shape[2]:
        shape = (shape[0], shape[1], shape[1], shape[3])
    values, target, matrix = example(shape)
    matrix = orthogonal(matrix) if keeps_length else matrix
    centre = torch.arange(shape[1]).double() if fixed else None
    gradients = []
    for function in (slow_error, aligned_error):
        inputs = [values.clone().requires_grad_(), matrix.clone().requires_grad_()]
        if function is aligned_error:
            error, _ = aligned_error(inputs[0], target, inputs[1], centre, divide, 1e-5, keeps_length)
        else:
            error = slow_error(inputs[0], target, inputs[1], centre, divide)
        gradients.append([error, *torch.autograd.grad(3 * error, inputs)])
    if keeps_length:  # off the orthogonal matrices the two differ: compare along them
        for each in gradients:
            pulled = matrix.T @ each[2]
            each[2] = pulled - pulled.T
    for expected, result in zip(*gradients, strict=True):  # a single position is divided by the root of eps alone
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10 if shape[0] * shape[3] > 1 else 1e-9)


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("divide", [True, False], ids=["divided", "undivided"])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed centre", "batch mean"])
def test_a_matrix_that_is_made_of_the_cross_moments(fixed, divide, keeps_length):
    values, target, matrix = example((3, 4, 4, 6))
    matrix = orthogonal(matrix) if keeps_length else matrix
    centre = torch.arange(4).double() if fixed else None
    given = []

    def make(moments):
        given.append(moments.clone())
        return matrix[None]

    gradients = []
    for compared in (make, matrix[None]):
        inputs = values.clone().requires_grad_()
        errors, _ = aligned_errors(
            [inputs], [target], compared, None if centre is None else [centre], divide, 1e-5, keeps_length
        )
        gradients.append([errors[0], *torch.autograd.grad(errors[0], inputs)])
    inputs = values.clone().requires_grad_()
    error = slow_error(inputs, target, matrix, centre, divide)
    gradients.append([error, *torch.autograd.grad(error, inputs)])
    for expected in gradients[1:]:
        torch.testing.assert_close(gradients[0], expected, rtol=1e-10, atol=1e-10)

    rows = values.transpose(1, 2).reshape(-1, 4) - (values.mean(dim=(0, 2)) if centre is None else centre)
    if divide:
        rows = rows / (rows.square().mean(dim=0) + 1e-5).sqrt()
    targets = target.transpose(1, 2).reshape(-1, 4)
    expected = sum(torch.outer(t, x) for t, x in zip(targets, rows, strict=True)) / len(rows)
    torch.testing.assert_close(given[0], expected[None], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("target_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(layout, target_layout, keeps_length):
    results = []
    for layouts in (("maps", "maps"), (layout, target_layout)):
        values, target, matrix = example((3, 4, 4, 5), *layouts)
        error, _ = aligned_error(values.requires_grad_(), target, orthogonal(matrix), None, True, 1e-5, keeps_length)
        results.append([error, *torch.autograd.grad(error, values)])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("layout", ["maps", "tokens"])
def test_the_gradient_lies_in_memory_as_the_values(layout, positions, keeps_length):
    values, target, matrix = example((3, 4, 4, positions), layout)
    error, _ = aligned_error(values.requires_grad_(), target, orthogonal(matrix), None, True, 1e-5, keeps_length)
    (gradient,) = torch.autograd.grad(error, values)
    kept = gradient if layout == "maps" else gradient.transpose(1, 2)
    assert kept.is_contiguous()


def test_the_mean_that_is_returned():
    values, target, matrix = example((3, 4, 4, 5))
    _, mean = aligned_error(values, target, matrix, torch.ones(4).double())
    torch.testing.assert_close(mean, values.mean(dim=(0, 2)))


def test_no_gradient_reaches_the_target():
    values, target, matrix = example((3, 4, 4, 5))
    aligned_error(values.requires_grad_(), target.requires_grad_(), matrix)[0].backward()
    assert values.grad.abs().max() > 0
    assert target.grad is None


@pytest.mark.parametrize("layout", ["maps", "tokens"])
def test_float32_holds_for_millions_of_values(layout):
    values, target, matrix = example((64, 16, 16, 2048), layout, layout)
    matrix = orthogonal(matrix)
    error, _ = aligned_error(values.float(), target.float(), matrix.float(), None, True, 1e-5, True)
    expected, _ = aligned_error(values, target, matrix, None, True, 1e-5, True)
    torch.testing.assert_close(error.double(), expected, rtol=4e-5, atol=0)  # a sum without care: 1.5e-4


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("layout", ["maps", "tokens"])
@pytest.mark.parametrize("divide", [True, False])
def test_float32_holds_with_channels_of_a_large_mean(divide, layout, keeps_length):
    values, target, matrix = example((8, 4, 4, 50), layout)
    values = (values + 1e3).float()
    matrix = orthogonal(matrix)
    results = []
    for dtype, function in ((torch.float32, aligned_error), (torch.float64, slow_error)):
        inputs = values.to(dtype).requires_grad_()
        options = (1e-5, keeps_length) if function is aligned_error else ()
        error = function(inputs, target.to(dtype), matrix.to(dtype), None, divide, *options)
        error = error[0] if function is aligned_error else error
        results.append((error.double(), torch.autograd.grad(error, inputs)[0].double()))
    (error, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(error, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-3 * expected_gradient.std())


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("layout", ["maps", "tokens"])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed centre", "batch mean"])
@pytest.mark.parametrize("divide", [True, False], ids=["divided", "undivided"])
@pytest.mark.parametrize("mean", [1e4, 1e6, 1e8, 1e10, 1e12], ids=str)
def test_exploding_features_leave_an_error_that_squares_can_have(mean, divide, fixed, layout, keeps_length):
    """Products alone gave errors of 2e4 and -1e4, where at most (√8 + √8)² = 32 is possible."""
    values, target, matrix = example((16, 8, 8, 64), layout, layout)
    values = (values + mean * random(8, seed=9)[:, None]).float()  # of few different values for each channel
    matrix, centre = orthogonal(matrix), values.mean(dim=(0, 2)) if fixed else None
    inputs = values.clone().requires_grad_()
    error, _ = aligned_error(inputs, target.float(), matrix.float(), centre, divide, 1e-5, keeps_length)
    (gradient,) = torch.autograd.grad(error, inputs)
    assert gradient.isfinite().all()
    assert error >= 0
    x_square = 8.0
    if not divide:  # a sum of 1024 such numbers is 100 times as coarse as one of them
        spacing = values.double().abs().amax(dim=(0, 2)) * torch.finfo(torch.float32).eps
        x_square = ((2 + 100 * spacing) ** 2).sum()
    assert error <= (x_square**0.5 + target.square().sum(dim=1).mean() ** 0.5) ** 2 * 1.0001
    if mean == 1e4:
        middle = None if centre is None else centre.double()
        expected = slow_error(values.double(), target, matrix, middle, divide)
        torch.testing.assert_close(error.double(), expected, rtol=1e-3, atol=0)


def test_an_error_of_zero_is_not_below_zero():
    values, _, matrix = example((8, 4, 4, 16))
    values, matrix = values.float(), orthogonal(matrix).float()
    for seed in range(20):
        shifted = values + seed
        target = matrix @ (shifted - shifted.mean(dim=(0, 2))[:, None])
        error, _ = aligned_error(shifted, target, matrix, None, False, 1e-5, True)
        assert 0 <= error < 1e-4


@pytest.mark.parametrize("keeps_length", [True, False])
@pytest.mark.parametrize("divide", [True, False], ids=["divided", "undivided"])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed centre", "batch mean"])
def test_layers_of_different_widths_at_once_are_what_each_is_alone(fixed, divide, keeps_length):
    shapes = [(3, 4, 4, 6), (3, 6, 6, 1), (3, 2, 2, 4)] if keeps_length else [(3, 4, 2, 6), (3, 6, 7, 1), (3, 2, 2, 4)]
    layers = [
        example(shape, layout, seed=seed) for seed, (shape, layout) in enumerate(zip(shapes, LAYOUTS, strict=True))
    ]
    matrices = [orthogonal(matrix) if keeps_length else matrix for *_, matrix in layers]
    values, targets = [values.requires_grad_() for values, *_ in layers], [target for _, target, _ in layers]
    centres = [torch.arange(shape[1]).double() for shape in shapes] if fixed else None
    alone = [
        aligned_error(
            values[index], targets[index], matrices[index], centres and centres[index], divide, 1e-5, keeps_length
        )
        for index in range(len(layers))
    ]
    stack = torch.zeros(3, 7, 6, dtype=torch.float64)[:, : max(len(matrix) for matrix in matrices)]
    for index, matrix in enumerate(matrices):
        stack[index, : matrix.shape[0], : matrix.shape[1]] = matrix
    stack.requires_grad_()
    errors, means = aligned_errors(values, targets, stack, centres, divide, 1e-5, keeps_length)
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    expected = sum(weight * error for weight, (error, _) in zip(weights, alone, strict=True))
    found = (weights * errors).sum()
    torch.testing.assert_close(errors, torch.stack([error for error, _ in alone]), rtol=1e-12, atol=1e-12)
    for first, (_, second) in zip(means, alone, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    together = torch.autograd.grad(found, [*values, stack])
    for first, second in zip(together[:3], torch.autograd.grad(expected, values), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    for index, matrix in enumerate(matrices):
        behind = together[3][index].clone()
        behind[: matrix.shape[0], : matrix.shape[1]] = 0
        assert behind.abs().max() == 0
