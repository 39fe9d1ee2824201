"""YAML of benchmark files: names as they are written, numbers with ten digits, no key twice."""

import pytest
import yaml

from subdistill_hf.benchmark.config import BenchmarkError, read_benchmark
from subdistill_hf.config.yaml_text import RepeatedKeyError, read_texts, read_values

GRID = """
methods: {kd: }
students: [a]
train_images: [5]
seeds: [0]
"""


def read(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return read_benchmark(path)


def test_values_have_types_and_keys_are_texts():
    text = "{a: [5, -3, +2, 0, 1.5, true, ~], no: 010, 1: 2020-01-01, b: 1:30, c: 0x10, d: off}"
    assert read_values(text) == {
        "a": [5, -3, 2, 0, 1.5, True, None],
        "no": "010",
        "1": "2020-01-01",
        "b": "1:30",
        "c": "0x10",
        "d": False,
    }
    assert read_texts(text)["a"] == ["5", "-3", "+2", "0", "1.5", "true", "~"]


def test_mappings_are_merged_and_their_keys_may_be_given_anew():
    text = "{a: &a {b: 1, c: 2}, d: {<<: *a, c: 3}}"
    assert read_values(text)["d"] == {"b": 1, "c": 3}
    assert read_texts(text)["d"] == {"b": "1", "c": "3"}


@pytest.mark.parametrize("read_text", [read_values, read_texts])
def test_a_repeated_key_is_refused(read_text):
    with pytest.raises(RepeatedKeyError, match="line 3: 'kd' is given twice"):
        read_text("methods:\n  kd:\n  kd: {temperature: 1}\n")
    with pytest.raises(yaml.YAMLError, match="expected a text as key"):
        read_text("[a, b]: 1")


@pytest.mark.parametrize(
    ("subtasks", "expected"),
    [
        ("[[yes, no]]", {"yes, no": ["yes", "no"]}),
        ("[[010, 011]]", {"010, 011": ["010", "011"]}),
        ("{no: [1e3, 0x1, null, ~, 1_0, 1:30]}", {"no": ["1e3", "0x1", "null", "~", "1_0", "1:30"]}),
        ("[[superclass:dice, x]]", {"dice, x": ["superclass:dice", "x"]}),
    ],
)
def test_classes_are_what_is_written(tmp_path, subtasks, expected):
    assert read(tmp_path, f"{GRID}subtasks: {subtasks}\n").subtasks == expected
    tuned = f"{GRID}subtasks: [[a, b]]\ntuning: {{stages: [{{all: [{{a: 1}}]}}], subtasks: {subtasks}}}\n"
    assert read(tmp_path, tuned).tuning.subtasks == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRID.replace("{kd: }", "\n  kd:\n  kd: {temperature: 1}"), "is not YAML: line 4: 'kd' is given twice"),
        (GRID.replace("{kd: }", "[kd, kd]"), "methods has 'kd' twice"),
        (GRID.replace("[0]", "[0, 1, 0]"), "seeds has 0 twice"),
        (GRID.replace("[5]", "[5, 5]"), "train_images has 5 twice"),
        (GRID.replace("[5]", "[010]"), "train_images has '010': expected numbers"),
        (GRID.replace("[0]", "[007]"), "seeds has '007': expected whole numbers"),
        (GRID.replace("[a]", "[a, a]"), "students has 'a' twice"),
        (f"{GRID}subtasks: [superclass:x, subtask:x]\n", "subtasks has 'x' twice"),
    ],
)
def test_what_is_given_twice_or_no_number_is_refused(tmp_path, text, message):
    with pytest.raises(BenchmarkError) as refused:
        read(tmp_path, text if "subtasks" in text else f"{text}subtasks: [[a, b]]\n")
    assert message in str(refused.value)
