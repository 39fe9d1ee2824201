"""The benchmark of explanations: similarity at equal accuracy, and its tables, on tiny runs."""

import types

import pytest
import yaml

from helpers import NAMES, load_script, save_teacher, teacher_resnet, write_image_folder


@pytest.fixture(scope="module")
def script():
    return load_script("benchmarks/explanations.py")


def point(step, accuracy, cosine):
    return {"step": step, "accuracy": accuracy, "explanation_cosine": cosine}


def test_similarity_is_interpolated_to_an_accuracy(script):
    row = {
        "steps": 100,
        "accuracy": 0.9,
        "explanation_cosine": 0.5,
        "early": [point(10, 0.3, 0.1), point(50, 0.7, 0.3)],
    }
    assert script.at_accuracy(row, 0.5) == pytest.approx(0.2)
    assert script.at_accuracy(row, 0.8) == pytest.approx(0.4)
    assert script.at_accuracy(row, 0.2) is None
    assert script.at_accuracy(row, 0.95) is None


def test_runs_are_explained_at_the_end_and_before(script, tmp_path, monkeypatch, capsys):
    save_teacher(tmp_path / "teacher", teacher_resnet(widths=(8, 12)))
    write_image_folder(tmp_path / "images", train=10)
    grid = {
        "task": {"teacher": str(tmp_path / "teacher"), "dataset": str(tmp_path / "images"), "mark": "plus"},
        "training": {"max_steps": 9, "per_device_train_batch_size": 8, "use_cpu": True},
        "methods": ["kd", "subdistill"],
        "subtasks": {"three": list(NAMES)},
        "students": ["resnet:widths=4-4,image=32"],
        "train_images": [6],
        "seeds": [0, 1],
        "conditions": {"all marked": {"mark_share": 1}},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    given = types.SimpleNamespace(
        config=path,
        chosen=None,
        explainer="gradient_x_input",
        images=4,
        early=["subdistill"],
        methods=["kd", "subdistill"],
        subtasks=[],
        seeds=[0],
        max_steps=8,
        part="0/1",
        output=None,
    )
    script.similarity(given)
    printed = capsys.readouterr().out
    assert "## all marked" in printed
    assert "Difference in cosine of SubDistill to each other method" in printed
    assert "nan" not in printed
    folder = tmp_path / "results" / "explained_tiny"
    kd, ours = map(script.json.loads, (folder / "runs-0.jsonl").read_text(encoding="utf-8").splitlines())
    assert kd["early"] == []
    assert [one["step"] for one in ours["early"]] == [1, 2, 4]
    assert ours["steps"] == 8
    assert len({one["explanation_cosine"] for one in ours["early"]}) == 3
    script.similarity(given)
    assert "[1/2]" not in capsys.readouterr().out, "a finished run is not repeated"


def test_differences_are_those_of_pairs_at_the_end_and_at_equal_accuracy(script):
    def row(method, seed, accuracy, cosine, early=()):
        points = [{"step": step, "accuracy": acc, "explanation_cosine": cos} for step, acc, cos in early]
        found = {"accuracy": accuracy, "explanation_cosine": cosine, "early": points}
        return {"method": method, "subtask": "three", "seed": seed, "steps": 8, **found}

    rows = [
        row("fitnet", 0, 0.6, 0.28),
        row("fitnet", 1, 0.9, 0.40),  # more accurate than the other ever was
        row("subdistill", 0, 0.8, 0.50, early=[(2, 0.4, 0.1), (4, 0.5, 0.2)]),
        row("subdistill", 1, 0.8, 0.44, early=[(2, 0.4, 0.1), (4, 0.5, 0.2)]),
    ]
    *_, line = script.equal_accuracy(rows, "subdistill")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "FitNet"
    assert cells[1:3] == ["2", "+0.130 (-1.014 to +1.274)"]  # 0.22 and 0.04, t of one degree of freedom 12.706
    assert cells[3:] == ["1", "+0.020"]  # a third of the way from 0.2 to 0.5 is 0.3


def test_the_table_of_completeness_says_what_is_refused(script):
    facts = {"date": "2026-11-29", "machine": "a CPU", "images": 4, "training_steps": 60}
    row = {
        "family": "vit",
        "weights": "random",
        "integrated_gradients": {"error": 0.1396, "evaluations": 4080, "refused": True},
        "shapley": {"error": 1e-9, "evaluations": 1601, "refused": False},
        "gradient_x_input": {"error": 1.2, "evaluations": 1, "refused": False},
    }
    assert (
        "| vit | random | 13.96 % (4,080), refused | 1e-07 % (1,601) | 120 % |"
        in script.completeness_table(facts, [row]).splitlines()
    )


@pytest.mark.parametrize(
    ("explainer", "again"), [("integrated_gradients", "on mirrored images"), ("shapley", "with another seed")]
)
def test_a_table_says_how_the_teacher_was_explained_again_and_has_marks_where_there_are_some(script, explainer, again):
    row = {"method": "kd", "condition": None, "subtask": "three", "seed": 0, "accuracy": 0.6, "ceiling_cosine": 0.7}
    row |= {"explanation_cosine": 0.3, "explanation_rank": 0.2}
    given = types.SimpleNamespace(config=script.Path("tiny.yaml"), explainer=explainer, images=4, early=[])
    plain = script.similarity_tables(given, [row])
    assert f"The teacher is compared with itself {again}, once" in plain
    assert ("mirrored" in plain) == (again == "on mirrored images")
    assert plain.splitlines()[-3:] == [
        "|---|---|---|---|---|",
        "| Teacher, explained twice | 1 | | 0.700 | |",
        "| Logit distillation (KD) | 1 | 60.0 % | 0.300 | 0.200 |",
    ]
    marked = script.similarity_tables(given, [{**row, "relevance_on_mark": 0.25, "teacher_relevance_on_mark": 0.5}])
    assert marked.splitlines()[-4].endswith("| relevance on the mark, % |")
    assert marked.splitlines()[-2:] == [
        "| Teacher, explained twice | 1 | | 0.700 | | 50.000 |",
        "| Logit distillation (KD) | 1 | 60.0 % | 0.300 | 0.200 | 25.000 |",
    ]
