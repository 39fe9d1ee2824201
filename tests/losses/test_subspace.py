"""The layer loss and the logit loss: against the released code's values and against slow loops in NumPy."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from programs import run_side_by_side
from subdistill_hf.config.bases import BASES
from subdistill_hf.core.activations import Features, to_features
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import SubspaceError
from subdistill_hf.losses.rotations import ROTATIONS, Rotation
from subdistill_hf.losses.subspace import (
    CENTRINGS,
    TARGET_SCALES,
    Centre,
    SubspaceAlignment,
    same_positions,
)

RELEASED = {"mean": "subdistill_mean_centred", "batch_norm": "subdistill_released_code"}


def subspace_from(basis, mean, energy):
    dimensions = basis.shape[1]
    share = torch.full((dimensions,), energy / dimensions, dtype=torch.float64)
    return Subspace(mean.double(), basis.double(), share, share, energy, 1000)


def random_subspace(width, dimensions, energy=2.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
    mean = torch.randn(width, dtype=torch.float64, generator=generator)
    return subspace_from(basis[:, :dimensions], mean, energy)


def make_alignment(width, dimensions, student_width, seed=0, centring="mean", **options):
    torch.manual_seed(seed)
    return SubspaceAlignment(random_subspace(width, dimensions), student_width, centring, **options).double()


def map_features(batch, width, height, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return to_features(torch.randn(batch, width, height, columns, generator=generator).double(), "layer")


# The released code


def reference_case(reference, centring):
    energy = float(reference["subdistill_energy"])
    alignment = SubspaceAlignment(subspace_from(reference["U"], reference["mean"], energy), 5, centring)
    alignment.rotation.start_from(reference["subdistill_rotation"])
    torch.testing.assert_close(alignment.rotation.matrix, reference["subdistill_rotation"], rtol=0, atol=1e-6)
    student = to_features(reference["student_features"], "student")
    target = alignment.make_target(to_features(reference["teacher_features"], "teacher"))
    return alignment, student, target


@pytest.mark.parametrize("centring", RELEASED)
def test_the_released_layer_loss_is_reproduced_in_training_and_evaluation(loss_reference, centring):
    alignment, student, target = reference_case(loss_reference, centring)
    train = alignment(student, target).item()
    assert train == pytest.approx(loss_reference[f"{RELEASED[centring]}_train"], abs=1e-5)
    running = loss_reference["subdistill_running_mean_after_one_batch"]
    torch.testing.assert_close(alignment.centre.running_mean, running, rtol=0, atol=1e-6)
    evaluated = alignment.eval()(student, target).item()
    assert evaluated == pytest.approx(loss_reference[f"{RELEASED[centring]}_eval_after_one_batch"], abs=1e-5)
    torch.testing.assert_close(alignment.centre.running_mean, running, rtol=0, atol=1e-6)  # left as it was


# Spatial cases


def slow_pool(maps, height, columns):
    """Adaptive average pooling of `(B, d, H, W)`, cell by cell."""
    pooled = np.empty((*maps.shape[:2], height, columns))
    for i, j in itertools.product(range(height), range(columns)):
        rows = slice(i * maps.shape[2] // height, math.ceil((i + 1) * maps.shape[2] / height))
        cells = slice(j * maps.shape[3] // columns, math.ceil((j + 1) * maps.shape[3] / columns))
        pooled[:, :, i, j] = maps[:, :, rows, cells].mean(axis=(2, 3))
    return pooled


def slow_columns(output, layout, grid, keep_prefix):
    """What the layer returned as one list of position vectors per image, pooled to `grid`."""
    kind, prefix, height, columns = layout
    if kind == "map":
        maps, tokens = output, None
    else:
        tokens = output[:, :prefix]
        maps = np.stack([image[prefix:].T.reshape(-1, height, columns) for image in output])
    maps = slow_pool(maps, *grid)
    images = []
    for index, pooled in enumerate(maps):
        vectors = list(tokens[index]) if keep_prefix else []
        vectors += [pooled[:, i, j] for i in range(grid[0]) for j in range(grid[1])]
        images.append(vectors)
    return images


def slow_loss(student, teacher, alignment, centring):
    """The loss of docs/method.md, "The layer loss", by loops over images and positions.

    `student` and `teacher` are lists of lists of vectors.
    """
    u, mu = alignment.subspace.basis.numpy(), alignment.subspace.mean.numpy()
    v = alignment.rotation.matrix.detach().numpy()
    vectors = [h for image in student for h in image]
    mean = sum(vectors) / len(vectors)
    scale = np.ones_like(mean)
    if centring == "batch_norm":
        scale = 1 / np.sqrt(sum((h - mean) ** 2 for h in vectors) / len(vectors) + 1e-5)
    if centring == "none":
        mean = 0 * mean
    errors = []
    for student_image, teacher_image in zip(student, teacher, strict=True):
        assert len(student_image) == len(teacher_image)
        for h, a in zip(student_image, teacher_image, strict=True):
            errors.append(((v @ (scale * (h - mean)) - u.T @ (a - mu)) ** 2).sum())
    return sum(errors) / len(errors) / alignment.energy


def slow_unit_loss(student, target, matrix, centring, energy):
    """The loss at unit scale by its definition; `student` and `target` `(positions, K)`, the target centred."""
    dimensions = min(student.shape[1], target.shape[1])
    mean = 0 if centring == "none" else student.mean(axis=0)
    scale = 1 / np.sqrt(student.var(axis=0) + 1e-5) if centring == "batch_norm" else 1
    mapped = (scale * (student - mean)) @ matrix.T
    return ((mapped - np.sqrt(dimensions / energy) * target) ** 2).sum(axis=1).mean() / dimensions


MAP, TOKENS = "map", "tokens"
# student layout, teacher layout (kind, prefix tokens, height, width), expected grid, are prefix tokens compared
SPATIAL_CASES = {
    "equal maps": ((MAP, 0, 4, 4), (MAP, 0, 4, 4), (4, 4), False),
    "larger student map": ((MAP, 0, 6, 6), (MAP, 0, 3, 3), (3, 3), False),
    "larger teacher map": ((MAP, 0, 3, 3), (MAP, 0, 6, 6), (3, 3), False),
    "maps of no whole ratio": ((MAP, 0, 5, 5), (MAP, 0, 3, 3), (3, 3), False),
    "wide maps": ((MAP, 0, 4, 6), (MAP, 0, 2, 3), (2, 3), False),
    "tall student, wide teacher": ((MAP, 0, 6, 2), (MAP, 0, 3, 4), (3, 2), False),
    "equal tokens with class token": ((TOKENS, 1, 4, 4), (TOKENS, 1, 4, 4), (4, 4), True),
    "equal tokens without prefix": ((TOKENS, 0, 4, 4), (TOKENS, 0, 4, 4), (4, 4), False),
    "fewer student tokens, both class tokens": ((TOKENS, 1, 2, 2), (TOKENS, 1, 4, 4), (2, 2), True),
    "more student tokens, both class tokens": ((TOKENS, 1, 4, 4), (TOKENS, 1, 2, 2), (2, 2), True),
    "registers of the teacher": ((TOKENS, 1, 4, 4), (TOKENS, 5, 4, 4), (4, 4), False),
    "registers of the student": ((TOKENS, 5, 4, 4), (TOKENS, 1, 4, 4), (4, 4), False),
    "class token of the student alone": ((TOKENS, 1, 2, 2), (TOKENS, 0, 4, 4), (2, 2), False),
    "registers on both sides": ((TOKENS, 5, 2, 4), (TOKENS, 5, 2, 4), (2, 4), True),
    "map student, token teacher": ((MAP, 0, 8, 8), (TOKENS, 1, 4, 4), (4, 4), False),
    "smaller map student, token teacher": ((MAP, 0, 2, 2), (TOKENS, 1, 4, 4), (2, 2), False),
    "map student, token teacher, one grid": ((MAP, 0, 4, 4), (TOKENS, 2, 4, 4), (4, 4), False),
    "wide map student, token teacher": ((MAP, 0, 4, 8), (TOKENS, 5, 2, 4), (2, 4), False),
    "token student, map teacher": ((TOKENS, 1, 4, 4), (MAP, 0, 8, 8), (4, 4), False),
    "token student, smaller map teacher": ((TOKENS, 2, 4, 4), (MAP, 0, 2, 2), (2, 2), False),
    "token student without prefix, map teacher": ((TOKENS, 0, 4, 4), (MAP, 0, 4, 4), (4, 4), False),
}


def layer_output(layout, width, seed):
    kind, prefix, height, columns = layout
    shape = (3, width, height, columns) if kind == MAP else (3, prefix + height * columns, width)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1


def layer_features(layout, output):
    """As the trainer sees the output: an image of 16 pixels a row of the layout's grid."""
    features = to_features(output, "layer", (16 * layout[2], 16 * layout[3]))
    assert (features.prefix, features.grid) == (layout[1], layout[2:])
    return features


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("case", SPATIAL_CASES.values(), ids=SPATIAL_CASES)
def test_every_pair_of_layouts_compares_the_right_positions(case, centring):
    student_layout, teacher_layout, grid, keep_prefix = case
    student, teacher = layer_output(student_layout, 4, 0), layer_output(teacher_layout, 7, 1)
    alignment = make_alignment(7, 4, 4, centring=centring)
    target = alignment.make_target(layer_features(teacher_layout, teacher))
    loss = alignment(layer_features(student_layout, student), target).item()
    expected = slow_loss(
        slow_columns(student.numpy(), student_layout, grid, keep_prefix),
        slow_columns(teacher.numpy(), teacher_layout, grid, keep_prefix),
        alignment,
        centring,
    )
    assert loss == pytest.approx(expected, rel=1e-5)


def test_equal_geometries_are_taken_as_they_are():
    features, target = map_features(2, 3, 4, 5), map_features(2, 3, 4, 5, seed=1)
    student, teacher = same_positions(features, target)
    assert student is features.values
    assert teacher is target.values


# Widths


@pytest.mark.parametrize(("width", "student_width"), [(6, 9), (6, 6), (6, 3), (6, 1), (1, 4)])
def test_student_wider_or_narrower_than_the_teachers_layer(width, student_width):
    dimensions = min(width, student_width)
    alignment = make_alignment(width, dimensions, student_width)
    rotation = alignment.rotation.matrix
    assert rotation.shape == (dimensions, student_width)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(dimensions).double(), rtol=0, atol=1e-6)
    student, teacher = map_features(3, student_width, 2, 3), map_features(3, width, 2, 3, seed=1)
    expected = slow_loss(
        slow_columns(student.values.unflatten(2, (2, 3)).numpy(), (MAP, 0, 2, 3), (2, 3), False),
        slow_columns(teacher.values.unflatten(2, (2, 3)).numpy(), (MAP, 0, 2, 3), (2, 3), False),
        alignment,
        "mean",
    )
    assert alignment(student, alignment.make_target(teacher)).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_cannot_be_rotated_onto_more_dimensions_than_it_has():
    with pytest.raises(ValueError, match="4 channels cannot be rotated onto 6 dimensions"):
        Rotation(4, 6)
    assert Rotation(4, 6, "linear").matrix.shape == (6, 4)


@pytest.mark.parametrize("kind", ROTATIONS)
def test_every_map_starts_orthogonal_in_float32(kind):
    rotation = Rotation(8, 5, kind).matrix
    assert rotation.dtype == torch.float32
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["centring", "rotation", "target_scale"])
def test_unknown_options_are_refused_with_the_known_ones(name):
    options = {name: "x"}
    with pytest.raises(ValueError, match=rf"unknown {name} 'x': expected one of .*(mean|orthogonal|unit)"):
        SubspaceAlignment(random_subspace(4, 2), 2, **{"centring": "mean", **options})


# The scale of the target


def fitted_to(values, dimensions, pooled=None, context=None, **options):
    """The subspace of activations `(B, d, P)`, by PCA unless another basis is asked for."""
    moments = Moments.of(values.double(), context)
    return Subspace.fit(moments, dimensions, **{"kind": "pca"} | options, pooled=pooled and Moments.of(pooled.values))


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("rotation", [*ROTATIONS, "full_width"])
@pytest.mark.parametrize("grid", [(4, 4), (2, 2)], ids=["one grid", "pooled"])
def test_the_loss_at_unit_scale_is_its_definition(centring, rotation, grid):
    teacher = map_features(6, 7, 4, 4).with_values(30 * map_features(6, 7, 4, 4).values + 2)
    pooled = None if grid == (4, 4) else teacher.pooled(grid)
    dimensions = 7 if rotation == "full_width" else 4
    subspace = fitted_to(teacher.values, dimensions, pooled)
    torch.manual_seed(0)
    alignment = SubspaceAlignment(subspace, 4, centring, rotation, target_scale="unit").double()
    student = map_features(6, 4, *grid, seed=1)
    compared = subspace.project((pooled or teacher).values).transpose(1, 2).flatten(0, 1).numpy()
    expected = slow_unit_loss(
        student.values.transpose(1, 2).flatten(0, 1).numpy(),
        compared,
        alignment.rotation.matrix.detach().numpy(),
        centring,
        compared.var(axis=0).sum(),
    )
    assert alignment(student, alignment.make_target(teacher)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("centring", ["mean", "batch_norm"])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_a_student_that_predicts_the_mean_costs_1_also_where_maps_are_pooled(centring, factor):
    teacher = map_features(6, 7, 4, 4).with_values(factor * map_features(6, 7, 4, 4).values)
    subspace = fitted_to(teacher.values, 4, teacher.pooled((2, 2)))
    constant = map_features(6, 4, 2, 2).with_values(torch.full((6, 4, 4), 3.0, dtype=torch.float64))
    unit, published = (SubspaceAlignment(subspace, 4, centring, target_scale=s).double() for s in ("unit", "teacher"))
    assert unit(constant, unit.make_target(teacher)).item() == pytest.approx(1)
    expected = subspace.energy_compared / subspace.energy
    assert published(constant, published.make_target(teacher)).item() == pytest.approx(expected)
    assert expected < 0.5


def with_energies(energies, images=64):
    """Activations `(B, K, 4)` whose principal directions are the channels, of exactly these variances."""
    values = map_features(images, len(energies), 2, 2).values.transpose(0, 1).flatten(1)
    values = torch.linalg.qr((values - values.mean(dim=1, keepdim=True)).T).Q.T * math.sqrt(values.shape[1])
    values = values * torch.tensor(energies, dtype=torch.float64).sqrt()[:, None]
    return values.unflatten(1, (images, 4)).transpose(0, 1)


HADAMARD = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double() / 2


@pytest.mark.parametrize("rotation", ["orthogonal", "procrustes"])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_a_student_with_the_targets_correlations_costs_nothing(rotation, factor):
    """By a Hadamard rotation every channel has the same variance, so dividing by the deviations changes nothing."""
    target = Features(factor * with_energies([9.0, 4.0, 2.0, 0.5]), (2, 2))
    subspace = fitted_to(target.values, 4)
    student = target.with_values(torch.matmul(HADAMARD.T, target.values) * 1e5 / factor + 7)
    losses = {}
    for scale in ("unit", "teacher"):
        alignment = SubspaceAlignment(subspace, 4, "batch_norm", rotation, target_scale=scale).double()
        if rotation == "orthogonal":
            alignment.rotation.start_from(torch.matmul(subspace.basis.T, HADAMARD))
        losses[scale] = alignment(student, alignment.make_target(target)).item()
    energy = 15.5 * factor**2
    assert losses["unit"] < 1e-12
    assert losses["teacher"] == pytest.approx((math.sqrt(energy) - 2) ** 2 / energy, rel=1e-6)  # the floor, K = 4


def test_a_wider_student_with_the_targets_correlations_costs_nothing():
    wide = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / math.sqrt(2), HADAMARD)
    own = with_energies([9.0, 4.0, 2.0, 0.5, 3.0, 5.0, 7.0, 0.5])
    target = Features(own[:, :4], (2, 2))
    subspace = fitted_to(target.values, 4)
    student = target.with_values(1e4 * torch.matmul(wide.T, own))
    alignment = SubspaceAlignment(subspace, 8, "batch_norm", target_scale="unit").double()
    alignment.rotation.start_from(torch.matmul(subspace.basis.T, wide[:4]))
    # 15.5 of the student's 31 are in the subspace, and 4 of its 8 once its channels are divided
    assert alignment(student, alignment.make_target(target)).item() < 1e-12


def test_a_target_that_pooling_levels_is_refused():
    values = torch.ones(6, 2, 2, 2, dtype=torch.float64)
    values[:, :, 0] = -1
    teacher = to_features(values, "layer")
    subspace = fitted_to(teacher.values, 1, teacher.pooled((1, 1)))
    with pytest.raises(SubspaceError, match="does not vary once it is pooled"):
        SubspaceAlignment(subspace, 1, "mean", target_scale="unit")


# Training


def drift(matrix):
    return (matrix @ matrix.T - torch.eye(len(matrix))).abs().max().item()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize(("width", "student_width"), [(16, 8), (6, 10), (48, 48)])
def test_the_rotation_stays_orthogonal_over_many_steps(width, student_width, autocast):
    torch.manual_seed(0)
    dimensions = min(width, student_width)
    alignment = SubspaceAlignment(random_subspace(width, dimensions), student_width, "mean")
    student = nn.Conv2d(3, student_width, 3)
    optimiser = torch.optim.Adam([*student.parameters(), *alignment.parameters()], lr=3e-2)
    start = alignment.rotation.matrix.detach().clone()
    teacher = map_features(4, width, 4, 4).with_values(5 * torch.randn(4, width, 16))
    pixels, losses = torch.randn(4, 3, 6, 6), []
    for _ in range(150):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = student(pixels)
            assert hidden.dtype == (torch.bfloat16 if autocast else torch.float32)
            loss = alignment(to_features(hidden, "student"), alignment.make_target(teacher))
        assert loss.dtype == torch.float32
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    matrix = alignment.rotation.matrix.detach()
    assert (matrix - start).abs().max() > 0.1
    assert losses[-1] < 0.9 * losses[0]
    assert drift(matrix) < 1e-5


def test_the_free_linear_map_leaves_the_orthogonal_matrices():
    torch.manual_seed(0)
    alignment = SubspaceAlignment(random_subspace(16, 8), 8, "mean", "linear")
    optimiser = torch.optim.Adam(alignment.parameters(), lr=3e-2)
    student, teacher = (map_features(4, width, 4, 4).with_values(torch.randn(4, width, 16)) for width in (8, 16))
    for _ in range(20):
        optimiser.zero_grad()
        alignment(student, alignment.make_target(teacher)).backward()
        optimiser.step()
    assert drift(alignment.rotation.matrix.detach()) > 0.1


def test_autocast_does_not_touch_the_loss_or_the_target():
    torch.manual_seed(0)
    alignment = SubspaceAlignment(random_subspace(32, 16), 16, "mean").eval()
    student = map_features(2, 16, 3, 3).with_values(torch.randn(2, 16, 9))
    teacher = map_features(2, 32, 3, 3).with_values(torch.randn(2, 32, 9))
    target = alignment.make_target(teacher)
    loss = alignment(student, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alignment.make_target(teacher).values, target.values)
        assert torch.equal(alignment(student, target), loss)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("centring", CENTRINGS)
def test_gradients_flow_to_student_and_rotation_and_never_to_the_target(centring, rotation):
    alignment = make_alignment(7, 4, 4, centring=centring, rotation=rotation)
    student, teacher = map_features(3, 4, 2, 2), map_features(3, 7, 2, 2, seed=1)
    student.values.requires_grad_()
    teacher.values.requires_grad_()
    target = alignment.make_target(teacher)
    assert not target.values.requires_grad
    alignment(student, target).backward()
    assert student.values.grad.abs().max() > 0
    assert teacher.values.grad is None
    parameters = dict(alignment.named_parameters())
    assert len(parameters) == 1
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters.values())


@pytest.mark.parametrize("centring", CENTRINGS)
def test_gradients_are_the_finite_differences(centring):
    alignment = make_alignment(7, 4, 4, centring=centring)
    student, teacher = map_features(2, 4, 4, 4), map_features(2, 7, 2, 2, seed=1)
    target = alignment.make_target(teacher)
    (parameter,) = alignment.parameters()

    def loss(values, original):
        changed = torch.func.functional_call(
            alignment,
            {"rotation.free": original},
            (student.with_values(values), target),
        )
        return changed

    assert torch.autograd.gradcheck(
        loss, (student.values.requires_grad_(), parameter.detach().clone().requires_grad_())
    )


# Values


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", BASES)
def test_predicting_the_mean_costs_exactly_one(kind, scale):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(7, 7, dtype=torch.float64, generator=generator)
    activation = scale * (mixing @ torch.randn(10, 7, 12, dtype=torch.float64, generator=generator) + 2)
    context = torch.randn(activation.shape, dtype=torch.float64, generator=generator)
    subspace = Subspace.fit(Moments.of(activation, context), 4, kind)
    alignment = SubspaceAlignment(subspace, 4, "mean").double()
    constant = torch.randn(4, 1, dtype=torch.float64, generator=generator).expand(10, 4, 12)
    teacher = Features(activation, (3, 4))
    assert alignment(Features(constant, (3, 4)), alignment.make_target(teacher)).item() == pytest.approx(1, abs=1e-5)


def test_a_student_that_is_the_rotated_target_costs_nothing():
    alignment = make_alignment(7, 4, 4)
    teacher = map_features(3, 7, 2, 2)
    target = alignment.make_target(teacher)
    centred = target.values - target.values.mean(dim=(0, 2), keepdim=True)
    target = target.with_values(centred)
    student = target.with_values(alignment.rotation.matrix.detach().T @ centred.double() + 5)
    assert alignment(student, target).item() == pytest.approx(0, abs=1e-6)  # V is orthogonal to float32


def test_batch_norm_centring_ignores_the_students_scale_and_mean_centring_does_not():
    student, teacher = map_features(4, 4, 4, 4), map_features(4, 7, 4, 4, seed=1)
    values = {}
    for centring in ("batch_norm", "mean"):
        alignment = make_alignment(7, 4, 4, centring=centring)
        target = alignment.make_target(teacher)
        values[centring] = [
            alignment(student.with_values(scale * student.values), target).item() for scale in (1, 100)
        ]
    assert values["batch_norm"][1] == pytest.approx(values["batch_norm"][0], rel=1e-4)
    assert values["mean"][1] > 100 * values["mean"][0]


def centre_of(values, centre):
    """What a centring makes of features, one by one: the error with V = 1 and t = 0 is their mean square."""
    identity, zero = Rotation(values.shape[1], values.shape[1], "linear"), torch.zeros_like(values)
    with torch.no_grad():
        identity.free.copy_(torch.eye(values.shape[1]))
    return centre(values, zero, identity.to(values.dtype))


def test_batch_norm_centring_is_a_batch_norm_without_scale():
    centre, oracle = Centre(5, "batch_norm"), nn.BatchNorm1d(5, affine=False)
    for seed in range(3):
        values = 3 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed)) + 2
        torch.testing.assert_close(centre_of(values, centre), oracle(values).square().sum(dim=1).mean())
        torch.testing.assert_close(centre.running_mean, oracle.running_mean)


@pytest.mark.parametrize("centring", ["mean", "batch_norm"])
def test_evaluation_subtracts_the_running_mean_and_divides_by_nothing(centring):
    centre = Centre(3, centring, momentum=0.25).double()
    running = torch.zeros(3, dtype=torch.float64)
    for seed in range(4):
        values = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 4
        centre_of(values, centre)
        running = 0.75 * running + 0.25 * values.mean(dim=(0, 2))
    centre.eval()
    expected = (values - running[:, None]).square().sum(dim=1).mean()
    torch.testing.assert_close(centre_of(values, centre), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(centre.running_mean, running, rtol=1e-12, atol=0)  # evaluation does not move it


def test_no_centring_takes_the_features_as_they_are():
    centre = Centre(3, "none")
    values = torch.randn(2, 3, 5) + 1
    torch.testing.assert_close(centre_of(values, centre), values.square().sum(dim=1).mean())
    assert (centre.running_mean == 0).all()


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_tiny_batches_give_finite_losses_and_gradients(centring, positions, batch):
    alignment = make_alignment(7, 4, 4, centring=centring)
    student, teacher = map_features(batch, 4, 1, positions), map_features(batch, 7, 1, positions, seed=1)
    student.values.requires_grad_()
    loss = alignment(student, alignment.make_target(teacher))
    loss.backward()
    assert math.isfinite(loss.item())
    assert student.values.grad.isfinite().all()


def test_without_normalisation_the_loss_is_the_energy_times_larger():
    student, teacher = map_features(3, 4, 2, 2), map_features(3, 7, 2, 2, seed=1)
    normalised, plain = (make_alignment(7, 4, 4, normalise=normalise) for normalise in (True, False))
    expected = 2.5 * normalised(student, normalised.make_target(teacher)).item()
    assert plain(student, plain.make_target(teacher)).item() == pytest.approx(expected)


def test_every_option_changes_the_trained_loss():
    def trained(**options):
        alignment = make_alignment(7, 4, 4, **options)
        optimiser = torch.optim.SGD(alignment.parameters(), lr=0.1)
        student, teacher = map_features(3, 4, 2, 2), map_features(3, 7, 2, 2, seed=1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = alignment(student, alignment.make_target(teacher))
            loss.backward()
            optimiser.step()
        return round(loss.item(), 6)

    combinations = list(itertools.product(CENTRINGS, ROTATIONS, (True, False), TARGET_SCALES))
    losses = {trained(centring=c, rotation=r, normalise=n, target_scale=s) for c, r, n, s in combinations}
    assert len(losses) == len(combinations)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_state_holds_everything_that_was_learned(rotation):
    student, teacher = map_features(3, 4, 2, 2), map_features(3, 7, 2, 2, seed=1)
    trained = make_alignment(7, 4, 4, rotation=rotation, seed=0)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        trained(student, trained.make_target(teacher)).backward()
        optimiser.step()
    state = copy.deepcopy(trained.state_dict())
    resumed = make_alignment(7, 4, 4, rotation=rotation, seed=1)
    target = resumed.make_target(teacher)
    expected = trained.eval()(student, target)
    assert not torch.equal(resumed.eval()(student, target), expected)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(student, target), expected)


# Several processes


def _train_on_half(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loss, gradients, running_mean = _loss_and_gradients(slice(2 * rank, 2 * rank + 2))
    torch.save((loss, gradients, running_mean), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _loss_and_gradients(part):
    """The loss of some of four images, and its gradients to a student's weight and to the rotation."""
    torch.manual_seed(0)
    alignment = make_alignment(7, 4, 4, centring="batch_norm")  # both statistics are shared
    student = nn.Conv2d(4, 4, 1).double()
    pixels, teacher = map_features(4, 4, 3, 3), map_features(4, 7, 3, 3, seed=1)
    hidden = student(pixels.values[part].unflatten(2, (3, 3)))
    target = alignment.make_target(teacher.with_values(teacher.values[part]))
    loss = alignment(to_features(hidden, "student"), target)
    loss.backward()
    gradients = [student.weight.grad, *(parameter.grad for parameter in alignment.parameters())]
    return loss.detach(), gradients, alignment.centre.running_mean


def test_two_processes_train_as_one_with_both_their_batches(tmp_path):
    run_side_by_side(_train_on_half, str(tmp_path))
    loss, gradients, running_mean = _loss_and_gradients(slice(0, 4))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
    for index, expected in enumerate(gradients):  # data-parallel training averages gradients
        assert expected.abs().max() > 0
        torch.testing.assert_close((parts[0][1][index] + parts[1][1][index]) / 2, expected)
    for part in parts:
        torch.testing.assert_close(part[2], running_mean)
