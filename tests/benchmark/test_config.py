"""What a benchmark's YAML file may say, and what is said of one that may not be."""

import math

import pytest
import yaml

from subdistill_hf.benchmark.config import BenchmarkError, read_benchmark

GRID = {
    "name": "Small",
    "methods": ["scratch", "kd", "fitnet", "subdistill"],
    "subtasks": ["superclass:dice", "subtask:box"],
    "students": "resnet:widths=8-8-8-8",
    "train_images": [10, 20],
    "validation_images": 5,
    "seeds": [0, 1],
}
TUNING = {"subtasks": {"signs": "superclass:planet_signs"}, "stages": [{"all": [{"learning_rate": 0.1}]}]}


def read(tmp_path, **changes):
    path = tmp_path / "grid.yaml"
    entries = {name: value for name, value in (GRID | changes).items() if value is not ...}
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return read_benchmark(path)


def test_short_forms_are_spelled_out(tmp_path):
    grid = read(tmp_path)
    assert grid.methods == {"scratch": {}, "kd": {}, "fitnet": {}, "subdistill": {}}
    assert grid.subtasks == {"dice": ["superclass:dice"], "box": ["subtask:box"]}
    assert grid.students == ["resnet:widths=8-8-8-8"]
    assert (grid.reference, grid.tuning) == ("kd", None)


def test_one_seed_may_be_0(tmp_path):
    assert read(tmp_path, seeds=0).seeds == [0]


def test_variants_have_names_of_their_own(tmp_path):
    grid = read(tmp_path, methods={"kd": None, "PCA": {"method": "subdistill", "basis": "pca"}})
    assert (grid.kind("kd"), grid.kind("PCA")) == ("kd", "subdistill")
    assert grid.methods["PCA"] == {"method": "subdistill", "basis": "pca"}


def test_numbers_with_exponents_are_numbers_and_class_ids_stay_text(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        """
methods: [kd]
subtasks: {digits: [3, "4", 1e1]}
students: [a]
train_images: [0.05, 1.0]
seeds: [0]
training: {learning_rate: 1e-3, warmup_steps: 5}
tuning: {stages: [{all: {learning_rate: [1e-3, 4E-3]}}]}
""",
        encoding="utf-8",
    )
    grid = read_benchmark(path)
    assert grid.training == {"learning_rate": 0.001, "warmup_steps": 5}
    assert grid.subtasks == {"digits": ["3", "4", "1e1"]}
    assert grid.trials(grid.tuning.stages[0], "kd") == [{"learning_rate": 0.001}, {"learning_rate": 0.004}]
    assert [type(size) for size in grid.train_images] == [float, float]


def test_a_stage_is_for_the_closest_name(tmp_path):
    stages = [{"all": [{"a": 1}], "logit": [{"a": 2}], "layer": [{"a": 3}], "fitnet": [{"a": 4}], "Mine": [{"a": 5}]}]
    methods = {"kd": {}, "vid": {}, "fitnet": {}, "Mine": {"method": "subdistill"}, "ours": {"method": "fitnet"}}
    grid = read(tmp_path, methods=methods, tuning=TUNING | {"stages": stages})
    found = {method: grid.trials(grid.tuning.stages[0], method)[0]["a"] for method in methods}
    assert found == {"kd": 2, "vid": 3, "fitnet": 4, "Mine": 5, "ours": 4}


def test_conditions_are_names_with_options_of_the_task(tmp_path):
    assert read(tmp_path).conditions == {}
    grid = read(tmp_path, conditions={"plain": None, "half": {"mark_share": 0.5}})
    assert grid.conditions == {"plain": {}, "half": {"mark_share": 0.5}}


def test_lists_of_values_make_every_combination(tmp_path):
    grid = read(tmp_path, tuning=TUNING | {"stages": [{"all": {"learning_rate": [1, 2], "weight_decay": [3, 4]}}]})
    trials = grid.trials(grid.tuning.stages[0], "kd")
    assert trials == [{"learning_rate": rate, "weight_decay": decay} for rate in (1, 2) for decay in (3, 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ...}, "methods is missing or empty"),
        ({"seeds": []}, "seeds is missing or empty"),
        ({"seed": [1]}, "'seed' is no entry; did you mean 'seeds'?"),
        ({"seeds": [0.5]}, "seeds has 0.5: expected whole numbers"),
        ({"methods": ["fitnets"]}, "method 'fitnets' is 'fitnets': expected `method:` to be one of scratch, kd"),
        ({"methods": {"kd": 3}}, "method 'kd' is 3: expected names with values"),
        ({"methods": ["fitnet"]}, "reference is 'kd': expected one of the methods, fitnet"),
        ({"train_images": [2.5]}, "train_images has 2.5: expected numbers of images a class, or shares below 1"),
        ({"train_images": [0.5]}, "validation_images needs train_images in whole numbers, not shares"),
        ({"train_images": [1.0]}, "validation_images needs train_images in whole numbers, not shares"),
        ({"train_images": [math.inf]}, "train_images has inf: expected numbers of images a class, or shares below 1"),
        ({"train_images": [math.nan]}, "train_images has nan: expected numbers of images a class"),
        ({"tuning": TUNING | {"train_images": math.inf}}, "train_images has inf: expected numbers of images a class"),
        ({"tuning": TUNING | {"train_images": 0.5}}, "validation_images needs train_images in whole numbers"),
        ({"subtasks": "superclass:dice"}, "subtasks is 'superclass:dice': expected names with values"),
        ({"conditions": [0.5]}, "conditions is [0.5]: expected names with values"),
        ({"conditions": {"half": 0.5}}, "condition 'half' is 0.5: expected names with values"),
        ({"training": [1]}, "training is [1]: expected names with values"),
        ({"tuning": TUNING | {"stage": 1}}, "'stage' is no entry of tuning; did you mean 'stages'?"),
        ({"tuning": {"subtasks": {}}}, "tuning has no stages"),
        (
            {"tuning": TUNING | {"stages": [{"logit": [{"a": 1}], "layer": {"a": [1, 2]}}]}},
            "stage 1 of tuning is not the same number of trials for all methods: scratch 1, kd 1, fitnet 2",
        ),
        (
            {"tuning": TUNING | {"stages": [{"layer": [{}]}]}},
            "a stage of tuning has trials for layer but none for 'scratch'",
        ),
        (
            {"tuning": TUNING | {"subtasks": {"other": "superclass:dice"}}},
            "'other' is among the tuning subtasks and the final ones",
        ),
        (
            {"tuning": TUNING | {"subtasks": {"dice": "superclass:planet_signs"}}},
            "'dice' is among the tuning subtasks and the final ones",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(BenchmarkError) as refused:
        read(tmp_path, **changes)
    assert str(refused.value).startswith(f"{tmp_path / 'grid.yaml'}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("classes", "subtasks"),
        ("student", "students"),
        ("train_images_per_class", "train_images"),
        ("train_fraction", "train_images"),
        ("validation_fraction", "validation_images"),
        ("compare", "methods"),
    ],
)
@pytest.mark.parametrize("where", ["task", "condition 'one'"])
def test_what_a_key_of_the_file_says_is_no_option_of_the_task(tmp_path, name, key, where):
    changes = {"task": {name: 1}} if where == "task" else {"conditions": {"one": {name: 1}}}
    with pytest.raises(BenchmarkError) as refused:
        read(tmp_path, **changes)
    assert f"{where} has {name!r}: give {key!r} of the file instead" in str(refused.value)
    if name == "validation_fraction":  # which is the share that is held out where the file says no number
        assert read(tmp_path, **changes, validation_images=...).validation_images is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"seed": 3}}, "training has 'seed': give 'seeds' of the file instead"),
        ({"training": {"method": "kd"}}, "training has 'method': give 'methods' of the file instead"),
        ({"methods": {"kd": {"seed": 3}}}, "method 'kd' has 'seed': give 'seeds' of the file instead"),
        (
            {"tuning": TUNING | {"stages": [{"all": {"seed": [1, 2]}}]}},
            "a trial of tuning has 'seed': give 'seeds' of the file instead",
        ),
        (
            {"tuning": TUNING | {"stages": [{"all": [{"method": "kd"}]}]}},
            "a trial of tuning has 'method': give 'methods' of the file instead",
        ),
    ],
)
def test_what_a_key_of_the_file_says_is_no_training_argument(tmp_path, changes, message):
    with pytest.raises(BenchmarkError) as refused:
        read(tmp_path, **changes)
    assert message in str(refused.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_benchmark(tmp_path / "nothing.yaml")
    path = tmp_path / "grid.yaml"
    path.write_text("methods: [kd", encoding="utf-8")
    with pytest.raises(BenchmarkError, match="is not YAML"):
        read_benchmark(path)
    path.write_text("- kd", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"the file is \['kd'\]: expected names with values"):
        read_benchmark(path)


def test_classes_that_chose_the_options_are_not_the_final_ones_in_another_order(tmp_path):
    tuning = TUNING | {"subtasks": {"other": ["b", "a"]}}
    with pytest.raises(BenchmarkError, match="'other' is among the tuning subtasks and the final ones"):
        read(tmp_path, subtasks={"final": ["a", "b"]}, tuning=tuning)
