"""`subdistill analyse`."""

import json

import pytest
from PIL import Image

from command_line import inspection

pytestmark = [
    pytest.mark.usefixtures("datasets_cache"),
    pytest.mark.filterwarnings("ignore:the license of the teacher 'teacher' is unknown"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO"),  # `datasets` leaves damaged files open
]


def test_analyse_prints_accuracies_of_each_stage_and_writes_its_files(inputs, tmp_path):
    layers = "resnet.encoder.stages.0 resnet.encoder.stages.1"
    status, printed, said = inspection(
        inputs, "analyse", output_dir=tmp_path / "out", layers=layers, bases="pca random"
    )
    assert status == 0, said
    assert "projections" in said  # the bar
    figures = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))
    for layer in figures["layers"]:
        assert f"accuracy in %, {layer['layer']} ({layer['output']}) projected" in printed
        for k, pca, random in zip(layer["dimensions"], *layer["accuracy"].values(), strict=True):
            assert [str(k), f"{100 * pca:.1f}", f"{100 * random:.1f}"] in [
                line.split() for line in printed.splitlines()
            ]
    with Image.open(tmp_path / "out" / "analysis.png") as image:
        assert min(image.size) > 200


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": "nonesuch 1"}, "unknown class 'nonesuch'"),
        ({"bases": "pca lda"}, "argument --bases: invalid choice: 'lda' (choose from 'prca', "),
        ({"dimensions": "1 99"}, "no layer can be projected on 99 dimensions"),
        ({"dimensions": "many"}, "invalid int value: 'many'"),
    ],
)
def test_bad_input_to_analyse_gets_one_message(inputs, tmp_path, changed, message):
    status, printed, said = inspection(inputs, "analyse", output_dir=tmp_path / "out", **changed)
    assert (status, printed) == (2, "")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
