"""What lies beside the exported files: a program that runs them, and a folder for transformers.js."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from subdistill_hf.config.export_formats import EXPORT_FORMATS, ExportFormat
from subdistill_hf.export.device_files import Runner
from subdistill_hf.export.preprocessing import (
    INTERPOLATIONS,
    CentreCrop,
    Normalise,
    Resize,
    Step,
    described,
    steps_of,
)
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.models.heads import labels_of, of_unknown

BROWSER_FOLDER: Final = "transformers_js"
TEMPLATES: Final = Path(__file__).parent / "templates"

BROWSER_TYPES: Final = (
    *("beit", "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "efficientnet", "fastvit", "hiera"),
    *("ijepa", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "mobilenet_v4", "mobilevit", "mobilevitv2", "pvt"),
    *("resnet", "segformer", "swin", "vit", "vit_msn"),
)
"""The `model_type`s that transformers.js 4.3 classifies images with."""
TIMM_TYPES: Final[Mapping[str, str]] = {
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3",
    "mobilenetv4": "mobilenet_v4",
    "convnextv2": "convnextv2",
    "convnext": "convnext",
    "efficientnet": "efficientnet",
    "tf_efficientnet": "efficientnet",
    "swin": "swin",
    "deit": "deit",
    "vit": "vit",
}
"""How the name of an architecture of timm begins, and what transformers.js calls it."""
OTHER_TYPE: Final = "resnet"
"""For all others: transformers.js runs every classifier alike, from `pixel_values` to `logits`."""


def browser_config(student: TorchStudent, int8: bool) -> dict[str, Any]:
    """The `config.json` with which transformers.js loads the student, one of timm too.

    Args:
        student: the student.
        int8: whether there is a file of 8 bits, which transformers.js takes in a browser unless told otherwise.
    """
    config: Any = student.loaded.model.config
    kind = config.model_type
    if kind == "timm_wrapper":
        begins = [begin for begin in TIMM_TYPES if config.architecture.startswith(begin)]
        kind = TIMM_TYPES[begins[0]] if begins else OTHER_TYPE
    names = labels_of(student.classes)
    described = {
        "model_type": kind if kind in BROWSER_TYPES else OTHER_TYPE,
        "id2label": {str(output): name for output, name in names["id2label"].items()},
        "label2id": names["label2id"],
    }
    return described | of_unknown(config) | ({} if int8 else {"transformers.js_config": {"dtype": "fp32"}})


def browser_preprocessing(student: TorchStudent, steps: tuple[Step, ...] | None) -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers.js.

    Args:
        student: the student.
        steps: of the preprocessing where the files do it, so that nothing is left to do; `None` where they do not.
    """
    if steps is not None:
        switched_off = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False)
        return {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": True, **switched_off}
    processor = student.loaded.processor
    if isinstance(processor, TimmWrapperImageProcessor):
        return _settings_of(steps_of(processor))
    settings: dict[str, Any] = json.loads(processor.to_json_string())
    return settings


def _settings_of(steps: tuple[Step, ...]) -> dict[str, Any]:
    """Steps in the words of transformers' image processors."""
    settings: dict[str, Any] = {"image_processor_type": "ViTImageProcessor"}
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    for step in steps:
        if isinstance(step, Resize):
            size = {"height": step.height, "width": step.width} if step.width else {"shortest_edge": step.height}
            settings |= {"do_resize": True, "size": size, "resample": numbers[step.interpolation]}
        elif isinstance(step, CentreCrop):
            settings |= {"do_center_crop": True, "crop_size": {"height": step.height, "width": step.width}}
        elif isinstance(step, Normalise):
            mean, deviation = ([value / 255 for value in values] for values in (step.mean, step.deviation))
            settings |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
            settings |= {"image_mean": mean, "image_std": deviation}
    return settings


def write_browser_folder(
    folder: Path, student: TorchStudent, steps: tuple[Step, ...] | None, files: Mapping[str, bytes]
) -> None:
    """Write the folder that transformers.js loads.

    Args:
        folder: of the export.
        student: the student.
        steps: see `browser_preprocessing`.
        files: name to content.
    """
    target = folder / BROWSER_FOLDER
    (target / "onnx").mkdir(parents=True)
    for name, content in files.items():
        (target / "onnx" / name).write_bytes(content)
    write_json(target / "config.json", browser_config(student, EXPORT_FORMATS["onnx"].int8_file in files))
    write_json(target / "preprocessor_config.json", browser_preprocessing(student, steps))


def write_script(folder: Path, known: ExportFormat, inside: bool, outside: tuple[Step, ...]) -> None:
    """Write the program that classifies images with the files, and needs little beside their runtime.

    Where the preprocessing is outside of the files, the program does it; there is none where the steps are not known.

    Args:
        folder: of the export.
        known: of the format.
        inside: whether the files do the preprocessing.
        outside: the steps that they leave to the program, see `outside.steps_for_device`.
    """
    name = Path(known.script).stem
    if inside:
        script = (TEMPLATES / f"{name}_inside.py.txt").read_text(encoding="utf-8")
    elif outside:
        script = (TEMPLATES / f"{name}_outside.py.txt").read_text(encoding="utf-8")
        script = script.replace("{{ processed }}\n", _processing(outside))
    else:
        return
    (folder / known.script).write_text(script, encoding="utf-8")


def _processing(steps: tuple[Step, ...]) -> str:
    """The code of the function `processed`, which takes these steps."""
    code = (TEMPLATES / "processed.py.txt").read_text(encoding="utf-8")
    return code.replace("{{ steps }}", "[\n" + "".join(f"    {step},\n" for step in described(steps)) + "]")


def processing_runner(steps: tuple[Step, ...]) -> Runner:
    """Runs the steps as the program beside the files does, from images `(B, H, W, 3)` to pixels `(B, 3, H', W')`.

    Args:
        steps: see `write_script`.
    """
    names: dict[str, Any] = {"Image": Image, "np": np}
    exec(_processing(steps), names)  # what is shipped, and not its like: it is compared with the student's processor
    return lambda images: np.stack([names["processed"](Image.fromarray(image)) for image in images])


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as readable JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
