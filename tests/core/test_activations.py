"""The one form that the outputs of layers and classifiers are brought to."""

import itertools
import math

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from subdistill_hf.core.activations import (
    MAX_PREFIX_TOKENS,
    USUAL_PREFIX_TOKENS,
    Features,
    LayerError,
    first_tensor,
    to_features,
    token_geometry,
    with_first_tensor,
)

# One form


def test_a_map_keeps_each_pixels_channels_and_its_grid():
    output = torch.randn(2, 5, 3, 4)
    features = to_features(output, "layer")
    assert (features.grid, features.prefix) == ((3, 4), 0)
    for row, column in itertools.product(range(3), range(4)):
        assert torch.equal(features.values[:, :, row * 4 + column], output[:, :, row, column])


def test_a_channels_last_map_is_the_same_map():
    output = torch.randn(2, 5, 3, 4)
    features = to_features(output.permute(0, 2, 3, 1), "layer", channels_last=True)
    expected = to_features(output, "layer")
    assert torch.equal(features.values, expected.values)
    assert features.grid == expected.grid


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("image_size", "patch"), [((32, 32), 8), ((224, 224), 16), ((16, 32), 8), ((96, 32), 16)])
def test_tokens_split_into_prefix_and_grid(prefix, image_size, patch):
    rows, columns = image_size[0] // patch, image_size[1] // patch
    output = torch.randn(2, prefix + rows * columns, 7)
    features = to_features(output, "layer", image_size)
    assert (features.prefix, features.grid) == (prefix, (rows, columns))
    assert torch.equal(features.values, output.transpose(1, 2))
    grid_only = features.without_prefix()
    assert (grid_only.prefix, grid_only.grid) == (0, (rows, columns))
    last = output[:, prefix + 1 * columns + columns - 1]  # second row, last column
    assert torch.equal(grid_only.values[:, :, 2 * columns - 1], last)


def grids_of(image_size):
    """Each grid that square patches of whole pixels cut an image into, and whether some leave nothing over."""
    if image_size is None:
        return {(side, side): True for side in range(1, 40)}
    height, width = image_size
    grids = {}
    for patch in range(1, max(image_size) + 1):
        exact = height % patch == 0 and width % patch == 0
        for rows, columns in itertools.product(
            {height // patch, math.ceil(height / patch)}, {width // patch, math.ceil(width / patch)}
        ):
            if rows and columns and (height != width or rows == columns):
                grids[rows, columns] = grids.get((rows, columns), False) or exact
    return grids


@pytest.mark.parametrize(
    "image_size", [None, (32, 32), (24, 48), (30, 30), (28, 28), (84, 100), (50, 82), (32, 200), (200, 31), (9, 9)]
)
def test_token_geometry_is_the_smallest_prefix_of_square_patches_that_leave_nothing_over_if_they_can(image_size):
    grids = grids_of(image_size)
    for positions in range(1, 400):
        fits: dict[object, set[object]] = {}
        for (rows, columns), exact in grids.items():
            prefix = positions - rows * columns
            if 0 <= prefix <= MAX_PREFIX_TOKENS:
                fits.setdefault((prefix > USUAL_PREFIX_TOKENS, not exact, prefix), set()).add((rows, columns))
        if fits:
            best = min(fits)
            prefix, grid = token_geometry(positions, image_size)
            assert prefix == best[2]
            assert grid in fits[best]
        else:
            with pytest.raises(LayerError, match=f"cannot place {positions} tokens"):
                token_geometry(positions, image_size)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("image_size", "patch"),
    [((28, 28), 3), ((84, 84), 10), ((100, 100), 12), ((252, 252), 31), ((299, 299), 37), ((100, 180), 14)],
)
def test_the_remainder_of_an_image_that_is_no_multiple_of_the_patch_is_cut_off(image_size, patch, prefix):
    grid = (image_size[0] // patch, image_size[1] // patch)
    assert token_geometry(prefix + grid[0] * grid[1], image_size) == (prefix, grid)


@pytest.mark.parametrize(("image_size", "grid"), [((87, 87), (11, 11)), ((84, 100), (11, 13)), ((87, 90), (11, 11))])
def test_the_remainder_of_a_grid_that_is_shrunk_may_be_padded(image_size, grid):
    # the last cuts 87 x 90 pixels into 21 x 22 patches of 4, and pads these to 22 x 22 before it halves them
    assert token_geometry(grid[0] * grid[1], image_size) == (0, grid)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda output: (output, "attention"),
        lambda output: [output, None],
        lambda output: {"hidden": output, "other": torch.zeros(1)},
        lambda output: BaseModelOutput(last_hidden_state=output, hidden_states=(output,)),
        lambda output: ((output,), 3, 4),
        lambda output: {"hidden": [(output, 3)]},
    ],
    ids=["tuple", "list", "mapping", "ModelOutput", "tuple in a tuple", "tuple in a list in a mapping"],
)
def test_the_first_element_of_a_container_counts(wrap):
    output = torch.randn(2, 5, 3, 4)
    assert first_tensor(wrap(output)) is output
    other = torch.randn(2, 5, 3, 4)
    replaced = with_first_tensor(wrap(output), other)
    assert first_tensor(replaced) is other
    assert type(replaced) is type(wrap(output))
    assert torch.equal(to_features(wrap(output), "layer").values, output.flatten(2))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (None, "NoneType"),
        ((), "tuple"),
        ("text", "str"),
        (("text", torch.zeros(1, 2, 3)), "tuple"),
        (torch.zeros(2, 5), r"shape \(2, 5\)"),
        (torch.zeros(2, 5, 3, 3, 3), r"shape \(2, 5, 3, 3, 3\)"),
        (torch.zeros(2, 5, 3, 3, dtype=torch.long), r"torch\.int64"),
    ],
)
def test_an_output_that_is_no_hidden_state_is_named_with_what_was_found(output, found):
    with pytest.raises(LayerError, match=rf"'some\.layer' gives .*{found}.*expected a map .* or tokens"):
        to_features(output, "some.layer")


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (6, 1), (4, 5)])
def test_pooling_averages_adaptive_windows_and_leaves_the_prefix(prefix, grid):
    height, width = 6, 5
    values = torch.randn(2, 3, prefix + height * width, dtype=torch.float64)
    pooled = Features(values, (height, width), prefix).pooled(grid)
    assert (pooled.grid, pooled.prefix) == (grid, prefix)
    assert torch.equal(pooled.values[:, :, :prefix], values[:, :, :prefix])
    maps = values[:, :, prefix:].reshape(2, 3, height, width)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        rows = slice(row * height // grid[0], -(-(row + 1) * height // grid[0]))
        columns = slice(column * width // grid[1], -(-(column + 1) * width // grid[1]))
        expected = maps[:, :, rows, columns].mean(dim=(2, 3))
        torch.testing.assert_close(pooled.values[:, :, prefix + row * grid[1] + column], expected)


def test_with_values_keeps_the_geometry():
    features = Features(torch.zeros(2, 5, 13), (3, 4), 1)
    narrower = features.with_values(torch.ones(2, 3, 13))
    assert (narrower.grid, narrower.prefix, narrower.values.shape[1]) == ((3, 4), 1, 3)
    assert features.values.shape[1] == 5
