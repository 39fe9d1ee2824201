"""The card's section of exported files: its table, its facts, and its place in a card that somebody has changed."""

from dataclasses import replace

import pytest

from reporting.samples import make_report, parsed
from subdistill_hf.reporting.card_section import describe_on_card, with_section
from subdistill_hf.reporting.export_plot import plot_export
from subdistill_hf.reporting.exported import ExportedFile, Latency, ReportedExport, TriedScheme
from subdistill_hf.reporting.model_card import render_card, render_on_device
from subdistill_hf.reporting.report import RunReport

FLOAT = ExportedFile(
    name="model.onnx",
    precision="float32",
    size_bytes=400_000,
    accuracy=0.91,
    agreement=1.0,
    largest_difference=0.0041,
    latency_ms=Latency(median=1.5, low=1.4, high=1.75, runs=50),
    peak_memory_bytes=60 * 2**20,
)
INT8 = replace(
    FLOAT, name="model_quantized.onnx", precision="int8", scheme="static", size_bytes=110_000, accuracy=0.905
)
EXPORT = ReportedExport(
    format="onnx",
    runtime="onnxruntime 1.32.0",
    machine="a processor",
    preprocessing="inside",
    pixel_difference=1.0,
    network_difference=4.2e-6,
    images="the 500 test images of glyphs-100",
    image_count=500,
    torch_accuracy=0.91,
    calibration_images=128,
    tried=(TriedScheme(name="static", accuracy=0.9, agreement=0.99, size_bytes=110_000),),
    files=(FLOAT, INT8),
)
REPORT = replace(parsed(make_report()), exports=(EXPORT,))


def test_a_report_with_exports_is_read_as_it_was_written(tmp_path):
    REPORT.save(tmp_path)
    assert RunReport.load(tmp_path) == REPORT


def test_the_section_is_a_part_of_the_card():
    card = str(render_card(REPORT))
    assert render_on_device(REPORT).strip() in card
    assert "On a device" not in str(render_card(replace(REPORT, exports=())))


def test_the_table_has_a_row_for_each_file():
    section = render_on_device(REPORT, {"onnx": "on_device.png"})
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert rows[2].startswith("| torch | float32 | – | 91.0 % |")  # noqa: RUF001
    assert rows[3].startswith(
        "| `onnx/model.onnx` | float32 | 400.0 kB | 91.0 % | 100.0 % | 0.0041 | 1.5 ms (1.4 to 1.75)"
    )
    assert rows[4].startswith("| `onnx/model_quantized.onnx` | int8 | 110.0 kB | 90.5 % |")
    assert "](on_device.png)" in section
    assert "pixels differ by at most 1 of 255 levels" in section
    assert "static 90.0 % in 110.0 kB; ranges from 128 images" in section
    assert "python onnx/run_onnx.py example.png" in section


def test_what_is_left_to_the_device_is_said_and_a_program_does_it():
    steps = ("scale to 64 x 64 pixels, bilinear with antialiasing", "divide by 255")
    pte = replace(FLOAT, name="model.pte", peak_memory_bytes=None)
    other = replace(EXPORT, format="executorch", preprocessing="outside", left_to_device=steps, files=(pte,), tried=())
    section = render_on_device(replace(REPORT, exports=(EXPORT, other)), {"onnx": "on_device.png"})
    assert section.count("## On a device") == section.count("](on_device.png)") == 1
    second = section[section.index("`executorch/model.pte`") :]
    assert f"preprocessing is left to the device. These steps, in this order: {'; '.join(steps)}." in second
    assert "python executorch/run_executorch.py example.png" in second
    assert "; times are of one image" in second
    assert "transformers_js" not in second
    assert "Memory of the process" not in second


def test_without_known_steps_there_is_no_program():
    outside = replace(EXPORT, preprocessing="outside")
    assert "run_onnx.py" not in render_on_device(replace(REPORT, exports=(outside,)))


def test_what_was_left_out_is_said():
    without = replace(EXPORT, files=(FLOAT,), left_out="its accuracy is 80.0 % instead of 91.0 %")
    section = render_on_device(replace(REPORT, exports=(without,)))
    assert "There is no file of 8 bits: its accuracy is 80.0 % instead of 91.0 %." in section
    assert "model_quantized" not in section


def test_the_way_to_eight_bits_has_the_words_of_its_format():
    other = replace(EXPORT, format="executorch")
    first, second = (render_on_device(replace(REPORT, exports=(one,))) for one in (EXPORT, other))
    assert "The one that was kept is static: fixed ranges of weights and activations, weights of 7 bits" in first
    assert "The one that was kept is static: fixed ranges of weights and activations." in second


def test_without_labels_no_accuracy_is_said():
    files = tuple(replace(file, accuracy=None) for file in EXPORT.files)
    tried = (replace(EXPORT.tried[0], accuracy=None),)
    section = render_on_device(
        replace(REPORT, exports=(replace(EXPORT, files=files, tried=tried, torch_accuracy=None),))
    )
    assert "| Accuracy |" not in section
    assert "by same class as torch on validation images: static 99.0 %" in section


CARD = """\
---
license: mit
---

# Mine

## Usage

```bash
## On a device
```

## Results

good

## Training

long
"""


def test_the_section_goes_before_the_training_and_replaces_an_earlier_one():
    once = with_section(CARD, "## On a device\n\nfirst\n")
    assert once == CARD.replace("## Training", "## On a device\n\nfirst\n\n## Training")
    assert with_section(once, "## On a device\n\nsecond\n") == once.replace("first", "second")


def test_a_card_of_other_headings_gets_the_section_at_its_end():
    assert with_section("# Mine\n\ntext\n", "## On a device\n") == "# Mine\n\ntext\n\n## On a device\n\n"


def test_other_text_of_a_card_stays(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    describe_on_card(tmp_path, REPORT)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith(CARD[: CARD.index("## Training")])
    assert card.endswith(CARD[CARD.index("## Training") :])
    assert (tmp_path / "on_device.png").is_file()


def test_a_student_without_a_card_gets_none(tmp_path, capsys):
    describe_on_card(tmp_path, REPORT)
    assert not (tmp_path / "README.md").exists()
    assert "has no card" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [True, False])
def test_the_figure_compares_files(tmp_path, labelled):
    files = EXPORT.files if labelled else tuple(replace(file, accuracy=None) for file in EXPORT.files)
    assert plot_export(replace(EXPORT, files=files), tmp_path / "a.png") == tmp_path / "a.png"
    assert plot_export(replace(EXPORT, files=(FLOAT,)), tmp_path / "b.png") is None
    assert not (tmp_path / "b.png").exists()
