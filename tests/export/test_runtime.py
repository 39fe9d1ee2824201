"""Files are measured in a process that has neither torch nor transformers; one that cannot run is named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.onnx_runtime import onnx_runner
from subdistill_hf.export.runtime import logits_of_images, measure


@pytest.fixture(scope="module")
def model():
    """The mean of each channel."""
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["b", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["pixel_values", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "mean", [pixels], [logits], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_images_of_several_sizes_are_answered_in_their_order(model):
    images = [np.full((3, *size), value, np.float32) for value, size in enumerate([(2, 2), (2, 2), (4, 3), (2, 2)])]
    found = logits_of_images(onnx_runner(model.SerializeToString()), images)
    assert found.tolist() == [[value] * 3 for value in range(4)]


def test_answers_time_and_memory_come_from_another_process(model, tmp_path):
    onnx.save(model, tmp_path / "mean.onnx")
    images = [np.ones((3, 2, 2), np.float32), np.zeros((3, 5, 4), np.float32)]
    measured = measure("onnx", {"one": tmp_path / "mean.onnx"}, images, runs=5)["one"]
    assert measured.logits.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert len(measured.milliseconds) == 5
    assert 2**20 < measured.peak_memory < 2**28


def test_a_file_that_cannot_be_run_is_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"onnxruntime cannot run the exported bad: .*INVALID_PROTOBUF"):
        measure("onnx", {"bad": tmp_path / "bad.onnx"}, [np.ones((3, 2, 2), np.float32)])
