"""What several tests of exports build: a network that is quick to make, and the folder of a student."""

from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from helpers import NAMES, resnet, save_teacher, write_image_folder
from reporting.samples import make_report, parsed
from subdistill_hf.reporting.model_card import render_card


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
