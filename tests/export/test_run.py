"""A student from its folder to files for devices, measured in onnxruntime alone, and said on its card."""

import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from command_line import files, run
from export.samples import student_of_a_run
from helpers import NAMES, resnet, save_teacher
from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.data.preprocessing import process
from subdistill_hf.errors import SubDistillError
from subdistill_hf.export import exporting, onnx_files, onnx_quantisation
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.exporting import export_files
from subdistill_hf.export.images import made_up_images
from subdistill_hf.export.onnx_files import OnnxFiles
from subdistill_hf.export.run import export_student
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.export.summary import summary
from subdistill_hf.formatting import file_size
from subdistill_hf.hub.files import weights_identity
from subdistill_hf.models.loading import load_student
from subdistill_hf.reporting.report import RunReport

FILES = {
    "export.json",
    "model.onnx",
    "model_quantized.onnx",
    "run_onnx.py",
    "transformers_js/config.json",
    "transformers_js/onnx/model.onnx",
    "transformers_js/onnx/model_quantized.onnx",
    "transformers_js/preprocessor_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, datasets_cache):
    return student_of_a_run(tmp_path_factory, train=6, validation_fraction=0.34)


@pytest.fixture(scope="module")
def networks():
    """The networks that were exported."""
    return []


@pytest.fixture(scope="module")
def exported(folder, networks):
    with pytest.MonkeyPatch.context() as patched:
        usual = OnnxFiles.float_network
        patched.setattr(OnnxFiles, "float_network", lambda files: networks.append(usual(files)) or networks[0])
        return export_student(folder, ExportOptions(int8=True, max_loss=100))


@pytest.fixture
def network(monkeypatch, exported, networks):
    """Later exports take the network of the first one, which is the same and takes seconds to make."""
    monkeypatch.setattr(OnnxFiles, "float_network", lambda files: networks[0])


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def answers(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits", "probabilities"], {"images": image[None]})


def test_the_folder_holds_what_devices_load(exported, folder):
    assert written(folder / "onnx") == FILES
    assert not list(folder.glob(".*"))


def test_the_file_takes_images_of_any_size_and_gives_torch_s_answer(exported, folder):
    student = load_student(folder)
    image = np.asarray(Image.open(folder / "example.png").resize((50, 41)))
    logits, probabilities = answers(folder / "onnx" / "model.onnx", image)
    with torch.no_grad():
        pixels = process(student.processor, [torch.from_numpy(image.copy()).permute(2, 0, 1)])
        expected = student.model(pixel_values=pixels).logits
    np.testing.assert_allclose(logits, expected, atol=0.02)
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(logits), 1), rtol=1e-5)


def test_the_report_says_what_was_measured(exported, folder):
    plain, small = exported.files
    assert (plain.name, plain.precision, plain.scheme) == ("model.onnx", "float32", None)
    assert (small.name, small.precision) == ("model_quantized.onnx", "int8")
    assert small.scheme in {"static", "dynamic"}
    assert plain.agreement == 1
    assert plain.accuracy == exported.torch_accuracy
    assert plain.largest_difference < 0.02
    assert exported.network_difference < 2e-5
    assert exported.pixel_difference < 2.01
    assert exported.image_count == 9
    assert exported.calibration_images == 12
    assert {one.name for one in exported.tried} == {"static", "dynamic"}
    assert plain.size_bytes == (folder / "onnx" / "model.onnx").stat().st_size
    assert plain.latency_ms.low <= plain.latency_ms.median <= plain.latency_ms.high
    assert 2**20 < plain.peak_memory_bytes < 2**28
    assert RunReport.load(folder).exports == (exported,)
    assert exported.weights == weights_identity(folder)
    assert json.loads((folder / "onnx" / "export.json").read_text())["files"][0]["name"] == "model.onnx"


def test_the_card_has_a_section_of_the_device(exported, folder):
    card = (folder / "README.md").read_text()
    assert card.count("\n## On a device\n") == 1
    assert card.index("## On a device") < card.index("## Subspaces")
    assert "`onnx/model_quantized.onnx`" in card
    assert "](on_device.png)" in card
    assert (folder / "on_device.png").is_file()
    assert str(folder) not in card


def test_the_script_needs_no_torch(exported, folder, monkeypatch, capsys):
    for absent in ("torch", "transformers", "timm", "subdistill_hf"):
        monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", str(folder / "example.png")])
    runpy.run_path(str(folder / "onnx" / "run_onnx.py"))
    lines = capsys.readouterr().out.splitlines()
    image = np.asarray(Image.open(folder / "example.png"))
    _, (probabilities,) = answers(folder / "onnx" / "model_quantized.onnx", image)
    assert lines[0].endswith(f"{NAMES[probabilities.argmax()]} {probabilities.max():.3f}")
    assert len(lines) == len(NAMES)


def test_transformers_js_gets_a_configuration_that_leaves_pixels_alone(exported, folder):
    place = folder / "onnx" / "transformers_js"
    config = json.loads((place / "config.json").read_text())
    assert config["model_type"] == "resnet"
    assert list(config["id2label"].values()) == list(NAMES)
    settings = json.loads((place / "preprocessor_config.json").read_text())
    assert not any(settings[name] for name in ("do_resize", "do_rescale", "do_normalize", "do_center_crop"))
    image = np.asarray(Image.open(folder / "example.png"))
    session = onnxruntime.InferenceSession(str(place / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"pixel_values": image.astype(np.float32).transpose(2, 0, 1)[None]})[0]
    assert np.array_equal(found, answers(folder / "onnx" / "model.onnx", image)[0])


def test_the_same_student_gives_the_same_files(network, exported, folder):
    before = {name: (folder / "onnx" / name).read_bytes() for name in FILES if name.endswith(".onnx")}
    export_student(folder, ExportOptions(int8=True, max_loss=100))
    assert before == {name: (folder / "onnx" / name).read_bytes() for name in before}
    assert (folder / "README.md").read_text().count("\n## On a device\n") == 1


def test_int8_that_costs_too_much_is_left_out_and_said(network, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_too_costly", lambda *given: "it is bad")
    result = export_files(student_of(folder), made_up(folder), ExportOptions(int8=True), tmp_path)
    assert [file.name for file in result.files] == ["model.onnx"]
    assert result.left_out == "it is bad"
    assert not [name for name in written(tmp_path) if "quantized" in name]
    config = json.loads((tmp_path / "transformers_js" / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32"}


def student_of(folder):
    return TorchStudent(load_student(folder))


def made_up(folder):
    images = made_up_images(folder)
    return replace(images, calibration=images.test)


def test_a_way_to_eight_bits_that_fails_leaves_the_other(network, folder, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(exporting, "_too_large", lambda *given: None)  # as dynamic is for so small a network
    monkeypatch.setitem(onnx_quantisation.SCHEMES, "static", fail)
    result = export_files(student_of(folder), made_up(folder), ExportOptions(int8=True, max_loss=100), tmp_path)
    assert result.tried[0].failed == "no such operator"
    assert result.files[1].scheme == "dynamic"
    monkeypatch.setitem(onnx_quantisation.SCHEMES, "dynamic", fail)
    (tmp_path / "again").mkdir()
    result = export_files(student_of(folder), made_up(folder), ExportOptions(int8=True), tmp_path / "again")
    assert [file.name for file in result.files] == ["model.onnx"]
    assert result.left_out.startswith("static gave no file that runs (no such operator); dynamic gave")


def test_a_full_disk_leaves_the_student_as_it_was(network, folder, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    before = files(folder)
    monkeypatch.setattr(onnx_files, "write_browser_folder", full)
    status, _, said = run("export", [str(folder)])
    assert (status, said.splitlines()[-1]) == (2, "error: the disk cannot be written to: No space left on device")
    assert files(folder) == before


@pytest.mark.parametrize(
    ("accuracy", "torch_accuracy", "agreement", "kept"),
    [(0.8, 0.809, 0.5, True), (0.8, 0.811, 1.0, False), (None, None, 0.995, True), (None, None, 0.98, False)],
)
def test_what_int8_may_cost(exported, accuracy, torch_accuracy, agreement, kept):
    file = replace(exported.files[1], accuracy=accuracy, agreement=agreement)
    expected = exporting._Expected(np.zeros((1, 3)), torch_accuracy)
    assert (exporting._too_costly(file, expected, 1.0) is None) == kept


@pytest.mark.parametrize("right", range(1, 100))
def test_int8_may_cost_all_the_points_that_are_allowed(exported, right):
    """Though differences of shares are rounded: 0.99 - 0.98 is more than 0.01."""
    expected = exporting._Expected(np.zeros((1, 3)), (right + 1) / 100)
    file = replace(exported.files[0], accuracy=right / 100)
    assert exporting._too_costly(file, expected, 1.0) is None
    unlabelled = replace(file, accuracy=None, agreement=1 - right / 100)
    assert exporting._too_costly(unlabelled, exporting._Expected(np.zeros((1, 3)), None), float(right)) is None
    assert exporting._too_costly(file, expected, 0.999) is not None


def test_an_int8_file_that_is_not_smaller_is_left_out_and_said(network, folder, tmp_path, monkeypatch):
    """The programs beside the files would take it, as the smaller one."""
    monkeypatch.setattr(OnnxFiles, "quantised", lambda files, network, scheme, pixels: network)
    result = export_files(student_of(folder), made_up(folder), ExportOptions(int8=True, max_loss=100), tmp_path)
    assert [file.name for file in result.files] == ["model.onnx"]
    size = file_size(result.files[0].size_bytes)
    assert result.left_out.startswith(f"it would have {size}, and the file in float32 has {size}: ")
    assert not [name for name in written(tmp_path) if "quantized" in name]


def test_outside_the_file_takes_processed_pixels(network, folder, tmp_path, monkeypatch, capsys):
    result = export_files(student_of(folder), made_up(folder), ExportOptions(preprocessing="outside"), tmp_path)
    assert result.files[0].largest_difference < 2e-5
    assert result.pixel_difference is None
    settings = json.loads((tmp_path / "transformers_js" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 32, "width": 32}
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", str(folder / "example.png")])
    runpy.run_path(str(tmp_path / "run_onnx.py"))
    inside = answers(folder / "onnx" / "model.onnx", np.asarray(Image.open(folder / "example.png")))[1]
    best = capsys.readouterr().out.splitlines()[0].split()
    assert best[-2] == NAMES[inside.argmax()].split()[-1]
    assert float(best[-1]) == pytest.approx(inside.max(), abs=0.002)


def test_it_is_said_that_there_is_no_program_where_the_processor_is_not_known(exported):
    assert "no program" not in summary(exported, "expert")
    outside = replace(exported, preprocessing="outside", pixel_difference=None)
    assert "note: no program that uses the files" in summary(outside, "expert")
    assert "no program" not in summary(replace(outside, left_to_device=("scale to 32 x 32 pixels",)), "expert")


def test_a_folder_that_is_no_student_is_refused(tmp_path):
    with pytest.raises(SubDistillError, match="holds no student: expected a folder with"):
        export_student(tmp_path)


def test_files_of_somebody_else_are_not_replaced(tmp_path):
    save_teacher(tmp_path, resnet(widths=(8, 12)))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine.onnx").touch()
    with pytest.raises(ExportError, match="already holds other files"):
        export_student(tmp_path)
    (tmp_path / "onnx" / "mine.onnx").unlink()
    export_student(tmp_path)
    assert (tmp_path / "onnx" / "model.onnx").is_file()


def test_int8_of_a_student_of_unknown_images_asks_for_some(tmp_path):
    save_teacher(tmp_path, resnet(widths=(8, 12)))
    with pytest.raises(ExportError, match=r"int8 needs images.*--calibration"):
        export_student(tmp_path, ExportOptions(int8=True))
    assert written(tmp_path) == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("format", "title", "package"), [("onnx", "ONNX", "onnxruntime"), ("executorch", "ExecuTorch", "executorch")]
)
def test_without_the_packages_the_command_that_installs_them_is_said(tmp_path, monkeypatch, format, title, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run("export", [str(tmp_path), "--format", format]) == (
        2,
        "",
        f"error: the export to {title} needs packages that are not installed: pip install 'subdistill-hf[{format}]'\n",
    )


def test_points_out_of_range_are_refused():
    with pytest.raises(SubDistillError, match="max_loss=101"):
        ExportOptions(max_loss=101)


def test_the_command_says_what_was_measured(network, folder, monkeypatch):
    status, said, _ = run("export", [str(folder)])
    assert status == 0
    assert "model.onnx" in said
    assert said.rstrip().endswith(str(folder / "onnx"))
