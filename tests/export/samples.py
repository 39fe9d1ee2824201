"""What several tests of exports build: a network that is quick to make."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


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
