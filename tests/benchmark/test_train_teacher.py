"""The script that trains a teacher for benchmarks."""

import re

import pytest
from transformers import AutoModelForImageClassification

from helpers import load_script

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def script():
    return load_script("benchmarks/train_teacher.py")


def test_it_saves_a_teacher_of_all_classes_and_prints_its_accuracy(script, tmp_path, monkeypatch, capsys):
    words = ["--dataset", "digits", "--model", "resnet:widths=4-4-4-4", "--epochs", "0.1"]
    monkeypatch.setattr("sys.argv", ["train_teacher.py", *words, "--output_dir", str(tmp_path / "teacher")])
    script.main()
    said = re.search(r"test accuracy (\d+\.\d) % on 539 images", capsys.readouterr().out)
    assert said is not None
    assert 0 <= float(said[1]) <= 100
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "teacher").config.num_labels == 10
