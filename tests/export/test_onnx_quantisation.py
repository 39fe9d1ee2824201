"""The ways of ONNX to 8 bits: files that run, are smaller, and answer nearly as before."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.samples import PROCESSORS
from subdistill_hf.export.graph import as_bytes, preprocessing_graph, with_preprocessing
from subdistill_hf.export.onnx_quantisation import SCHEMES, quantised
from subdistill_hf.export.onnx_runtime import onnx_runner
from subdistill_hf.export.preprocessing import steps_of
from subdistill_hf.export.runtime import logits_of_images


@pytest.fixture(scope="module")
def network():
    """A convolution, a mean and a matrix product."""
    random = np.random.default_rng(0)
    weights = {"kernel": (8, 3, 3, 3), "matrix": (8, 4)}
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()
    ]
    constants.append(helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]))
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["maps"], name="conv"),
        helper.make_node("Relu", ["maps"], ["positive"], name="relu"),
        helper.make_node("ReduceMean", ["positive", "axes"], ["means"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["logits"], name="head"),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "small", [pixels], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def pixels():
    random = np.random.default_rng(1)
    return [random.normal(size=(1, 3, 8, 8)).astype(np.float32) for _ in range(20)]


def weights_of(model):
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_answers_are_nearly_those_of_float32(network, pixels, scheme):
    images = [one[0] for one in pixels]
    expected = logits_of_images(onnx_runner(as_bytes(network)), images)
    small = quantised(network, scheme, pixels)
    found = logits_of_images(onnx_runner(as_bytes(small)), images)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    assert as_bytes(quantised(network, scheme, pixels)) == as_bytes(small)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_file_with_any_preprocessing_runs(network, pixels, name):
    """onnxruntime transposes the maps of convolutions of 8 bits, and moves that back through the image's steps."""
    steps, small = steps_of(PROCESSORS[name]), quantised(network, "static", pixels)
    image = np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    seen = onnx_runner(as_bytes(preprocessing_graph(steps)))(image[None])
    in_turn = logits_of_images(onnx_runner(as_bytes(small)), list(seen))
    found = logits_of_images(onnx_runner(as_bytes(with_preprocessing(small, steps))), [image])
    np.testing.assert_allclose(found, in_turn, atol=0.02 * np.abs(in_turn).max())


def test_static_weights_have_seven_bits_and_a_range_for_each_channel(network, pixels):
    small = quantised(network, "static", pixels)
    weights = weights_of(small)
    assert weights["kernel_quantized"].dtype == np.int8
    assert np.abs(weights["kernel_quantized"]).max() <= 64
    assert weights["kernel_scale"].shape == (8,)
    assert "QuantizeLinear" in {node.op_type for node in small.graph.node}


def test_dynamic_leaves_convolutions_alone(network, pixels):
    small = quantised(network, "dynamic", pixels)
    assert {"Conv", "MatMulInteger"} <= {node.op_type for node in small.graph.node}
    assert np.array_equal(weights_of(small)["kernel"], weights_of(network)["kernel"])


def test_the_network_itself_stays_as_it_is(network, pixels):
    before = onnx.ModelProto()
    before.CopyFrom(network)
    quantised(network, "static", pixels)
    assert before == network
