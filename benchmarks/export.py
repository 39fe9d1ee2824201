"""Distil students of several families, export each to ONNX in float32 and int8, and measure what arrives.

    python benchmarks/export.py --output_dir exported [--max_steps 800] [--students resnet vit]

The same command goes on where it was: the figures of each student are written to OUTPUT_DIR/export.json when it is
measured. At last the tables are printed, and written to OUTPUT_DIR/export.md. Where ExecuTorch is installed, its files
are made and measured too. Where node finds @huggingface/transformers (NODE_PATH), its answers to 100 test images are
compared with onnxruntime's in Python.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from subdistill_hf.cli import main as subdistill
from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.config.extras import has_extra
from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.export.images import images_of_run
from subdistill_hf.export.onnx_runtime import session
from subdistill_hf.export.run import export_student
from subdistill_hf.formatting import file_size, format_percent
from subdistill_hf.reporting.markdown import table
from subdistill_hf.reporting.report import RunReport

STUDENTS = {
    "resnet": "resnet:widths=16-24-32-48",
    "convnext": "convnext:widths=32-64-96-128",
    "mobilenetv2": "mobilenetv2:width=0.5,image=64",
    "mobilenetv4": "timm/mobilenetv4_conv_small:width=0.5,image=64",
    "efficientnet": "timm/efficientnet_b0:image=64",
    "vit": "vit:hidden=144,layers=6",
}
FIGURES_FILE = "export.json"
IMAGES_IN_NODE = 100
CLASSIFY = """
const { env, pipeline } = require("@huggingface/transformers");
env.allowRemoteModels = false;
env.localModelPath = process.argv[1];
const { readdirSync } = require("fs");
(async () => {
  const classify = await pipeline("image-classification", "transformers_js", { dtype: "fp32" });
  const answers = {};
  for (const name of readdirSync(process.argv[2])) answers[name] = await classify(`${process.argv[2]}/${name}`);
  console.log(JSON.stringify(answers));
})();
"""


def main() -> None:
    """Train, export, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=800)
    parser.add_argument("--classes", default="superclass:zodiac_signs", help="of glyphs-100")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    options = parser.parse_args()
    place = Path(options.output_dir)
    place.mkdir(parents=True, exist_ok=True)
    figures = earlier(place, {"classes": options.classes, "max_steps": options.max_steps})
    for name in options.students:
        if name not in figures["students"]:
            folder = place / name
            if not (folder / "report.json").is_file():
                train(folder, STUDENTS[name], options.classes, options.max_steps)
            figures["students"][name] = measured(folder)
            save(place, figures)
    text = in_words(
        {name: one for name, one in figures["students"].items() if name in options.students}, figures["settings"]
    )
    (place / "export.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def earlier(place: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of an earlier run that was cut short, or none yet; those of other settings are refused."""
    path = place / FIGURES_FILE
    if not path.is_file():
        save(place, {"settings": settings, "students": {}})
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if figures["settings"] != settings:
        raise SystemExit(f"{path} has figures of {figures['settings']}, not of {settings}: give another --output_dir")
    return figures


def save(place: Path, figures: dict[str, Any]) -> None:
    """Write the figures, whole or not at all."""
    with written_whole(place / FIGURES_FILE) as part:
        part.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def train(folder: Path, student: str, classes: str, steps: int) -> None:
    """Distil one of the students from the embedded teacher."""
    words = f"distill --classes {classes} --student {student} --max_steps {steps} --report_to none --disable_tqdm true"
    if subdistill([*words.split(), "--output_dir", str(folder)]):
        raise SystemExit(f"{student} was not trained")


def measured(folder: Path) -> dict[str, Any]:
    """What was measured of the files of each format whose packages are installed."""
    exports = {}
    for name, known in EXPORT_FORMATS.items():
        if has_extra(known.extra):
            options: dict[str, Any] = {"format": name, "int8": known.int8_file is not None, "max_loss": 100}
            exports[name] = asdict(export_student(folder, ExportOptions(**options)))
    return exports | {"same_in_node": same_in_node(folder)}


def in_words(students: dict[str, Any], settings: dict[str, Any]) -> str:
    """The table, and what it was measured with."""
    exports = [(name, one[known], one) for name, one in students.items() for known in EXPORT_FORMATS if known in one]
    rows = [row(name, export) | {"Node as Python": in_node(export, one)} for name, export, one in exports]
    runtimes = " and ".join(dict.fromkeys(export["runtime"] for _, export, _ in exports))
    first = exports[0][1]
    about = f"{runtimes} on {first['machine']}, 1 thread, 1 image; {first['images']}"
    return f"{table(rows)}\n\n{about}; {settings['max_steps']} steps of training."


def in_node(export: dict[str, Any], figures: dict[str, Any]) -> str | None:
    """The share of images that node answers as Python does; it runs files of ONNX alone."""
    return format_percent(figures["same_in_node"]) if export["format"] == "onnx" else None


def row(name: str, export: dict[str, Any]) -> dict[str, str | None]:
    """What is said of the files of one student in one format; its int8 is missing where no way gave a file."""
    plain, *rest = export["files"]
    small = rest[0] if rest else None
    tried = [f"{one['name']} {format_percent(one['accuracy']) or 'failed'}" for one in export["tried"]]
    times = [file["latency_ms"]["median"] for file in export["files"]]
    return {
        "Student": name,
        "Format": export["format"],
        "Size": file_size(plain["size_bytes"]),
        "torch": format_percent(export["torch_accuracy"]),
        "float32": format_percent(plain["accuracy"]),
        "int8": small and format_percent(small["accuracy"]),
        "Way": small and small["scheme"],
        "Tried": ", ".join(tried),
        "Difference of a logit": f"{export['network_difference']:.1g}",
        "with preprocessing": f"{plain['largest_difference']:.2g}" if export["preprocessing"] == "inside" else None,
        "Size of int8": small and f"{small['size_bytes'] / plain['size_bytes']:.2f}",
        "Time of int8": small and f"{times[1] / times[0]:.2f}",
        "ms": f"{times[0]:.2f}",
    }


def same_in_node(folder: Path) -> float | None:
    """The share of test images that transformers.js in node puts in the class of Python; unknown without it."""
    if shutil.which("node") is None:
        return None
    images = images_of_run(RunReport.load(folder).image_options, RunReport.load(folder).classes).test.images
    running = session(folder / "onnx" / "model.onnx")
    labels = json.loads(running.get_modelmeta().custom_metadata_map["labels"])
    with tempfile.TemporaryDirectory() as place:
        expected = {}
        for number, image in enumerate(images[:IMAGES_IN_NODE]):
            Image.fromarray(image).save(Path(place, f"{number}.png"))
            probabilities = running.run(["probabilities"], {"images": image[None]})[0][0]
            expected[f"{number}.png"] = labels[int(np.argmax(probabilities))]
        done = subprocess.run(
            ["node", "-e", CLASSIFY, f"{folder / 'onnx'}/", place], capture_output=True, text=True, check=False
        )
    if done.returncode:
        print(f"note: node does not run transformers.js: {done.stderr.strip().splitlines()[-1:]}")
        return None
    found = json.loads(done.stdout)
    equal: list[bool] = [found[name][0]["label"] == label for name, label in expected.items()]
    return sum(equal) / len(equal)


if __name__ == "__main__":
    main()
