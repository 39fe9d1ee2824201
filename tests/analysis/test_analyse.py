"""Which projections are measured, and how the measured accuracies are put together."""

import json

import pytest
import torch

from helpers import NAMES, write_task
from subdistill_hf.analysis.analyse import analyse, analysis_tables, default_dimensions, sufficient_dimensions
from subdistill_hf.analysis.teacher_layers import load_teacher_layers
from subdistill_hf.config.commands import AnalyseOptions
from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import SubDistillError, SubspaceError

pytestmark = pytest.mark.usefixtures("datasets_cache")
LAYERS = [f"resnet.encoder.stages.{stage}" for stage in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("analysis"))


def options(folder, **changed):
    defaults = {
        "teacher": str(folder / "teacher"),
        "dataset": str(folder / "images"),
        "classes": list(NAMES),
        "layers": LAYERS,
    }
    return AnalyseOptions(**defaults | changed)


def test_no_image_is_held_out_unless_it_is_asked_for(folder):
    everything = load_teacher_layers(options(folder)).data
    some = load_teacher_layers(options(folder, validation_fraction=0.5)).data
    assert (len(everything.validation), len(some.validation)) == (0, len(everything.train) - len(some.train))
    assert len(some.validation) > 0


@pytest.mark.parametrize(
    ("width", "count", "expected"),
    [
        (12, 100, [1, 2, 4, 8, 12]),
        (16, 100, [1, 2, 4, 8, 16]),
        (1, 100, [1]),
        (12, 9, [1, 2, 4, 8]),  # nine positions determine eight dimensions
        (16, 16, [1, 2, 4, 8]),
    ],
)
def test_default_dimensions_are_powers_of_two_and_the_width(width, count, expected):
    moments = Moments.of(torch.randn(width, count))
    assert default_dimensions(moments) == expected


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ([0.2, 0.5, 0.88, 0.9], 4),
        ([0.9, 0.9, 0.9, 0.9], 1),
        ([0.2, 0.9, 0.5, 0.9], 8),  # once lost again it was luck
        ([0.2, 0.3, 0.4, 0.5], None),
        ([0.2, 0.3, 0.95, 0.95], 4),  # better than the teacher as it is
    ],
)
def test_sufficient_dimensions_lose_little_and_so_do_more(accuracy, expected):
    assert sufficient_dimensions([1, 2, 4, 8], accuracy, unprojected=0.9) == expected


def test_an_analysis_has_every_basis_on_every_layer(folder, tmp_path, capsys):
    analysis = analyse(options(folder, output_dir=str(tmp_path / "out")))
    assert [(one.layer, one.width, one.dimensions) for one in analysis.layers] == [
        (LAYERS[0], 12, [1, 2, 4, 8, 12]),
        (LAYERS[1], 20, [1, 2, 4, 8, 16, 20]),
    ]
    for one in analysis.layers:
        assert list(one.accuracy) == ["prca", "pca", "gradient_pca", "random", "identity"]
        for basis, values in one.accuracy.items():
            assert values[-1] == pytest.approx(analysis.accuracy)  # nothing is lost in all dimensions
            kept = one.energy_fraction[basis]
            assert kept == sorted(kept)
            assert kept[-1] == pytest.approx(1)
        for kept in one.energy_fraction.values():  # no subspace of K dimensions holds more variance than PCA's
            assert all(value <= most + 1e-12 for value, most in zip(kept, one.energy_fraction["pca"], strict=True))
    printed = capsys.readouterr().out
    assert analysis_tables(analysis) in printed
    written = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))
    assert written["layers"][1]["accuracy"] == analysis.layers[1].accuracy
    assert (written["chance"], written["test_images"], written["classes"]) == (1 / 3, 9, list(NAMES))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["analysis.json", "analysis.png"]


def test_the_random_curve_is_a_mean_over_bases_and_the_others_are_their_own(folder):
    asked = options(folder, bases=["random", "identity", "random"], dimensions=[3, 1], seed=5)
    layers, measured = analyse(asked).layers, load_teacher_layers(asked).moments()
    for one, seeds in zip(layers, ((5, 6, 7), (8, 9, 10)), strict=True):  # other bases for each layer
        assert (list(one.accuracy), one.dimensions) == (["random", "identity"], [1, 3])
        moments = measured[one.layer]
        random = [Subspace.fit(moments, 3, "random", seed).energy_fraction for seed in seeds]
        assert one.energy_fraction["random"][1] == pytest.approx(sum(random) / 3)
        assert one.energy_fraction["identity"][1] == pytest.approx(
            float(moments.covariance.diag()[:3].sum() / moments.covariance.trace())
        )


def test_tables_say_what_suffices_and_what_does_not(folder):
    analysis = analyse(options(folder, bases=["pca"], dimensions=[1, 16]))
    shown = analysis_tables(analysis)
    assert "stages.0 (12 x " in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["1", f"{100 * analysis.layers[0].accuracy['pca'][0]:.1f}"] in lines
    assert ["16", f"{100 * analysis.layers[1].accuracy['pca'][1]:.1f}"] in lines
    first, second = (line for line in lines if line and line[0] in LAYERS)
    assert first[1:] in (["1", "of", "12"], ["more", "than", "1"])
    assert second[-1] in ("20", "16")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"bases": ["prca", "gradient-pac"]}, SubDistillError, "did you mean 'gradient_pca'"),
        ({"dimensions": [4, 21]}, SubspaceError, "no layer can be projected on 21 dimensions: resnet.* has 12, .* 20"),
        ({"dimensions": [0]}, SubspaceError, "no layer can be projected on 0 dimensions"),
        ({"dimensions": [16]}, SubspaceError, r"stages.0' has fewer dimensions than any that were asked for"),
        ({"layers": ["resnet.encoder.stage.1"]}, LayerError, "nearest names: resnet.encoder.stages"),
        ({"layers": ["classifier"]}, LayerError, "layer 'classifier' gives a torch.float32 tensor"),
    ],
)
def test_what_cannot_be_analysed_is_refused_before_anything_is_fitted(folder, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        analyse(options(folder, output_dir=str(tmp_path / "out"), **changed))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(SubDistillError, match="is a file: expected a folder"):
        analyse(options(folder, output_dir=str(tmp_path / "out")))
