"""The moments of a teacher's layers in one pass, shared by processes, and the subspaces that they determine."""

import pytest
import torch

from helpers import CLASS_IDS, processor, teacher_resnet, views
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import DistillationError, SubspaceError
from subdistill_hf.teacher import fitting
from subdistill_hf.teacher.fitting import FitRequest, fit_energies, fit_moments, fit_pairs
from subdistill_hf.teacher.teacher import Teacher
from trainings import STAGES

COLLATE = ViewCollator(processor())
LAYERS = [LayerShape(STAGES[0], 12, (8, 8), 0), LayerShape(STAGES[2], 28, (2, 2), 0)]
PAIRS = [
    LayerPair(layer, LayerShape(layer.name, width, layer.grid, 0)) for layer, width in zip(LAYERS, (5, 9), strict=True)
]


def request(**changed):
    return FitRequest(**{"positions": None, "seed": 0, "batch_size": 7, "show": False} | changed)


@pytest.fixture(scope="module")
def teacher():
    return Teacher(teacher_resnet(), CLASS_IDS)


def test_moments_are_those_of_the_activations_at_all_positions_of_all_images(teacher):
    images = views()
    found = fit_moments(teacher, LAYERS, images, COLLATE, request())
    pixels = COLLATE([images[index] for index in range(len(images))])["pixel_values"]
    with torch.no_grad():
        kept = teacher.model(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
    values = kept.flatten(2).transpose(0, 1).flatten(1).double()  # d, images and positions
    assert found[STAGES[0]].count == values.shape[1] == 24 * 64
    torch.testing.assert_close(found[STAGES[0]].mean, values.mean(dim=1), rtol=1e-6, atol=1e-7)
    covariance = torch.cov(values, correction=0)
    torch.testing.assert_close(found[STAGES[0]].covariance, covariance, rtol=1e-5, atol=1e-7)


def test_subspaces_have_the_dimensions_of_the_students_or_all(teacher):
    fitted = fit_pairs(teacher, PAIRS, views(), COLLATE, request(), "prca")
    assert {name: (each.dimensions, each.width) for name, each in fitted.items()} == {
        STAGES[0]: (5, 12),
        STAGES[2]: (9, 28),
    }
    whole = fit_pairs(teacher, PAIRS, views(), COLLATE, request(), "identity", full_width=True)
    assert [each.dimensions for each in whole.values()] == [12, 28]


def test_each_layer_draws_a_random_basis_of_its_own(teacher):
    fitted = fit_pairs(teacher, PAIRS, views(), COLLATE, request(seed=5), "random")
    moments = fit_moments(teacher, LAYERS, views(), COLLATE, request(), with_context=False)
    for name, dimensions, seed in ((STAGES[0], 5, 5), (STAGES[2], 9, 6)):
        assert torch.equal(fitted[name].basis, Subspace.fit(moments[name], dimensions, "random", seed).basis)


def test_the_energy_of_a_pooled_layer_is_that_of_the_target_where_it_is_compared(teacher):
    pairs = [LayerPair(layer, LayerShape(layer.name, 5, (3, 2), 0)) for layer in LAYERS]
    fitted = fit_pairs(teacher, pairs, views(), COLLATE, request(), "prca")
    images = views()
    pixels = COLLATE([images[index] for index in range(len(images))])["pixel_values"]
    with torch.no_grad():
        maps = teacher.model(pixel_values=pixels, output_hidden_states=True).hidden_states[1].double()
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, (3, 2)).flatten(2)
    coordinates = fitted[STAGES[0]].project(pooled)
    expected = float(coordinates.var(dim=(0, 2), correction=0).sum())
    assert fitted[STAGES[0]].energy_compared == pytest.approx(expected, rel=1e-6)
    assert expected < 0.9 * fitted[STAGES[0]].energy
    as_it_is = fit_pairs(teacher, PAIRS, views(), COLLATE, request(), "prca")[STAGES[0]]
    assert torch.equal(as_it_is.basis, fitted[STAGES[0]].basis)
    assert as_it_is.energies_compared is None


def test_energies_are_those_of_all_channels_where_a_layer_is_compared(teacher, monkeypatch):
    pairs = [LayerPair(layer, LayerShape(layer.name, 5, (4, 4), 0)) for layer in LAYERS]
    images = views()
    pixels = COLLATE([images[index] for index in range(len(images))])["pixel_values"]
    with torch.no_grad():
        hidden = teacher.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    expected = {
        STAGES[0]: torch.nn.functional.avg_pool2d(hidden[1].double(), 2),
        STAGES[2]: hidden[3].double(),  # of 2 x 2: it is the student's map that is pooled
    }
    found = fit_energies(teacher, pairs, images, COLLATE, request())
    for name, maps in expected.items():
        assert found[name] == pytest.approx(float(maps.var(dim=(0, 2, 3), correction=0).sum()), rel=1e-6)
    monkeypatch.setattr(teacher.model, "forward", lambda pixel_values: constant(teacher.model, pixel_values))
    with pytest.raises(SubspaceError, match=f"layer '{STAGES[0]}' does not vary"):
        fit_energies(teacher, pairs, images, COLLATE, request())


def constant(model, pixels):
    """What the model says of black images, whatever it is shown."""
    return type(model).forward(model, pixel_values=torch.zeros_like(pixels[:1]).expand_as(pixels))


def test_a_basis_without_contexts_needs_no_backward_pass(teacher, monkeypatch):
    asked = []
    stream = fitting.activations_and_contexts

    def watched(*args, with_context, **kwargs):
        asked.append(with_context)
        return stream(*args, with_context=with_context, **kwargs)

    monkeypatch.setattr(fitting, "activations_and_contexts", watched)
    for basis in ("prca", "pca", "random", "identity"):
        fit_pairs(teacher, PAIRS, views(), COLLATE, request(), basis)
    assert asked == [True, False, False, False]


def test_processes_share_the_images(teacher):
    whole = fit_moments(teacher, LAYERS, views(), COLLATE, request())
    shares = [fit_moments(teacher, LAYERS, views(), COLLATE, request(rank=rank, processes=3)) for rank in range(3)]
    for name, moments in whole.items():
        assert [share[name].count * 3 for share in shares] == [moments.count] * 3
        mean = sum(share[name].mean for share in shares) / 3
        torch.testing.assert_close(mean, moments.mean, rtol=1e-6, atol=1e-8)  # of float32 activations
    assert all(isinstance(moments, Moments) for moments in whole.values())


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([views()[index] for index in range(24)])


class Counted(Stream):
    """A stream that knows its number of images."""

    def __len__(self):
        return 24


def test_a_stream_that_knows_its_length_is_read_as_a_stream(teacher, monkeypatch):
    expected = fit_moments(teacher, LAYERS, views(), COLLATE, request())
    for bound in (fitting.BATCH_BYTES, 1):
        monkeypatch.setattr(fitting, "BATCH_BYTES", bound)
        found = fit_moments(teacher, LAYERS, Counted(), COLLATE, request())
        for name, moments in expected.items():
            assert torch.equal(found[name].covariance, moments.covariance)


@pytest.mark.parametrize(
    ("images", "processes", "message"),
    [
        (lambda: views(1), 4, "3 images cannot be shared by 4 processes"),
        (Stream, 2, "a streamed dataset cannot be shared by several processes: pass subspaces="),
        (Counted, 2, "a streamed dataset cannot be shared by several processes: pass subspaces="),
    ],
)
def test_images_that_cannot_be_shared_are_refused(teacher, images, processes, message):
    with pytest.raises(DistillationError, match=message):
        fit_moments(teacher, LAYERS, images(), COLLATE, request(processes=processes))


def test_fewer_images_at_once_give_the_same_where_memory_is_short(teacher, monkeypatch):
    expected = fit_moments(teacher, LAYERS, views(), COLLATE, request())
    forward, seen = teacher.model.forward, []

    def narrow(pixel_values):
        seen.append(len(pixel_values))
        if len(pixel_values) > 3:
            raise torch.OutOfMemoryError("there is no more")
        return forward(pixel_values=pixel_values)

    monkeypatch.setattr(teacher.model, "forward", narrow)
    with pytest.warns(UserWarning, match="continuing with batches of 3"):
        found = fit_moments(teacher, LAYERS, views(), COLLATE, request())
    assert seen[:2] == [7, 3]
    for name, moments in expected.items():
        assert found[name].count == moments.count
        torch.testing.assert_close(found[name].covariance, moments.covariance, rtol=1e-5, atol=1e-9)


def batch_sizes_of_a_fit(teacher, monkeypatch, images, **options):
    """How many images each pass of the teacher takes, and the moments."""
    sizes = []
    logits = Teacher.logits
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "logits", lambda self, pixels: sizes.append(len(pixels)) or logits(self, pixels))
        found = fit_moments(teacher, LAYERS, images, COLLATE, request(**options))
    return sizes, found


def test_a_batch_takes_no_more_memory_than_is_allowed(teacher, monkeypatch, capsys):
    sizes, whole = batch_sizes_of_a_fit(teacher, monkeypatch, views(), batch_size=12)
    assert sizes == [12, 12]  # so small that nothing is measured
    needed = []
    measure = fitting._bytes_of
    monkeypatch.setattr(fitting, "_bytes_of", lambda *given: needed.append(measure(*given)) or needed[-1])
    monkeypatch.setattr(fitting, "BATCH_BYTES", 1)
    assert batch_sizes_of_a_fit(teacher, monkeypatch, views(2))[0] == [1] * 7  # one was looked at first
    monkeypatch.setattr(fitting, "BATCH_BYTES", 5.5 * needed[0])
    few, small = batch_sizes_of_a_fit(teacher, monkeypatch, views(), batch_size=12, show=True)
    assert few == [1, 5, 5, 5, 5, 4]
    assert needed[0] == needed[1] > 0
    assert "subspaces  24 images in batches of 5: " in "".join(capsys.readouterr())
    for name, moments in whole.items():
        torch.testing.assert_close(small[name].covariance, moments.covariance, rtol=1e-12, atol=1e-14)


def test_what_an_image_takes_is_at_least_its_activations_and_contexts(teacher):
    def needed(with_context):
        stream = fitting.activations_and_contexts(
            lambda pixels: teacher.logits(pixels),
            teacher.model,
            [layer.name for layer in LAYERS],
            [torch.zeros(1, 3, 32, 32)],
            with_context=with_context,
        )
        return fitting._bytes_of(stream, teacher.model)

    layers = 12 * 64 + 28 * 4
    assert needed(True) > needed(False) >= 2 * 4 * layers + 3 * 8 * 12 * 64


def test_no_image_of_a_stream_is_looked_at_before(teacher, monkeypatch):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([views()[index] for index in range(9)])

    monkeypatch.setattr(fitting, "BATCH_BYTES", 1)
    sizes, _ = batch_sizes_of_a_fit(teacher, monkeypatch, Stream())
    assert sizes == [7, 2]


def test_fitting_leaves_the_random_numbers_of_the_training_as_they_are(teacher):
    before = torch.random.get_rng_state()
    fit_moments(teacher, LAYERS, views(), COLLATE, request(positions=4))
    assert torch.equal(torch.random.get_rng_state(), before)
