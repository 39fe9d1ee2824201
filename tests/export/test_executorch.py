"""ExecuTorch files: torch's logits, the facts that travel in them, the record, and what has no counterpart."""

import importlib.util
import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from export.samples import student_of_a_run
from export.test_graph import Strange
from helpers import NAMES, processor, resnet
from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.data.preprocessing import process
from subdistill_hf.export import exporting
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.executorch_files import ExecutorchFiles
from subdistill_hf.export.executorch_quantisation import SCHEMES
from subdistill_hf.export.exporting import export_files
from subdistill_hf.export.formats import load_format
from subdistill_hf.export.images import made_up_images
from subdistill_hf.export.preprocessing import steps_of
from subdistill_hf.export.run import export_student
from subdistill_hf.export.runtime import measure
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.models.loading import LoadedModel, load_student
from subdistill_hf.models.students import build_student
from subdistill_hf.reporting.report import RunReport

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="ExecuTorch is not installed: pip install 'subdistill-hf[executorch]'",
)
OPTIONS = ExportOptions(format="executorch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, datasets_cache):
    return student_of_a_run(tmp_path_factory, train=2, validation_fraction=0.5)


@pytest.fixture(scope="module")
def exported(folder):
    return export_student(folder, OPTIONS)


def test_the_record_says_what_was_measured(exported, folder):
    (file,) = exported.files
    place = folder / "executorch"
    assert {path.name for path in place.iterdir()} == {"model.pte", "run_executorch.py", "export.json"}
    assert (file.name, file.precision, file.agreement) == ("model.pte", "float32", 1)
    assert file.accuracy == exported.torch_accuracy
    assert file.largest_difference == exported.network_difference < 2e-5
    assert file.size_bytes == (place / "model.pte").stat().st_size
    assert file.peak_memory_bytes is None
    assert exported.preprocessing == "outside"
    assert exported.left_to_device[0].startswith("scale to 32 x 32 pixels")
    assert exported.image_count == 9
    assert RunReport.load(folder).exports == (exported,)
    card = (folder / "README.md").read_text()
    assert "`executorch/model.pte`" in card
    assert "These steps, in this order: scale to 32 x 32 pixels" in card


def test_the_program_beside_the_file_gives_torch_s_answer(exported, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_executorch.py", str(folder / "example.png")])
    runpy.run_path(str(folder / "executorch" / "run_executorch.py"))
    student = load_student(folder)
    image = torch.from_numpy(np.array(Image.open(folder / "example.png"))).permute(2, 0, 1)
    with torch.no_grad():
        (expected,) = student.model(pixel_values=process(student.processor, [image])).logits.softmax(dim=1)
    best = capsys.readouterr().out.splitlines()[0].split()
    assert best[-2] == NAMES[expected.argmax()].split()[-1]
    assert float(best[-1]) == pytest.approx(float(expected.max()), abs=0.002)


def test_the_same_student_gives_the_same_file_with_its_facts(exported, folder):
    from executorch.runtime import Runtime

    student = TorchStudent(load_student(folder))
    steps = steps_of(student.loaded.processor)
    content = load_format("executorch")(student, None, steps).float_network()
    assert content == (folder / "executorch" / "model.pte").read_bytes()
    program = Runtime.get().load_program(content)
    assert json.loads(program.load_method("labels").execute([])[0]) == list(NAMES)
    first, last = json.loads(program.load_method("preprocessing").execute([])[0])
    assert (first["step"], first["height"], last["step"]) == ("Resize", 32, "Normalise")
    assert b"site-packages" not in content


@pytest.mark.parametrize("recipe", ["mobilenetv2:width=0.25", "timm/mobilenetv4_conv_small:width=0.35,image=64"])
def test_mobilenets_give_the_logits_of_torch(recipe):
    torch.manual_seed(0)
    student = TorchStudent(build_student(recipe, NAMES, processor()))
    pixels = np.random.default_rng(0).normal(size=(8, 3, *student.size)).astype(np.float32)
    for module in student.loaded.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the moments of one batch: with those of the start, logits are 0
    with torch.no_grad():
        student.loaded.model.train()(pixel_values=torch.from_numpy(pixels))
    student.loaded.model.eval()
    files = load_format("executorch")(student, None, ())
    run, expected = files.runner(files.float_network()), student.logits(pixels)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(run(pixels), expected, atol=2e-5)


@pytest.fixture(scope="module")
def in_eight_bits(tmp_path_factory, datasets_cache):
    """A folder, and its export with the file of 8 bits."""
    folder = student_of_a_run(tmp_path_factory, train=6, validation_fraction=0.34)
    return folder, export_student(folder, replace(OPTIONS, int8=True, max_loss=100))


def test_the_record_says_what_was_measured_of_eight_bits(in_eight_bits):
    folder, exported = in_eight_bits
    plain, small = exported.files
    assert (small.name, small.precision) == ("model_quantized.pte", "int8")
    assert small.size_bytes == (folder / "executorch" / small.name).stat().st_size < plain.size_bytes
    assert plain.agreement == 1
    assert plain.largest_difference < 2e-5 < small.largest_difference
    assert [(one.name, one.failed) for one in exported.tried] == [("static", None), ("dynamic", None)]
    assert small.scheme in {"static", "dynamic"}
    assert exported.calibration_images == 12
    assert RunReport.load(folder).exports == (exported,)
    assert "`executorch/model_quantized.pte`" in (folder / "README.md").read_text()


def test_the_program_beside_the_files_takes_that_of_eight_bits(in_eight_bits, monkeypatch, capsys):
    folder, _ = in_eight_bits
    place = folder / "executorch"
    (place / "model.pte").rename(place / "other.pte")
    monkeypatch.setattr(sys, "argv", ["run_executorch.py", str(folder / "example.png")])
    runpy.run_path(str(place / "run_executorch.py"))
    (place / "other.pte").rename(place / "model.pte")
    assert len(capsys.readouterr().out.splitlines()) == len(NAMES)


def test_eight_bits_that_cost_too_much_are_left_out(in_eight_bits, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_too_costly", lambda *given: "it is bad")
    monkeypatch.setattr(exporting, "_too_large", lambda *given: None)
    monkeypatch.setattr(ExecutorchFiles, "quantised", lambda files, network, scheme, pixels: network)
    student, images = TorchStudent(load_student(in_eight_bits[0])), made_up_images(in_eight_bits[0])
    images = replace(images, calibration=images.test)
    result = export_files(student, images, replace(OPTIONS, int8=True), tmp_path)
    assert ([file.name for file in result.files], result.left_out) == (["model.pte"], "it is bad")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pte", "run_executorch.py"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_images_give_the_same_file_of_nearly_the_same_answers(scheme):
    torch.manual_seed(0)
    files = files_of(resnet(widths=(4,)))
    random = np.random.default_rng(0)
    pixels = [random.normal(size=(3, 32, 32)).astype(np.float32)[None] for _ in range(20)]
    content = files.quantised(b"", scheme, pixels)
    assert files.quantised(b"", scheme, pixels) == content
    found, expected = files.runner(content)(np.concatenate(pixels)), files.student.logits([one[0] for one in pixels])
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def files_of(model: nn.Module):
    return load_format("executorch")(TorchStudent(LoadedModel(model.eval(), processor(), "student")), None, ())


def test_an_operator_without_a_counterpart_is_named_with_its_layer():
    strange = Strange()
    strange.config = resnet(widths=(8, 12)).config
    with pytest.raises(ExportError, match=r"ExecuTorch has no counterpart of aten\.special_bessel_j0.*features\.1"):
        files_of(strange).float_network()


def test_a_file_that_cannot_be_run_is_named_with_the_reason(tmp_path):
    (tmp_path / "model.pte").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"ExecuTorch cannot run the exported model\.pte: ."):
        measure("executorch", {"model.pte": tmp_path / "model.pte"}, [np.ones((3, 2, 2), np.float32)])
