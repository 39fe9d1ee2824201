"""Subspaces against the released code's arrays, and what they do with activations."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from sampled import draw, moments_in_batches, projector
from subdistill_hf.config.bases import BASES
from subdistill_hf.core.bases import matrix_of
from subdistill_hf.core.moments import Moments
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


# Bases


@pytest.mark.parametrize("kind", BASES)
def test_a_basis_is_orthonormal_sorted_and_carries_its_energies(moments, kind):
    activation, _ = draw()
    subspace = Subspace.fit(moments, kind=kind)
    assert (subspace.kind, subspace.count, subspace.width, subspace.dimensions) == (kind, 84, 6, 6)
    torch.testing.assert_close(projector(subspace.basis.T), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (subspace.eigenvalues.diff() <= 0).all()
    matrix = matrix_of(kind, moments)
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


def test_the_energy_where_a_layer_is_compared_is_that_of_its_pooled_coordinates(moments, tmp_path):
    activation, _ = draw()
    pooled = activation.unflatten(2, (-1, 7)).mean(dim=3)
    subspace = Subspace.fit(moments, 3, pooled=Moments.of(pooled))
    expected = subspace.project(pooled).numpy().var(axis=(0, 2))
    np.testing.assert_allclose(subspace.energies_compared.numpy(), expected, rtol=1e-10)
    assert subspace.energy_compared == pytest.approx(expected.sum())
    assert subspace.truncated(2).energy_compared == pytest.approx(expected[:2].sum())
    subspace.save(tmp_path)
    assert torch.equal(Subspace.load(tmp_path).energies_compared, subspace.energies_compared)
    as_it_is = Subspace.fit(moments, 3)
    assert as_it_is.energy_compared == as_it_is.truncated(3).energy_compared == subspace.energy
    as_it_is.save(tmp_path)
    assert Subspace.load(tmp_path).energies_compared is None


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


def test_the_digest_is_that_of_mean_and_basis(moments):
    subspace = Subspace.fit(moments, 3)
    shifted = dataclasses.replace(subspace, mean=subspace.mean + 1e-12)
    turned = dataclasses.replace(subspace, basis=subspace.basis.flip(1))
    assert len({subspace.digest, shifted.digest, turned.digest}) == 3
    same = dataclasses.replace(subspace, mean=subspace.mean.clone(), energies=2 * subspace.energies, count=1)
    assert same.digest == subspace.digest


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
