"""What transformers.js is told of a student, one of timm too; in node, it gives the answers of Python."""

import json
import os
import shutil
import subprocess

import numpy as np
import onnx
import pytest
from PIL import Image

from export.samples import small_network
from helpers import NAMES, processor, resnet
from subdistill_hf.export.device_folder import browser_config, browser_preprocessing, write_browser_folder
from subdistill_hf.export.onnx_files import OnnxFiles
from subdistill_hf.export.onnx_runtime import session
from subdistill_hf.export.preprocessing import steps_of
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.models.students import build_student

CLASSIFY = """
const { env, pipeline } = require("@huggingface/transformers");
env.allowRemoteModels = false;
env.localModelPath = process.argv[1];
(async () => {
  const classify = await pipeline("image-classification", "transformers_js");
  const answers = [];
  for (const image of process.argv.slice(2)) answers.push(await classify(image, { top_k: null }));
  console.log(JSON.stringify(answers));
})();
"""


def transformers_js_is_installed():
    if shutil.which("node") is None:
        return False
    asked = subprocess.run(["node", "-e", 'require.resolve("@huggingface/transformers")'], capture_output=True)
    return asked.returncode == 0


@pytest.fixture(scope="module")
def timm_student():
    return TorchStudent(build_student("timm/mobilenetv4_conv_small:width=0.5,image=64", NAMES, processor()))


@pytest.fixture(scope="module")
def student():
    return TorchStudent(LoadedModel(resnet(widths=(8, 12)), processor(), "student"))


def test_a_student_of_timm_gets_a_type_that_transformers_js_knows(timm_student):
    config = browser_config(timm_student, int8=True)
    assert config["model_type"] == "mobilenet_v4"
    assert config["id2label"] == {str(output): name for output, name in enumerate(NAMES)}
    assert "transformers.js_config" not in config


def test_without_a_file_of_eight_bits_a_browser_takes_the_other(student):
    assert browser_config(student, int8=False)["transformers.js_config"] == {"dtype": "fp32"}


def test_a_threshold_travels_along(student):
    expected = {"unknown_threshold": 0.7}
    student.loaded.model.config.update(expected)
    try:
        assert expected.items() <= browser_config(student, int8=True).items()
        assert expected.items() <= OnnxFiles(student, None).metadata().items()
    finally:
        for name in expected:
            delattr(student.loaded.model.config, name)


def test_outside_the_processor_of_timm_becomes_settings(timm_student):
    settings = browser_preprocessing(timm_student, None)
    assert settings["size"] == {"shortest_edge": 64}
    assert settings["crop_size"] == {"height": 64, "width": 64}
    assert settings["resample"] == 3
    mean = timm_student.loaded.processor.data_config["mean"]
    np.testing.assert_allclose(settings["image_mean"], mean, atol=1e-6)


@pytest.mark.skipif(
    not transformers_js_is_installed(),
    reason="node finds no @huggingface/transformers: npm install it, and name its node_modules in NODE_PATH",
)
def test_transformers_js_gives_the_answers_of_python(student, tmp_path):
    steps = steps_of(student.loaded.processor)
    files = OnnxFiles(student, steps)
    network = small_network()
    onnx.checker.check_model(network)
    write_browser_folder(tmp_path, student, steps, {"model.onnx": files.browser_content(network)})
    running = session(files.content(network))
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(32, 32), (50, 41), (90, 300)]]
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    done = subprocess.run(
        ["node", "-e", CLASSIFY, f"{tmp_path}/", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    for image, answer in zip(images, json.loads(done.stdout), strict=True):
        found = {one["label"]: one["score"] for one in answer}
        expected = running.run(["probabilities"], {"images": image[None]})[0][0]
        np.testing.assert_allclose([found[name] for name in NAMES], expected, atol=1e-5)
