"""The benchmark command on real runs: finished ones are kept through SIGKILL, processes end with their parent."""

import json
import shutil

import pytest
import yaml

from helpers import NAMES, save_teacher, teacher_resnet, write_image_folder
from programs import kill_when
from subdistill_hf.benchmark import command, runs, training
from subdistill_hf.benchmark.command import benchmark
from subdistill_hf.benchmark.config import BenchmarkError
from subdistill_hf.benchmark.mark_tables import MARK_COLUMNS
from subdistill_hf.cli import main
from subdistill_hf.config.commands import BenchmarkOptions
from subdistill_hf.config.output_folder import held_for_this_run
from subdistill_hf.errors import SubDistillError

TUNING = {
    "subtasks": {"three": list(NAMES)},
    "stages": [{"layer": [{}, {"layer_weight_factor": 1e9}], "logit": {"learning_rate": [1e-3, 4e-3]}}],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_teacher(folder / "teacher", teacher_resnet())
    write_image_folder(folder / "images", train=10)
    return folder


def write_grid(inputs, path, **changes):
    entries = {
        "name": "Tiny",
        "task": {"teacher": str(inputs / "teacher"), "dataset": str(inputs / "images")},
        "training": {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True},
        "methods": {"kd": {}, "fitnet": {}, "PCA": {"method": "subdistill", "basis": "pca"}},
        "subtasks": {"two": list(NAMES[:2])},
        "students": ["resnet:widths=8-8-8"],
        "train_images": [6],
        "validation_images": 2,
        "seeds": [0, 1],
        "tuning": TUNING,
    }
    path.write_text(yaml.safe_dump(entries | changes, sort_keys=False), encoding="utf-8")
    return path


def lines_of(folder):
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def without_times(rows):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.fixture(scope="module")
def finished(inputs, datasets_cache, tmp_path_factory):
    """A grid that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    grid = write_grid(inputs, folder / "grid.yaml")
    benchmark(grid, BenchmarkOptions(output_dir=str(folder / "out"), workers=0), "subdistill benchmark grid.yaml")
    return folder / "out"


def test_every_run_is_a_line_with_what_was_measured(finished):
    rows = lines_of(finished)
    assert len(rows) == 3 * 2 + 3 * 2
    for row in rows:
        assert 0 <= row["test"] <= 1
        assert 0 <= row["validation"] <= 1
        assert (row["steps"], row["images"]) == (2, 6 * (3 if row["subtask"] == "three" else 2))
        assert row["seconds"] > 0
        assert row["learning_rate"] == row["tuned"].get("learning_rate", row["learning_rate"]) > 0
        assert row["preparation_seconds"] > 0 or row["method"] == "kd"
    assert len({row["parameters"] for row in rows if row["subtask"] == "two"}) == 1
    assert len({row["teacher_test"] for row in rows if row["subtask"] == "two"}) == 1
    assert {name.name for name in finished.iterdir()} == {
        "runs.jsonl",
        "results.csv",
        "chosen.yaml",
        "README.md",
        "paired_differences.png",
        "cost_against_accuracy.png",
    }
    text = (finished / "README.md").read_text(encoding="utf-8")
    assert "2 of 2 runs a method" in text
    assert "Made by `subdistill benchmark grid.yaml`" in text
    assert str(finished) not in text + (finished / "results.csv").read_text(encoding="utf-8")
    chosen = yaml.safe_load((finished / "chosen.yaml").read_text(encoding="utf-8"))
    assert [entry["method"] for entry in chosen] == ["kd", "fitnet", "PCA"]


KILLED = """
import sys
import datasets
datasets.config.HF_DATASETS_CACHE = sys.argv[3]
from subdistill_hf.benchmark import command
from subdistill_hf.config.commands import BenchmarkOptions
command.benchmark(sys.argv[1], BenchmarkOptions(output_dir=sys.argv[2], workers=0), "subdistill benchmark grid.yaml")
"""


def test_a_killed_grid_goes_on_where_it_was_and_ends_the_same(inputs, finished, datasets_cache, tmp_path, capsys):
    grid, out = write_grid(inputs, tmp_path / "grid.yaml"), tmp_path / "out"
    printed = tmp_path / "printed"
    printed.mkdir()
    kill_when(lambda: len(lines_of(out)) >= 4, KILLED, grid, out, datasets_cache, printed=printed)
    with (out / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "half a li')  # what a kill in the middle of a write leaves
    kept = lines_of_whole(out)
    assert 4 <= len(kept) < 12
    options = BenchmarkOptions(output_dir=str(out), workers=0)
    benchmark(grid, options, "subdistill benchmark grid.yaml")
    assert lines_of(out)[: len(kept)] == kept
    assert without_times(lines_of(out)) == without_times(lines_of(finished))
    before = (out / "runs.jsonl").read_bytes()
    capsys.readouterr()
    benchmark(grid, options, "subdistill benchmark grid.yaml")
    assert (out / "runs.jsonl").read_bytes() == before
    assert "runs are done" not in capsys.readouterr().out


def test_a_grid_that_is_not_finished_can_be_told(inputs, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    lines = (finished / "runs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    grid, options = write_grid(inputs, tmp_path / "grid.yaml"), BenchmarkOptions(str(out), workers=0, report_only=True)
    (out / "runs.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    monkeypatch.setattr(command, "check", lambda jobs: pytest.fail("images were loaded"))
    benchmark(grid, options)
    assert len(lines_of(out)) == len(lines) - 1
    assert "1 of 2 runs a method" in (out / "README.md").read_text(encoding="utf-8")
    assert len((out / "results.csv").read_text(encoding="utf-8").splitlines()) == 1 + 5
    (out / "runs.jsonl").write_text("".join(lines[:5]), encoding="utf-8")
    with pytest.raises(BenchmarkError, match="1 of 6 runs that choose hyper-parameters are not finished"):
        benchmark(grid, options)


def test_a_report_is_written_beside_a_grid_that_still_runs(inputs, finished, tmp_path):
    """And leaves the file of runs as it is, of which the last line may be half written."""
    grid, out = write_grid(inputs, tmp_path / "grid.yaml"), tmp_path / "out"
    out.mkdir()
    written = (finished / "runs.jsonl").read_bytes()
    for ending in (-1, -40):  # without its newline, and cut
        (out / "runs.jsonl").write_bytes(written[:ending])
        with held_for_this_run(out):
            benchmark(grid, BenchmarkOptions(str(out), workers=0, report_only=True))
        assert (out / "runs.jsonl").read_bytes() == written[:ending]
        runs_told = "2 of 2" if ending == -1 else "1 of 2"
        assert f"{runs_told} runs a method" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_runs_whose_teacher_or_student_was_replaced_are_made_anew(datasets_cache, tmp_path, capsys, model):
    for name in ("teacher", "student"):
        save_teacher(tmp_path / name, teacher_resnet())
    write_image_folder(tmp_path / "images", train=10)
    changes = {"methods": ["kd"], "seeds": [0], "tuning": None, "students": [str(tmp_path / "student")]}
    grid, out = write_grid(tmp_path, tmp_path / "grid.yaml", **changes), tmp_path / "out"
    options = BenchmarkOptions(str(out), workers=0)
    benchmark(grid, options)
    (before,) = lines_of(out)
    shutil.rmtree(tmp_path / model)
    benchmark(grid, BenchmarkOptions(str(out), workers=0, report_only=True))  # nobody can tell
    save_teacher(tmp_path / model, teacher_resnet(seed=11))
    with pytest.raises(BenchmarkError, match=r"report_only: 1 of 1 runs in .* had other weights of"):
        benchmark(grid, BenchmarkOptions(str(out), workers=0, report_only=True))
    capsys.readouterr()
    benchmark(grid, options)
    assert "1 runs had other weights" in capsys.readouterr().out
    assert lines_of(out)[0] == before
    (_, after) = lines_of(out)
    benchmark(grid, BenchmarkOptions(str(tmp_path / "fresh"), workers=0))
    assert without_times([after]) == without_times(lines_of(tmp_path / "fresh"))
    assert {name for name in before["weights"] if before["weights"][name] != after["weights"][name]} == {model}
    assert before["key"] == after["key"]
    benchmark(grid, options)
    assert len(lines_of(out)) == 2


def test_a_run_that_does_not_tell_its_weights_counts(inputs, finished, tmp_path, monkeypatch):
    """Those of earlier versions do not."""
    out, rows = tmp_path / "out", lines_of(finished)
    assert all(row.pop("weights").keys() == {"teacher"} for row in rows)
    out.mkdir()
    (out / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(runs, "train_job", lambda job: pytest.fail("a run was made again"))
    benchmark(write_grid(inputs, tmp_path / "grid.yaml"), BenchmarkOptions(str(out), workers=0))
    assert lines_of(out) == rows


def lines_of_whole(folder):
    text = (folder / "runs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def test_a_loss_that_is_not_finite_is_a_result_and_does_not_win(inputs, datasets_cache, tmp_path):
    stages = [{"all": [{"learning_rate": 1e30}, {"learning_rate": 1e-3}]}]
    tuning = {"subtasks": {"three": list(NAMES)}, "stages": stages}
    grid = write_grid(
        inputs,
        tmp_path / "grid.yaml",
        methods={"kd": {}},
        seeds=[0],
        tuning=tuning,
        training={"max_steps": 6, "per_device_train_batch_size": 8, "use_cpu": True},
    )
    benchmark(grid, BenchmarkOptions(output_dir=str(tmp_path / "out"), workers=0))
    first, second, final = lines_of(tmp_path / "out")
    assert "NaN or infinite" in first["error"]
    assert first["validation"] is None
    assert (second["tuned"], final["tuned"]) == ({"learning_rate": 1e-3}, {"learning_rate": 1e-3})


@pytest.mark.parametrize("steps", [1, 3])
def test_a_student_that_the_last_step_spoiled_has_no_accuracy(inputs, datasets_cache, tmp_path, steps):
    """The loss before that step was finite, and none comes after it."""
    spoil = {"optim": "sgd", "max_grad_norm": 0.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    training = {"max_steps": steps, "per_device_train_batch_size": 8, "use_cpu": True, "learning_rate": 1e30, **spoil}
    changes = {"methods": ["kd"], "seeds": [0], "tuning": None}
    grid = write_grid(inputs, tmp_path / "grid.yaml", training=training, **changes)
    benchmark(grid, BenchmarkOptions(output_dir=str(tmp_path / "out"), workers=0))
    (row,) = lines_of(tmp_path / "out")
    assert (row["validation"], row["test"]) == (None, None)
    assert "NaN or infinite" in row["error"]
    assert ("the student's logits of" in row["error"]) == (steps == 1)


def test_a_grid_over_levels_of_a_mark_tells_who_follows_it(inputs, datasets_cache, tmp_path):
    task = {"teacher": str(inputs / "teacher"), "dataset": str(inputs / "images"), "mark": "plus"}
    grid = write_grid(
        inputs,
        tmp_path / "grid.yaml",
        task=task,
        methods={"kd": {}},
        seeds=[0],
        tuning=None,
        conditions={"none marked": {"mark_share": 0}, "all marked": {"mark_share": 1}},
    )
    out = tmp_path / "out"
    benchmark(grid, BenchmarkOptions(output_dir=str(out), workers=0))
    rows = lines_of(out)
    assert [row["condition"] for row in rows] == ["none marked", "all marked"]
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in MARK_COLUMNS)
        assert row["teacher_mark_followed"] == rows[0]["teacher_mark_followed"]  # the test images are the same
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.count("| follows the mark |") == 2
    assert (out / "who_learned_the_mark.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": {"half": {"mark_share": 0.5}}}, "half: mark_share=0.5 has no meaning without --mark"),
        ({"conditions": {"half": {"mark_shar": 0.5}}}, "half: 'mark_shar' is no option of TaskOptions; did you mean"),
        ({"training": {"max_stepz": 2}}, "'max_stepz' is no option of SubDistillConfig; did you mean 'max_steps'"),
        ({"training": {"max_steps": "many"}}, "max_steps='many': expected a whole number"),
        ({"training": {"report_to": "paper"}}, "report_to='paper': expected one of none, all"),
        ({"methods": {"kd": {"zzz": 1}}}, "'zzz' is no option of .*; see subdistill distill --help-a"),
        ({"methods": {"kd": {"temperature": -1}}}, "temperature=-1: expected a positive number"),
        ({"task": {"tacher": "x"}}, "'tacher' is no option of TaskOptions; did you mean 'teacher'"),
        ({"task": {"teacher": "glyphs-resnet", "mix": "half"}}, "mix='half': expected a number"),
        (
            {"task": {"teacher": "glyphs-resnet", "validation_fraction": 0}, "validation_images": None},
            "validation_fraction=0: a benchmark measures validation images",
        ),
        ({"subtasks": {"two": ["no such class", NAMES[0]]}}, "no such class"),
        ({"train_images": [60]}, "has 10 images: expected 62"),
        ({"students": ["resnet:widths=8-8-8", "no-such"]}, "no-such, seed 0.*: student 'no-such' cannot be built"),
        ({"students": ["resnet:width=9"]}, "expected a factor above 0 and at most 4 for width, found '9'"),
        ({"tuning": {"student": "no-such", **TUNING}}, "student 'no-such' cannot be built"),
        ({"task": {"teacher": "no-such"}}, "teacher 'no-such' cannot be loaded"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_run(
    inputs, datasets_cache, tmp_path, monkeypatch, changes, message
):
    if "task" in changes:
        changes = changes | {"task": changes["task"] | {"dataset": str(inputs / "images")}}
    grid = write_grid(inputs, tmp_path / "grid.yaml", **changes)
    if "no-such" in message:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no tries to reach it, which take time
        monkeypatch.setattr(training, "load_subtask", lambda *given: pytest.fail("images were loaded"))
    with pytest.raises(SubDistillError, match=message):
        benchmark(grid, BenchmarkOptions(output_dir=str(tmp_path / "out"), workers=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("report_only", [True, False])
def test_a_folder_of_other_files_is_left_as_it_is(inputs, tmp_path, monkeypatch, report_only):
    monkeypatch.setattr(command, "check", lambda jobs: pytest.fail("images were loaded"))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("README.md", "results.csv", "chosen.yaml"):
        (out / name).write_text("mine")
    with pytest.raises(BenchmarkError, match="already holds other files: give another --output_dir"):
        benchmark(write_grid(inputs, tmp_path / "grid.yaml"), BenchmarkOptions(str(out), report_only=report_only))
    assert {path.read_text() for path in out.iterdir()} == {"mine"}
    assert len(list(out.iterdir())) == 3


def test_without_runs_there_is_nothing_to_report(inputs, datasets_cache, tmp_path):
    options = BenchmarkOptions(str(tmp_path / "out"), workers=0, report_only=True)
    grid = write_grid(inputs, tmp_path / "grid.yaml", tuning=None)
    with pytest.raises(BenchmarkError, match=r"report_only: .*out holds no runs: start the command without it"):
        benchmark(grid, options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs.jsonl").write_text('{"key": "of another file"}\n', encoding="utf-8")
    (tmp_path / "out" / "README.md").write_text("of another file", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"report_only: .*out holds no run of this file"):
        benchmark(grid, options)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "of another file"


def test_a_benchmark_that_ended_before_its_first_run_goes_on(inputs, datasets_cache, tmp_path, monkeypatch):
    grid = write_grid(inputs, tmp_path / "grid.yaml", tuning=None, methods={"kd": {}}, seeds=[0])
    options = BenchmarkOptions(str(tmp_path / "out"), workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train_job", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            benchmark(grid, options)
    benchmark(grid, options)
    assert len(lines_of(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [({}, "the teacher has no class"), ({"adapt_teacher": "lora"}, "lacks the classes.* adapt it")],
)
def test_a_teacher_that_lacks_the_classes_is_refused(inputs, datasets_cache, tmp_path, more, message):
    save_teacher(tmp_path / "teacher", teacher_resnet(("cat", "dog", "cow")))
    task = {"teacher": str(tmp_path / "teacher"), "dataset": str(inputs / "images")} | more
    grid = write_grid(inputs, tmp_path / "grid.yaml", task=task)
    with pytest.raises(BenchmarkError, match=rf"kd, three, .* seed 0 .*: .*{message}"):
        benchmark(grid, BenchmarkOptions(output_dir=str(tmp_path / "out"), workers=0))


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert main(["benchmark", str(tmp_path / "nothing.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nothing.yaml'} cannot be read")
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "grid.yaml").write_text(
        "{methods: [kd], subtasks: {a: [1, 2]}, students: [s], train_images: [1], seeds: [0]}", encoding="utf-8"
    )
    assert main(["benchmark", str(tmp_path / "grid.yaml"), "--output_dir", str(path)]) == 2
    assert "is a file: expected a folder" in capsys.readouterr().err
    assert main(["benchmark", str(tmp_path / "grid.yaml"), "--workers", "-1"]) == 2
    assert "workers=-1: expected at least 0" in capsys.readouterr().err
