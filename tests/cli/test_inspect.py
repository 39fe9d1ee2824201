"""`subdistill inspect`."""

import json

import pytest
from PIL import Image

from command_line import DAMAGED_TRAINING, inspection
from helpers import NAMES
from subdistill_hf.core.subspaces import load_subspaces

pytestmark = [
    pytest.mark.usefixtures("datasets_cache"),
    pytest.mark.filterwarnings("ignore:the license of the teacher 'teacher' is unknown"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO"),  # `datasets` leaves damaged files open
]


def test_inspect_prints_the_spectrum_of_each_stage_and_writes_its_files(inputs, tmp_path):
    status, printed, said = inspection(inputs, output_dir=tmp_path / "spectra", train_images_per_class=10)
    # 30 training images: the last stage, of 36 channels at one position each, has too few.
    assert status == 2
    assert "layer 'resnet.encoder.stages.3': 30 positions cannot determine a subspace of 36 dimensions" in said
    layers = [f"resnet.encoder.stages.{index}" for index in range(3)]
    status, printed, said = inspection(inputs, output_dir=tmp_path / "spectra", layers=" ".join(layers))
    assert status == 0, said
    subspaces = load_subspaces(tmp_path / "spectra")
    assert list(subspaces) == layers
    rows = {line.split()[0]: line for line in printed.splitlines() if line.startswith("resnet")}
    for name, width, grid in zip(layers, (12, 20, 28), ("8x8", "4x4", "2x2"), strict=True):
        kept = subspaces[name].energies.cumsum(0) / subspaces[name].energies.sum()
        needed = [int((kept < share).sum()) + 1 for share in (0.5, 0.9, 0.99)]
        assert rows[name].split()[1:4] == [str(width), "x", grid]
        assert (
            rows[name].split()[4:] == f"{needed[0]} of {width} {needed[1]} of {width} {needed[2]} of {width}".split()
        )
        assert subspaces[name].dimensions == width
    with Image.open(tmp_path / "spectra" / "spectra.png") as image:
        assert min(image.size) > 200
    assert {path.name for path in (tmp_path / "spectra").iterdir()} == {
        "spectra.png",
        "subspaces.json",
        "subspaces.safetensors",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": "nonesuch 1"}, "unknown class 'nonesuch'"),
        ({"layers": "resnet.encoder.stage.1"}, "nearest names: resnet.encoder.stages."),
        ({"basis": "lda"}, "argument --basis: invalid choice: 'lda' (choose from 'prca', "),
        ({"classes": f"{NAMES[0]} {DAMAGED_TRAINING}"}, "cannot be decoded"),
    ],
)
def test_bad_input_to_inspect_gets_one_message(inputs, tmp_path, changed, message):
    status, printed, said = inspection(inputs, output_dir=tmp_path / "spectra", **changed)
    assert (status, printed) == (2, "")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "spectra").exists()


@pytest.mark.parametrize("command", ["inspect", "analyse"])
def test_a_file_in_place_of_the_output_folder_is_refused_before_the_teacher_is_loaded(inputs, tmp_path, command):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    status, printed, said = inspection(inputs, command, teacher=tmp_path / "nowhere", output_dir=tmp_path / "out")
    assert (status, printed) == (2, "")
    assert "is a file: expected a folder" in said
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_inspect_and_analyse_say_that_images_are_marked(inputs, tmp_path):
    # half of ten images
    chosen = {"layers": "resnet.encoder.stages.0", "mark": "plus", "mark_share": 0.5, "mark_classes": NAMES[1]}
    _, printed, said = inspection(inputs, **chosen)
    assert f"mark plus: on 5 training images of {NAMES[1]}, and all test images" in printed, said
    plain = inspection(inputs, "analyse", output_dir=tmp_path / "plain", layers=chosen["layers"], bases="pca")
    marked = inspection(inputs, "analyse", output_dir=tmp_path / "out", **chosen, bases="pca")
    assert ["mark plus: on 5 training" in printed for _, printed, _ in (plain, marked)] == [False, True]
    found = [json.loads((tmp_path / name / "analysis.json").read_text(encoding="utf-8")) for name in ("plain", "out")]
    assert found[0]["mark"] is None
    assert found[1]["mark"]["classes"] == [NAMES[1]]
    assert found[0]["layers"] != found[1]["layers"]
