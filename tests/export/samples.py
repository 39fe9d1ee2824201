"""What several tests of exports build: processors, a network that is quick to make, and the folder of a student."""

from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import BitImageProcessor, ConvNextImageProcessor, EfficientNetImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from helpers import NAMES, resnet, save_teacher, write_image_folder
from reporting.samples import make_report, parsed
from subdistill_hf.reporting.model_card import render_card


def timm_processor(**settings):
    return TimmWrapperImageProcessor(pretrained_cfg={"input_size": (3, 64, 64), "crop_pct": 0.875, **settings})


PROCESSORS = {
    "bilinear": ViTImageProcessor(size={"height": 32, "width": 40}),
    "pillow": ViTImageProcessorPil(size={"height": 48, "width": 64}, resample=3),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 64}),
    "crop": BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 57, "width": 50}),
    "padded": BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 57, "width": 50}),
    "top": EfficientNetImageProcessor(size={"height": 48, "width": 48}, resample=3),
    "timm": timm_processor(interpolation="bicubic"),
    "squash": timm_processor(interpolation="bilinear", crop_mode="squash"),
}


def small_network():
    """The mean of each channel times a matrix."""
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        numpy_helper.from_array(np.diag([1.0, 2.0, 3.0]).astype(np.float32), "matrix"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "small", [pixels], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def student_of_a_run(tmp_path_factory, train, validation_fraction):
    """A student with the report and the card of a run, and its example; `train` images of each class."""
    images = write_image_folder(tmp_path_factory.mktemp("images"), train=train, test=3)
    student = save_teacher(tmp_path_factory.mktemp("student"), resnet(widths=(8, 12)))
    options = {
        "dataset": str(images),
        "classes": list(NAMES),
        "validation_fraction": validation_fraction,
        "seed": 1,
    }
    report = replace(parsed(make_report()), image_options=options)
    report.save(student)
    render_card(report).save(student / "README.md")
    Image.open(images / "test" / NAMES[0] / "0.png").save(student / "example.png")
    return student
