"""Values of options are of their field's type and in range, or refused by name."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from subdistill_hf.config.commands import (
    AdaptOptions,
    AnalyseOptions,
    BenchmarkOptions,
    ExplainOptions,
    ExportOptions,
    FamilyOptions,
    InspectOptions,
    PushOptions,
    ServeOptions,
)
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.options import DataOptions, TaskOptions
from subdistill_hf.config.training import SETTINGS, SubDistillConfig
from subdistill_hf.config.validation import (
    PATHS,
    _kind,
    check_choices,
    check_data_options,
    check_ranges,
    check_task_options,
    check_types,
    choices_of,
    names_of_options,
    with_home,
)
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.errors import DataError, SubDistillError


@dataclass
class Described:
    whole: int = 1
    number: float = 0.5
    switch: bool = False
    open_number: "float | None" = None
    text: str = "any"
    colour: Literal["red", "green"] = "red"
    other_colour: Literal["red", "green"] | None = None
    colours: list[str] = field(default_factory=list, metadata={"choices": ("red", "green")})
    sizes: "list[int]" = field(default_factory=list)
    open_shares: list[float] | None = None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"whole": 7, "number": 2, "switch": True, "open_number": 1e-3},
        {"whole": np.int64(7), "number": np.float32(2)},
        {"open_number": None, "text": 3},
    ],
)
def test_values_of_their_type_are_taken(given):
    check_types(Described(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": "many"}, "whole='many': expected a whole number"),
        ({"whole": 1e3}, "whole=1000.0: expected a whole number"),
        ({"whole": True}, "whole=True: expected a whole number"),
        ({"whole": float("nan")}, "whole=nan: expected a whole number"),
        ({"number": "fast"}, "number='fast': expected a number"),
        ({"open_number": [1]}, r"open_number=\[1\]: expected a number"),
        ({"switch": "maybe"}, "switch='maybe': expected true or false"),
        ({"switch": 1}, "switch=1: expected true or false"),
        ({"colours": {"red": 1}}, r"colours={'red': 1}: expected a list of texts"),
        ({"colours": ["red", None]}, "colours=None: expected a list of texts"),
        ({"colours": None}, "colours=None: expected a list of texts"),
        ({"colours": [["red"]]}, r"colours=\['red'\]: expected a list of texts"),
        ({"colours": True}, "colours=True: expected a list of texts"),
        ({"sizes": "12"}, "sizes='12': expected a list of whole numbers"),
        ({"sizes": [1, 2.5]}, "sizes=2.5: expected a list of whole numbers"),
        ({"open_shares": ["all"]}, "open_shares='all': expected a list of numbers"),
    ],
)
def test_values_of_another_type_are_refused(given, message):
    with pytest.raises(SubDistillError, match=message):
        check_types(Described(**given))


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("colours", "green", ["green"]),
        ("colours", ("red", "green"), ["red", "green"]),
        ("colours", 12, ["12"]),
        ("colours", [0, Path("some", "file")], ["0", str(Path("some", "file"))]),
        ("sizes", 12, [12]),
        ("sizes", [], []),
        ("open_shares", 0.5, [0.5]),
        ("open_shares", None, None),
    ],
)
def test_one_value_where_a_list_is_expected_is_a_list_of_it(name, value, taken):
    options = Described(**{name: value})
    check_types(options)
    assert getattr(options, name) == taken


@pytest.mark.parametrize(
    "kind", [AnalyseOptions, ExplainOptions, FamilyOptions, InspectOptions, AdaptOptions, TaskOptions]
)
def test_no_list_of_any_options_is_taken_letter_by_letter(kind):
    lists = [one for one in fields(kind) if str(one.type).startswith("list[")]
    assert lists
    assert all(_kind(one) == str(one.type) for one in lists)


def test_a_class_may_be_given_alone():
    with pytest.raises(SubDistillError, match="class id 12 is out of range: expected 0 to 9"):
        load_subtask(DataOptions(dataset="digits", classes="12"))
    assert load_subtask(DataOptions(dataset="digits", classes="all")).subtask.names[:2] == ("zero", "one")
    assert TaskOptions(compare="kd", prompts="a photo of {}.").compare == ["kd"]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (ServeOptions, {"port": "x"}, "port='x': expected a whole number"),
        (PushOptions, {"private": "yes"}, "private='yes': expected true or false"),
        (ExportOptions, {"max_loss": "1"}, "max_loss='1': expected a number"),
        (ExportOptions, {"format": "onx"}, "format='onx': expected one of onnx, executorch; did you mean 'onnx'?"),
        (ExplainOptions, {"method": "shaply"}, "method='shaply': expected one of .*; did you mean 'shapley'?"),
        (BenchmarkOptions, {"workers": "2"}, "workers='2': expected a whole number"),
        (FamilyOptions, {"subtasks": [None]}, "subtasks=None: expected a list of texts"),
    ],
)
def test_options_of_every_command_are_checked_when_they_are_made(kind, given, message):
    with pytest.raises(SubDistillError, match=message.replace("?", r"\?")):
        kind(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": 0}, "whole=0: expected at least 1"),
        ({"number": float("nan")}, "number=nan: expected a number from 0 to 1"),
        ({"number": 1.5}, "number=1.5: expected a number from 0 to 1"),
        ({"number": -0.5}, "number=-0.5: expected a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(SubDistillError, match=message):
        check_ranges(Described(**given), {"whole": 1}, {"number": (0, 1), "open_number": (2, 3)})


def test_numbers_in_range_are_taken_and_open_ones_are_in_any():
    check_ranges(Described(number=1), {"whole": 1, "open_number": 4}, {"number": (0, 1)})


@pytest.mark.parametrize("options", [SubDistillConfig, TaskOptions])
def test_numbers_and_switches_of_the_options_are_known_as_such(options):
    kinds = {field.name: _kind(field) for field in fields(options)}
    expected = (
        {"max_steps": "int", "learning_rate": "float", "bf16": "bool", "layer_weight": "float", "layers": "list[str]"}
        if options is SubDistillConfig
        else {
            "train_images_per_class": "int",
            "mix": "float",
            "overwrite": "bool",
            "classes": "list[str]",
            "dataset": None,
        }
    )
    assert expected.items() <= kinds.items()


def test_options_of_data_are_checked_when_they_are_made():
    with pytest.raises(SubDistillError, match="train_images_per_class='ten': expected a whole number"):
        DataOptions(train_images_per_class="ten")


def test_names_are_those_of_all_fields():
    assert {"whole", "teacher", "dataset"} <= {*names_of_options(Described, TaskOptions)}


def test_choices_are_the_literals_of_fields_and_the_choices_in_their_metadata():
    expected = dict.fromkeys(("colour", "other_colour", "colours"), ("red", "green"))
    assert choices_of(Described) == expected
    options = DistillationOptions()
    assert {"method", "basis", "centring", "rotation"} < set(choices_of(type(options)))
    check_choices(options)


@pytest.mark.parametrize(
    "given", [{}, {"colour": "green", "other_colour": "red", "colours": ["red", "green", "red"]}, {"text": "blue"}]
)
def test_values_among_the_choices_are_taken(given):
    check_choices(Described(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": "blue"}, "colour='blue': expected one of red, green"),
        ({"colour": "gren"}, "colour='gren': expected one of red, green; did you mean 'green'?"),
        ({"other_colour": False}, "other_colour=False: expected one of red, green"),
        ({"colours": ["red", "blue"]}, "colours='blue': expected one of red, green"),
    ],
)
def test_other_values_are_refused(given, message):
    with pytest.raises(SubDistillError) as refused:
        check_choices(Described(**given))
    assert str(refused.value) == message


@dataclass
class More(Described):
    shape: Literal["round"] = "round"


def test_choices_of_a_base_class_alone_can_be_looked_at():
    check_choices(More(shape="flat"), Described)
    with pytest.raises(SubDistillError, match="shape='flat': expected one of round"):
        check_choices(More(shape="flat"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, r"validation_fraction=1.0: expected a share of 0 or more, and below 1"),
        ({"test_fraction": 0.0}, r"test_fraction=0.0: expected a share between 0 and 1"),
        ({"train_fraction": 0.0}, r"train_fraction=0.0: expected a share above 0, at most 1"),
        ({"train_fraction": 1.1}, r"train_fraction=1.1: expected a share above 0"),
        ({"train_images_per_class": 1}, r"train_images_per_class=1: expected at least 2"),
        ({"train_images_per_class": 5, "train_fraction": 0.5}, "and train_fraction contradict each other"),
        ({"test_split": "test", "test_fraction": 0.5}, "and test_fraction contradict each other"),
    ],
)
def test_what_leaves_nothing_or_contradicts_itself_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        DataOptions(**options)
    DataOptions(train_fraction=1.0, test_fraction=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_lora_save": "adapter"}, "need --student_lora"),
        ({"student_lora_target_modules": ["fc1"]}, "need --student_lora"),
        ({"student_lora_save": "both"}, "student_lora_save='both': expected one of merged, adapter"),
        ({"student_lora_rank": 0}, "student_lora_rank=0: expected at least 1"),
        ({"mix": 1.5}, "mix=1.5: expected a share of the views, from 0 to 1"),
        ({"mark": "plus", "mark_share": 1.5}, "mark_share=1.5: expected a share from 0 to 1"),
        ({"mark_share": 0.5}, "mark_share=0.5 has no meaning without --mark"),
        ({"augmentation": "cutout"}, "augmentation='cutout': expected one of none, pad_crop, resized_crop, auto"),
        ({"compare": ["kd", "fitnets"]}, "compare='fitnets': expected one of scratch, kd, .*; did you mean 'fitnet'"),
        ({"adapt_teacher": "yes"}, "adapt_teacher='yes': expected one of no, lora, head"),
        ({"adapt_rank": 0}, "adapt_rank=0: expected at least 1"),
        ({"adapt_epochs": -1.0}, "adapt_epochs=-1.0, .*: expected positive numbers"),
        ({"adapt_learning_rate": 0.0}, "adapt_learning_rate=0.0: expected positive numbers"),
        ({"adapt_teacher": "head", "adapt_target_modules": ["fc1"]}, "no meaning with adapt_teacher=head"),
        ({"adapt_teacher": "head", "adapt_rank": 4}, "adapt_rank=4 has no meaning with adapt_teacher=head: .*lora"),
    ],
)
def test_options_of_a_task_are_checked_when_they_are_made_and_whenever_it_is_asked_for(options, message):
    with pytest.raises(SubDistillError, match=message):
        TaskOptions(**options)
    changed = TaskOptions()
    for name, value in options.items():
        setattr(changed, name, value)
    with pytest.raises(SubDistillError, match=message):
        check_task_options(changed)


def test_options_of_data_are_checked_whenever_it_is_asked_for():
    options = DataOptions()
    options.validation_fraction = -1
    with pytest.raises(DataError, match="validation_fraction=-1: expected a share of 0 or more, and below 1"):
        check_data_options(options)


KINDS = (
    *(AdaptOptions, AnalyseOptions, BenchmarkOptions, ExplainOptions, ExportOptions, FamilyOptions, InspectOptions),
    *(ServeOptions, SubDistillConfig, TaskOptions),
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_home_folder_stands_for_the_tilde_of_each_path(kind, monkeypatch, tmp_path):
    """As a shell leaves it in `--output_dir=~/folder`; not in other options, such as names of classes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [name for name in names_of_options(kind) if name in PATHS and name not in SETTINGS]
    lists = [one.name for one in fields(kind) if "list" in str(one.type)]
    given = {name: [f"~/{name}", "b/~"] if name in lists else f"~/{name}" for name in names}
    options = kind(**given, **({"classes": ["~/a"]} if "classes" in lists else {}))
    assert names
    for name in names:
        path = f"{tmp_path}/{name}"
        assert getattr(options, name) == ([path, "b/~"] if name in lists else path)
    assert getattr(options, "classes", ["~/a"]) == ["~/a"]


def test_paths_are_all_options_that_there_are(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    of_words = {
        "folder",
        "config",
        "logging_dir",
    }  # arguments of commands, and what some versions of transformers have
    assert of_words | {name for kind in KINDS for name in names_of_options(kind)} >= set(PATHS)
    assert with_home("teacher", Path("~/a")) == f"{tmp_path}/a"
    assert with_home("teacher", "~nobody-of-this-name/a") == "~nobody-of-this-name/a"
    assert with_home("output_dir", None) is None
