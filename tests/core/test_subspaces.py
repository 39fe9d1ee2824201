"""Moments and subspaces: against the released code's arrays and against slow loops in NumPy."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch

from subdistill_hf.core.activations import Features
from subdistill_hf.core.bases import BASES, prca_matrix, random_matrix
from subdistill_hf.core.moments import Moments, collect_moments
from subdistill_hf.core.subspaces import Subspace, load_subspaces, save_subspaces
from subdistill_hf.errors import SubspaceError

REFERENCE_NAMES = {"prca": "prcaposdef", "prca_signed": "prca", "pca": "pca", "gradient_pca": "gradpca"}
SPLITS = {
    "one batch": [64],
    "halves": [32, 32],
    "ragged": [50, 13, 1],
    "first tiny": [1, 63],
    "single images": [1] * 64,
}


def moments_in_batches(activation, context, split):
    moments = Moments.empty(activation.shape[1])
    for a, c in zip(activation.split(split), context.split(split), strict=True):
        moments.update(a, c)
    return moments


def projector(basis):
    return basis @ basis.T


def draw(images=12, width=6, positions=7, seed=0):
    """Correlated activations with a mean, and contexts that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, dtype=torch.float64, generator=generator)
    noise = torch.randn(images, width, positions, dtype=torch.float64, generator=generator)
    activation = mixing @ noise + 3 * torch.randn(width, 1, dtype=torch.float64, generator=generator)
    other = torch.randn(activation.shape, dtype=torch.float64, generator=generator)
    return activation, 0.1 * (other - activation.flip(1))


@pytest.fixture(scope="module")
def moments():
    return Moments.of(*draw())


# The released code


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("kind", REFERENCE_NAMES)
def test_every_subspace_of_the_released_code_is_reproduced_for_any_batch_split(subspace_reference, kind, split):
    moments = moments_in_batches(subspace_reference["activation"], subspace_reference["context"], split)
    expected = subspace_reference[f"{REFERENCE_NAMES[kind]}_U"]
    energies = subspace_reference[f"{REFERENCE_NAMES[kind]}_energy"]
    for dimensions in range(1, 17):
        subspace = Subspace.fit(moments, dimensions, kind)
        difference = projector(subspace.basis) - projector(expected[:, :dimensions])
        assert difference.abs().max() < 1e-8
        assert (subspace.energies - energies[:dimensions]).abs().max() < 1e-8
        assert abs(subspace.energy - float(energies[:dimensions].sum())) < 1e-8
        assert (subspace.mean - subspace_reference["mean"]).abs().max() < 1e-8


@pytest.mark.parametrize("kind", REFERENCE_NAMES)
def test_shards_merge_to_the_subspace_of_the_released_code(subspace_reference, kind):
    activation, context = subspace_reference["activation"], subspace_reference["context"]
    bounds = [(0, 5), (5, 5), (5, 40), (40, 64)]
    shards = [moments_in_batches(activation[i:j], context[i:j], 3) if j > i else Moments.empty(16) for i, j in bounds]
    before = [shard.scatter.clone() for shard in shards]
    merged = Moments.merged(shards)
    assert merged.count == 64 * 9
    subspace = Subspace.fit(merged, 5, kind)
    expected = subspace_reference[f"{REFERENCE_NAMES[kind]}_U"][:, :5]
    assert (projector(subspace.basis) - projector(expected)).abs().max() < 1e-8
    assert all(torch.equal(shard.scatter, old) for shard, old in zip(shards, before, strict=True))


# Moments


@pytest.mark.parametrize("split", [[12], [5, 1, 6], [1] * 12])
def test_moments_are_the_sums_over_all_positions(split):
    activation, context = draw()
    moments = moments_in_batches(activation, context, split)
    columns = [(a[:, p], c[:, p]) for a, c in zip(activation.numpy(), context.numpy(), strict=True) for p in range(7)]
    mean = sum(a for a, _ in columns) / len(columns)
    expected = {
        "mean": mean,
        "covariance": sum(np.outer(a - mean, a - mean) for a, _ in columns) / len(columns),
        "context_covariance": sum(np.outer(c, c) for _, c in columns) / len(columns),
        "cross_covariance": sum(np.outer(a - mean, c) for a, c in columns) / len(columns),
        "context_sum": sum(c for _, c in columns),
    }
    assert moments.count == len(columns) == 84
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(moments, name).numpy(), value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_positions_side_by_side_are_the_same_as_images():
    activation, context = draw()
    flat = Moments.of(activation.transpose(0, 1).flatten(1), context.transpose(0, 1).flatten(1))
    whole = Moments.of(activation, context)
    for field in dataclasses.fields(Moments):
        torch.testing.assert_close(getattr(flat, field.name), getattr(whole, field.name))


def test_no_context_counts_as_zero_context():
    activation, context = draw()
    without, zero = Moments.of(activation), Moments.of(activation, torch.zeros_like(context))
    without.update(activation)
    zero.update(activation, torch.zeros_like(context))
    for field in dataclasses.fields(Moments):
        torch.testing.assert_close(getattr(without, field.name), getattr(zero, field.name))
    assert without.count == 168


def test_memory_does_not_grow_with_the_images():
    def elements(moments):
        values = (getattr(moments, field.name) for field in dataclasses.fields(Moments))
        return sum(value.untyped_storage().nbytes() // 8 for value in values if isinstance(value, torch.Tensor))

    activation, context = draw()
    moments = Moments.empty(6)
    for _ in range(20):
        moments.update(activation, context)
        assert elements(moments) == 3 * 6 * 6 + 2 * 6
    assert moments.count == 20 * 84


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_moments_and_subspaces_are_float64_whatever_comes_in(dtype):
    activation, context = (values.to(dtype) for values in draw())
    found, expected = Moments.of(activation, context), Moments.of(activation.double(), context.double())
    for field in dataclasses.fields(Moments):
        if field.name != "count":
            assert getattr(found, field.name).dtype == torch.float64
            assert torch.equal(getattr(found, field.name), getattr(expected, field.name))
    subspace = Subspace.fit(found, 3)
    for name in ("mean", "basis", "energies", "eigenvalues"):
        assert getattr(subspace, name).dtype == torch.float64


def test_small_directions_of_a_wide_spectrum_about_a_large_mean_survive_float32_input():
    width, images, positions = 32, 100, 40
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
    scales = torch.logspace(1, -3, width, dtype=torch.float64)
    noise = torch.randn(images, width, positions, dtype=torch.float64, generator=generator)
    activation = (rotation @ (scales[:, None] * noise) + 100).float()

    moments = Moments.empty(width)
    for batch in activation.split(7):
        moments.update(batch)
    values = activation.numpy().transpose(1, 0, 2).reshape(width, -1)

    def leading(dtype):  # two passes in NumPy
        a = values.astype(dtype)
        a = a - a.mean(axis=1, keepdims=True)
        return np.linalg.eigh(a @ a.T)[1][:, ::-1]

    for dimensions in (1, 16, 28, 31):
        found = Subspace.fit(moments, dimensions, "pca").basis
        expected = torch.from_numpy(leading(np.float64)[:, :dimensions].copy())
        assert (projector(found) - projector(expected)).abs().max() < 1e-6
    # What the same sums in float32 would give, to show that the case is hard:
    lost = torch.from_numpy(leading(np.float32)[:, :28].astype(np.float64))
    assert (projector(lost) - projector(torch.from_numpy(leading(np.float64)[:, :28].copy()))).abs().max() > 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_values_that_are_not_finite_are_refused(value, which):
    inputs = draw()
    inputs[which][3, 2, 4] = value
    moments = Moments.empty(6)
    with pytest.raises(SubspaceError, match="NaN or infinite"):
        moments.update(*inputs)
    assert moments.count == 0


# Bases


@pytest.mark.parametrize("kind", BASES)
def test_a_basis_is_orthonormal_sorted_and_carries_its_energies(moments, kind):
    activation, _ = draw()
    subspace = Subspace.fit(moments, kind=kind)
    assert (subspace.kind, subspace.count, subspace.width, subspace.dimensions) == (kind, 84, 6, 6)
    torch.testing.assert_close(projector(subspace.basis.T), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (subspace.eigenvalues.diff() <= 0).all()
    matrix = BASES[kind](moments)
    torch.testing.assert_close(matrix @ subspace.basis, subspace.basis * subspace.eigenvalues)
    coordinates = subspace.project(activation).numpy()
    np.testing.assert_allclose(coordinates.mean(axis=(0, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(coordinates.var(axis=(0, 2)), subspace.energies.numpy(), rtol=1e-10)
    assert subspace.energy == pytest.approx(subspace.total_energy)
    assert subspace.energy_fraction == pytest.approx(1)
    assert 0 < Subspace.fit(moments, 2, kind).energy_fraction < 1


@pytest.mark.parametrize("kind", BASES)
def test_the_largest_entry_of_each_column_is_positive(moments, kind):
    basis = Subspace.fit(moments, kind=kind).basis.numpy()
    for column in basis.T:
        assert max(column, key=abs) > 0


@pytest.mark.parametrize("kind", BASES)
def test_fitting_is_deterministic_and_signs_do_not_depend_on_the_batches(kind):
    activation, context = draw()
    bases = [
        Subspace.fit(moments_in_batches(activation, context, split), kind=kind).basis
        for split in ([12], [12], [1] * 12, [3, 9])
    ]
    assert torch.equal(bases[0], bases[1])
    for other in bases[2:]:
        torch.testing.assert_close(other, bases[0], rtol=0, atol=1e-10)


def test_bases_differ(moments):
    found = [Subspace.fit(moments, 2, kind).basis for kind in BASES]
    for index, basis in enumerate(found):
        for other in found[:index]:
            assert (projector(basis) - projector(other)).abs().max() > 1e-2


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


# What cannot be fitted


def test_an_unknown_basis_is_refused_with_the_known_ones(moments):
    with pytest.raises(SubspaceError, match=r"unknown basis 'prcaposdef'.*prca, prca_signed, pca"):
        Subspace.fit(moments, 2, "prcaposdef")


@pytest.mark.parametrize("dimensions", [0, -1])
def test_a_subspace_has_at_least_one_dimension(moments, dimensions):
    with pytest.raises(SubspaceError, match="at least one dimension"):
        Subspace.fit(moments, dimensions)


def test_more_dimensions_than_channels_are_all_channels(moments):
    assert Subspace.fit(moments, 100).dimensions == Subspace.fit(moments).dimensions == 6


def test_too_few_positions_are_refused_with_how_many_are_needed():
    moments = Moments.of(*draw(images=2, positions=2))
    assert Subspace.fit(moments, 3).dimensions == 3
    with pytest.raises(SubspaceError, match=r"4 positions cannot determine a subspace of 4 .* at least 5"):
        Subspace.fit(moments, 4)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_activations_are_refused(kind, value, dtype):
    moments = Moments.empty(6)
    for count in (5, 3, 7):
        moments.update(torch.full((count, 6, 7), value, dtype=dtype), torch.randn(count, 6, 7))
    with pytest.raises(SubspaceError, match="activations do not vary"):
        Subspace.fit(moments, 2, kind)


def test_activations_too_small_for_the_loss_are_refused():
    activation, context = draw()
    with pytest.raises(SubspaceError, match="activations do not vary"):
        Subspace.fit(Moments.of(activation.double() * 1e-20, context.double()), 2)
    assert Subspace.fit(Moments.of(activation.double() * 1e-15, context.double()), 2).energy > 0


def test_a_tiny_variation_about_a_large_mean_is_no_constant():
    activation = torch.full((5, 3, 7), 1000.0, dtype=torch.float32)
    activation[2, 1, 4] = torch.nextafter(activation[2, 1, 4], torch.tensor(2000.0))
    subspace = Subspace.fit(Moments.of(activation), 1, "pca")
    torch.testing.assert_close(subspace.basis[:, 0], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_a_basis_without_any_variance_is_refused():
    activation, context = draw()
    activation[:, :2] = 0.1  # dead channels
    moments = Moments.of(activation, context)
    assert Subspace.fit(moments, 3, "identity").energy > 0
    with pytest.raises(SubspaceError, match="do not vary in the 2 directions of the basis 'identity'"):
        Subspace.fit(moments, 2, "identity")


@pytest.mark.parametrize("kind", ["prca", "prca_signed", "gradient_pca"])
def test_contexts_that_are_zero_everywhere_warn_and_fall_back_to_pca(kind):
    activation, context = draw()
    moments = Moments.of(activation, torch.zeros_like(context))
    with pytest.warns(UserWarning, match="contexts are zero at every position"):
        subspace = Subspace.fit(moments, 3, kind)
    expected = Subspace.fit(moments, 3, "pca")
    torch.testing.assert_close(subspace.basis, expected.basis)
    assert subspace.energy == pytest.approx(expected.energy)


@pytest.mark.parametrize("kind", ["pca", "random", "identity"])
def test_bases_without_contexts_do_not_warn(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Subspace.fit(Moments.of(draw()[0]), 3, kind).energy > 0


@pytest.mark.parametrize("kind", BASES)
def test_contexts_at_a_few_positions_are_enough(kind):
    activation, context = draw()
    context[:, :, 1:] = 0  # as after the last block of a vision transformer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Subspace.fit(Moments.of(activation, context), 3, kind).energy > 0


# Projecting


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", BASES)
def test_project_and_reconstruct_are_inverse_on_the_subspace(moments, kind, dtype):
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    activation = draw(seed=7)[0].to(dtype)
    subspace = Subspace.fit(moments, 4, kind)
    coordinates = subspace.project(activation)
    nearest = subspace.reconstruct(coordinates)
    assert coordinates.shape == (12, 4, 7)
    assert coordinates.dtype == nearest.dtype == dtype
    torch.testing.assert_close(subspace.project(nearest), coordinates, rtol=tolerance, atol=tolerance)
    u, mean = subspace.basis.numpy(), subspace.mean.numpy()
    for image in (0, 11):
        for position in (0, 6):
            a = activation[image, :, position].double().numpy()
            expected = u.T @ (a - mean)
            np.testing.assert_allclose(coordinates[image, :, position], expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(
                nearest[image, :, position], mean + u @ expected, rtol=tolerance, atol=tolerance
            )
    residual = activation - nearest
    assert subspace.project(residual + subspace.mean.to(dtype)[:, None]).abs().max() < 100 * tolerance


@pytest.mark.parametrize("kind", BASES)
def test_all_dimensions_reconstruct_everything(moments, kind):
    activation = draw(seed=7)[0]
    subspace = Subspace.fit(moments, kind=kind)
    torch.testing.assert_close(subspace.reconstruct(subspace.project(activation)), activation)


def test_truncation_is_the_fit_with_fewer_dimensions(moments):
    whole = Subspace.fit(moments)
    for dimensions in (1, 3, 6):
        expected, found = Subspace.fit(moments, dimensions), whole.truncated(dimensions)
        for name in ("mean", "basis", "energies", "eigenvalues"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        assert (found.total_energy, found.count, found.kind) == (whole.total_energy, 84, "prca")
        activation = draw(seed=7)[0]
        torch.testing.assert_close(found.project(activation), whole.project(activation)[:, :dimensions])


@pytest.mark.parametrize("dimensions", [0, 4])
def test_truncation_outside_the_dimensions_is_refused(moments, dimensions):
    with pytest.raises(SubspaceError, match=f"expected 1 to 3 dimensions, found {dimensions}"):
        Subspace.fit(moments, 3).truncated(dimensions)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Subspace)])
def test_a_subspace_is_frozen(moments, name):
    subspace = Subspace.fit(moments, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(subspace, name, None)


def test_later_images_do_not_change_a_fitted_subspace():
    moments = Moments.of(*draw())
    subspace = Subspace.fit(moments, 3)
    before = {name: getattr(subspace, name).clone() for name in ("mean", "basis", "energies")}
    moments.update(*draw(seed=2))
    assert all(torch.equal(getattr(subspace, name), value) for name, value in before.items())
    assert subspace.count == 84


# Saving


@pytest.mark.parametrize("kind", BASES)
def test_saving_and_loading_is_exact_to_the_bit(moments, kind, tmp_path):
    subspace = Subspace.fit(moments, 3, kind)
    subspace.save(tmp_path / "new" / "folder")
    loaded = Subspace.load(tmp_path / "new" / "folder")
    for name in ("mean", "basis", "energies", "eigenvalues"):
        assert torch.equal(getattr(loaded, name), getattr(subspace, name))
        assert getattr(loaded, name).dtype == torch.float64
    for name in ("total_energy", "energy", "count", "kind"):
        assert getattr(loaded, name) == getattr(subspace, name)
    activation = draw(seed=7)[0].float()
    assert torch.equal(loaded.project(activation), subspace.project(activation))


def test_several_layers_are_saved_in_order_and_may_share_memory(moments, tmp_path):
    whole = Subspace.fit(moments)
    subspaces = {"stages.2": whole, "stages.10": whole.truncated(2), "a/b": Subspace.fit(moments, 4, "pca")}
    save_subspaces(subspaces, tmp_path)
    loaded = load_subspaces(str(tmp_path))
    assert list(loaded) == list(subspaces)
    for layer, subspace in subspaces.items():
        assert torch.equal(loaded[layer].basis, subspace.basis)
        assert loaded[layer].kind == subspace.kind


def test_a_description_is_json_and_holds_every_figure(moments):
    subspace = Subspace.fit(moments, 3)
    described = json.loads(json.dumps(subspace.described()))
    for name in ("kind", "width", "dimensions", "count", "total_energy", "energy_fraction"):
        assert described[name] == getattr(subspace, name)
    for name in ("energies", "eigenvalues"):
        assert described[name] == getattr(subspace, name).tolist()


# Collecting


def stream_of(activation, context, split, prefix=0, name="layer"):
    grid = (1, activation.shape[2] - prefix)
    contexts = [None] * len(split) if context is None else context.split(split)
    for a, c in zip(activation.split(split), contexts, strict=True):
        yield {name: (Features(a, grid, prefix), None if c is None else Features(c, grid, prefix))}


@pytest.mark.parametrize("split", [[12], [5, 1, 6]])
def test_collect_moments_takes_every_position_of_every_layer(split):
    first, second = draw(), draw(width=4, positions=3)
    stream = (
        {**one, **two}
        for one, two in zip(
            stream_of(*first, split, name="first"), stream_of(*second, split, name="second"), strict=True
        )
    )
    found = collect_moments(stream)
    assert list(found) == ["first", "second"]
    for moments, inputs in zip(found.values(), (first, second), strict=True):
        expected = Moments.of(*inputs)
        for field in dataclasses.fields(Moments):
            torch.testing.assert_close(getattr(moments, field.name), getattr(expected, field.name))


def test_prefix_tokens_are_left_out_of_the_named_layers_only():
    activation, context = draw()
    activation[:, :, :2] += 100
    with_prefix = collect_moments(stream_of(activation, context, [12], prefix=2))["layer"]
    without = collect_moments(stream_of(activation, context, [12], prefix=2), without_prefix=["layer"])["layer"]
    other = collect_moments(stream_of(activation, context, [12], prefix=2), without_prefix=["other"])["layer"]
    assert (with_prefix.count, without.count, other.count) == (84, 60, 84)
    torch.testing.assert_close(without.mean, activation[:, :, 2:].mean(dim=(0, 2)))
    torch.testing.assert_close(without.context_sum, context[:, :, 2:].sum(dim=(0, 2)))
    torch.testing.assert_close(with_prefix.mean, other.mean)


def test_sampled_positions_do_not_depend_on_the_batches():
    activation, context = draw(positions=40)
    drawn = [
        collect_moments(stream_of(activation, context, split), positions=20, seed=5)["layer"]
        for split in ([12], [5, 1, 6], [1] * 12)
    ]
    for moments in drawn:
        assert moments.count == 12 * 20
        for field in dataclasses.fields(Moments):
            torch.testing.assert_close(getattr(moments, field.name), getattr(drawn[0], field.name))
    other = collect_moments(stream_of(activation, context, [12]), positions=20, seed=6)["layer"]
    assert not torch.allclose(other.mean, drawn[0].mean)


def test_activation_and_context_are_sampled_at_the_same_positions():
    activation, _ = draw(positions=40)
    moments = collect_moments(stream_of(activation, activation, [5, 7]), positions=20)["layer"]
    torch.testing.assert_close(moments.cross_scatter, moments.scatter)  # c = a position by position
    torch.testing.assert_close(moments.context_sum / moments.count, moments.mean)


def test_positions_are_sampled_without_replacement_and_afresh_for_each_image():
    one_hot = torch.eye(40, dtype=torch.float64).expand(2, 40, 40)  # channel p is 1 at position p
    first, second = (
        collect_moments(stream_of(one_hot[:count], None, [1] * count), positions=20)["layer"] for count in (1, 2)
    )
    chosen = (first.mean * first.count).round()
    assert chosen.sum() == 20
    assert set(chosen.tolist()) == {0.0, 1.0}
    other = (second.mean * second.count).round() - chosen
    assert set(other.tolist()) == {0.0, 1.0}
    assert not torch.equal(other, chosen)


def test_layers_with_fewer_positions_give_all_of_them():
    activation, context = draw()
    sampled = collect_moments(stream_of(activation, context, [12]), positions=20)["layer"]
    torch.testing.assert_close(sampled.scatter, Moments.of(activation, context).scatter)


def test_no_images_are_refused():
    with pytest.raises(SubspaceError, match="no images"):
        collect_moments([])


def _share_moments(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    activation, context = draw()
    part = slice(0, 5) if rank == 0 else slice(5, 12)
    moments = collect_moments(stream_of(activation[part], context[part], [2, 3] if rank == 0 else [7]))["layer"]
    torch.save(dataclasses.astuple(moments), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_moments_of_all_images(tmp_path):
    torch.multiprocessing.spawn(_share_moments, (str(tmp_path),), nprocs=2)
    expected = Moments.of(*draw())
    for rank in range(2):
        moments = Moments(*torch.load(tmp_path / f"{rank}.pt"))
        for field in dataclasses.fields(Moments):
            torch.testing.assert_close(getattr(moments, field.name), getattr(expected, field.name))
