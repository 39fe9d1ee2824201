"""Distil students of several families, export each to ONNX in float32 and int8, and measure what arrives.

    python benchmarks/export.py --output_dir exported [--max_steps 800] [--students resnet vit]

A student that is in the folder already is not trained again. The table is printed, and written to
OUTPUT_DIR/export.md, the figures to OUTPUT_DIR/export.json. Where node finds @huggingface/transformers (NODE_PATH),
its answers to 100 test images are compared with onnxruntime's in Python.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from subdistill_hf.cli import main as subdistill
from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.export.images import images_of_run
from subdistill_hf.export.run import export_student
from subdistill_hf.export.runtime import session
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
CLASSES = "superclass:zodiac_signs"
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
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    options = parser.parse_args()
    place = Path(options.output_dir)
    figures = {}
    for name in options.students:
        folder = place / name
        if not (folder / "report.json").is_file():
            train(folder, STUDENTS[name], options.max_steps)
        result = export_student(folder, ExportOptions(int8=True, max_loss=100))
        figures[name] = asdict(result) | {"same_in_node": same_in_node(folder)}
    (place / "export.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    text = table([row(name, one) for name, one in figures.items()])
    first = next(iter(figures.values()))
    about = f"{first['runtime']} on {first['machine']}, {first['images']}; {options.max_steps} steps of training."
    (place / "export.md").write_text(f"{text}\n\n{about}\n", encoding="utf-8")
    print(f"{text}\n\n{about}")


def train(folder: Path, student: str, steps: int) -> None:
    """Distil one of the students from the embedded teacher."""
    words = f"distill --classes {CLASSES} --student {student} --max_steps {steps} --report_to none"
    if subdistill([*words.split(), "--output_dir", str(folder)]):
        raise SystemExit(f"{student} was not trained")


def row(name: str, result: dict) -> dict[str, str | None]:
    """What is said of one student."""
    plain, small = result["files"]
    times = [file["latency_ms"]["median"] for file in (plain, small)]
    return {
        "Student": name,
        "Size": file_size(plain["size_bytes"]),
        "torch": format_percent(result["torch_accuracy"]),
        "ONNX": format_percent(plain["accuracy"]),
        "int8": format_percent(small["accuracy"]),
        "Way": small["scheme"],
        "Tried": ", ".join(f"{one['name']} {format_percent(one['accuracy'])}" for one in result["tried"]),
        "Difference of a logit": f"{result['network_difference']:.1g}",
        "with preprocessing": f"{plain['largest_difference']:.2g}",
        "Size of int8": f"{small['size_bytes'] / plain['size_bytes']:.2f}",
        "Time of int8": f"{times[1] / times[0]:.2f}",
        "ms": f"{times[0]:.2f}",
        "Node as Python": None if result["same_in_node"] is None else format_percent(result["same_in_node"]),
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
    return sum(found[name][0]["label"] == label for name, label in expected.items()) / len(expected)


if __name__ == "__main__":
    main()
