"""The script that trains a teacher for benchmarks."""

import importlib.util
import re

import pytest
from transformers import AutoModelForImageClassification

from helpers import REPOSITORY

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location(
        "train_teacher", REPOSITORY / "benchmarks" / "train_teacher.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_it_saves_a_teacher_of_all_classes_and_prints_its_accuracy(script, tmp_path, monkeypatch, capsys):
    words = ["--dataset", "digits", "--model", "resnet:widths=4-4-4-4", "--epochs", "0.1"]
    monkeypatch.setattr("sys.argv", ["train_teacher.py", *words, "--output_dir", str(tmp_path / "teacher")])
    script.main()
    said = re.search(r"test accuracy (\d+\.\d) % on 539 images", capsys.readouterr().out)
    assert said is not None
    assert 0 <= float(said[1]) <= 100
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "teacher").config.num_labels == 10
