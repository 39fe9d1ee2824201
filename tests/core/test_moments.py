"""Moments against slow loops in NumPy, for any split into batches, shards and processes."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from programs import run_side_by_side
from sampled import draw, moments_in_batches, projector
from subdistill_hf.core.activations import Features
from subdistill_hf.core.moments import Moments, collect_moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import SubspaceError


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
    run_side_by_side(_share_moments, str(tmp_path))
    expected = Moments.of(*draw())
    for rank in range(2):
        moments = Moments(*torch.load(tmp_path / f"{rank}.pt"))
        for field in dataclasses.fields(Moments):
            torch.testing.assert_close(getattr(moments, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("processes", [2, 3])
def test_positions_sampled_by_several_processes_are_those_of_one(processes):
    activation, context = draw(positions=40)
    whole = collect_moments(stream_of(activation, context, [12]), positions=20, seed=5)["layer"]
    shards = []
    for rank in range(processes):
        own = slice(rank, None, processes)
        images = len(activation[own])
        stream = stream_of(activation[own], context[own], [2, images - 2])
        shards.append(collect_moments(stream, positions=20, seed=5, rank=rank, processes=processes)["layer"])
    merged = Moments.merged(shards)
    assert merged.count == whole.count
    for name in ("mean", "scatter", "context_sum", "context_scatter", "cross_scatter"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_moments_are_compared_by_identity_and_are_keys():
    first, second = (Moments.of(*draw()) for _ in range(2))
    assert first == first
    assert first != second
    assert {first: "layer"}[first] == "layer"
