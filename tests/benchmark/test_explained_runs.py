"""How alike students and teacher explain, as a figure of each run and a column of the table; off unless asked for."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from torch import nn

from helpers import (
    CLASS_IDS,
    NAMES,
    processor,
    resnet,
    save_teacher,
    teacher_resnet,
    with_confident_head,
    write_image_folder,
)
from light_jobs import job
from subdistill_hf.benchmark import explained_runs, explanation_tables
from subdistill_hf.benchmark.command import benchmark
from subdistill_hf.benchmark.config import BenchmarkError, ExplainedRuns, read_benchmark
from subdistill_hf.benchmark.explanation_tables import EXPLANATION_COLUMN, explanation_section
from subdistill_hf.benchmark.jobs import untuned_jobs
from subdistill_hf.benchmark.statistics import compare
from subdistill_hf.config.commands import BenchmarkOptions
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.pipeline.evaluation import Classifier


def write_grid(folder, **changes):
    entries = {
        "name": "Explained",
        "task": {
            "teacher": str(folder / "teacher"),
            "dataset": str(folder / "images"),
            "mark": "plus",
            "mark_share": 1.0,
        },
        "training": {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True},
        "methods": {"kd": {}, "subdistill": {}},
        "subtasks": {"three": list(NAMES)},
        "students": ["resnet:widths=4-4,image=32"],
        "train_images": [6],
        "validation_images": 2,
        "seeds": [0, 1],
        "explanations": {"method": "gradient_x_input", "images": 4},
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(entries | changes, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_teacher(folder / "teacher", teacher_resnet(widths=(8, 12)))
    write_image_folder(folder / "images", train=10)
    return folder


def test_runs_are_explained_where_the_file_asks_for_it(inputs, tmp_path, monkeypatch):
    explained_runs._kept.cache_clear()  # another test of this process may have explained the same teacher
    calls = []
    twice = explained_runs.explain_twice
    monkeypatch.setattr(
        explained_runs, "explain_twice", lambda *given, **more: calls.append(1) or twice(*given, **more)
    )
    folder = benchmark(write_grid(inputs), BenchmarkOptions(output_dir=str(tmp_path), workers=0))
    assert len(calls) == 1, "methods and seeds share the teacher's explanations: seeds change no test image"
    report = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| seconds | {EXPLANATION_COLUMN} | three |" in report
    assert "gradient x input, the teacher's answer to 4 test images of each run" in report
    assert "relevance on the mark" in report
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        assert row["explained_images"] == "4"
        assert -1 <= float(row["explanation_cosine"]) <= 1
        assert -1 <= float(row["explanation_rank"]) <= 1
        assert 0 < float(row["relevance_on_mark"]) < 1
    assert len({row["ceiling_cosine"] for row in rows}) == 1, (
        "seeds change no test image, and the method draws nothing"
    )


def test_the_figures_of_a_run_are_those_of_heat_maps_made_by_hand(inputs):
    explained_runs._kept.cache_clear()
    options = DataOptions(str(inputs / "images"), list(NAMES), mark="plus", mark_share=1.0)
    data = load_subtask(options)
    teacher, student = teacher_resnet(widths=(8, 12)), with_confident_head(resnet(widths=(4, 6)))
    task = SimpleNamespace(
        data=data,
        teacher_classifier=Classifier(teacher, processor(), CLASS_IDS),
        teacher=SimpleNamespace(identity="the teacher"),
        has_other=False,
    )
    row = explained_runs.explanation_figures(
        ExplainedRuns("gradient_x_input", 9), task, Classifier(student, processor())
    )
    views, plain = data.views("test"), data.views("test", marked=None)
    images = torch.stack([views.image(place) for place in range(9)])
    marks = torch.stack([(views.image(place) != plain.image(place)).any(dim=0) for place in range(9)])

    def relevance(model, outputs, images, targets=None):
        """The pixels minus grey, times the gradient of the margin; and the classes."""
        pixels = (images / 127.5 - 1).requires_grad_()
        logits = model.eval()(pixel_values=pixels).logits[:, outputs]
        targets = logits.argmax(dim=1) if targets is None else targets
        own = nn.functional.one_hot(targets, 3).bool()
        evidence = logits[own] - logits.masked_fill(own, -torch.inf).amax(dim=1)
        (gradient,) = torch.autograd.grad(evidence.sum(), pixels)
        return ((pixels - (128 / 127.5 - 1)) * gradient).sum(dim=1).detach().double(), targets

    theirs, targets = relevance(teacher, list(CLASS_IDS), images)
    again = relevance(teacher, list(CLASS_IDS), images.flip(3), targets)[0].flip(2)
    ours, _ = relevance(student, [0, 1, 2], images, targets)
    maps = [one.reshape(9, 8, 4, 8, 4).sum(dim=(2, 4)).reshape(9, 64) for one in (theirs, ours, again)]

    def alike(first, second):
        return [
            nn.functional.cosine_similarity(first, second).mean().item(),
            np.mean([stats.spearmanr(one, other).statistic for one, other in zip(first, second, strict=True)]),
        ]

    names = ("explanation_cosine", "explanation_rank", "ceiling_cosine", "ceiling_rank")
    expected = dict(zip(names, alike(maps[0], maps[1]) + alike(maps[0], maps[2]), strict=True))
    for name, one in (("relevance_on_mark", ours), ("teacher_relevance_on_mark", theirs)):
        shares = (one.abs() * marks).sum(dim=(1, 2)) / one.abs().sum(dim=(1, 2))
        expected[name] = float(shares.mean())
    assert row == pytest.approx(expected | {"explained_images": 9}, rel=1e-3, abs=1e-4)


def test_runs_that_are_not_explained_keep_their_keys_and_their_table(inputs):
    plain = job(1)
    assert plain.key == "b01693239706f4b9"  # as before there were explanations
    assert replace(plain, explanations=ExplainedRuns("shapley", 3)).key != plain.key
    grid = read_benchmark(write_grid(inputs, explanations=None))
    assert {each.explanations for each in untuned_jobs(grid)} == {None}


def test_a_method_that_does_not_hold_is_told_and_ends_no_run(inputs, monkeypatch):
    def refuse(*given, **more):
        raise ExplainError("it does not hold for the student")

    monkeypatch.setattr(explained_runs, "test_images", lambda *given: None)
    monkeypatch.setattr(explained_runs, "_teacher_figures", refuse)
    row = explained_runs.explanation_figures(ExplainedRuns("shapley"), type("Task", (), {"data": None}), None)
    assert row == {"explanation_error": "it does not hold for the student"}
    grid = read_benchmark(write_grid(inputs))
    rows = [
        {**each.described(), "test": 0.5, "seconds": 1.0, "teacher_test": 0.5, **row} for each in untuned_jobs(grid)
    ]
    (comparison,) = compare(rows, list(grid.methods))
    lines = explanation_section(grid, comparison)
    assert lines[0] == "Explanations: 4 runs could not be explained. it does not hold for the student."


def test_differences_of_similarity_are_those_of_runs_to_the_reference(inputs):
    figures = {"ceiling_cosine": 0.875, "ceiling_rank": 0.75, "explanation_rank": 0.125, "explained_images": 4}
    cosines = {"kd": [0.2, 0.3], "subdistill": [0.5, 0.7]}
    grid = read_benchmark(write_grid(inputs))
    rows = [
        {**each.described(), "test": 0.5, "seconds": 1.0, "teacher_test": 0.5, **figures}
        | {"explanation_cosine": cosines[each.method][each.seed]}
        for each in untuned_jobs(grid)
    ]
    (comparison,) = compare(rows, list(grid.methods))
    lines = "\n".join(explanation_section(grid, comparison)).splitlines()
    teacher, kd, ours = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[-3:])
    assert teacher[1:4] == ["0.875", "–", "0.750"]  # noqa: RUF001
    low, high = stats.t.interval(0.95, 1, loc=0.25, scale=stats.sem([0.2, 0.3]))
    assert kd[1:3] == [f"0.250 ({low:.3f} to {high:.3f})", "–"]  # noqa: RUF001
    low, high = stats.t.interval(0.95, 1, loc=0.35, scale=stats.sem([0.3, 0.4]))
    assert ours[2] == f"+0.350 ({low:+.3f} to {high:+.3f})"
    assert ours[1].startswith("0.600 (")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lrp", "explanations has the method 'lrp': expected one of gradient_x_input"),
        ({"images": 3}, "explanations has the method None"),
        ({"method": "shapley", "image": 3}, "'image' is no entry of explanations; did you mean 'images'"),
        ({"method": "shapley", "images": 0}, "explanations has images 0: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, given, message):
    with pytest.raises(BenchmarkError, match=message):
        read_benchmark(write_grid(inputs, explanations=given))
    assert read_benchmark(write_grid(inputs, explanations="shapley")).explanations == ExplainedRuns("shapley", 32)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([500, 500], "500 test images"),
        ([300, 500], "300 to 500 test images"),
        ([500, None], "at most 900 test images"),
    ],
)
def test_the_images_that_were_explained_are_counted_and_not_those_asked_for(counts, told):
    """A run may have fewer test images; runs of earlier versions do not say how many."""
    rows = [{} if count is None else {"explained_images": count} for count in counts]
    comparison = SimpleNamespace(rows={"kd": rows})
    assert explanation_tables._images_in_words(comparison, 900) == told
