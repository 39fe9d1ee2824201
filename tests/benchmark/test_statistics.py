"""Means, intervals, paired differences and ranks; the table that tells them; the file that keeps the runs."""

import csv
import json
import math

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image
from scipy import stats

from subdistill_hf.benchmark import plots
from subdistill_hf.benchmark.config import Benchmark, BenchmarkError, ExplainedRuns, Tuning
from subdistill_hf.benchmark.jobs import Setting
from subdistill_hf.benchmark.mark_tables import MARK_COLUMNS
from subdistill_hf.benchmark.plots import plot_benchmark
from subdistill_hf.benchmark.statistics import Estimate, compare
from subdistill_hf.benchmark.store import Results
from subdistill_hf.benchmark.tables import COLUMNS, markdown, write_table

METHODS = {"kd": {}, "fitnet": {}, "subdistill": {}, "PCA | basis": {"method": "subdistill"}}
ACCURACIES = {  # a row a method, a column a block
    "kd": [0.20, 0.30, 0.25, 0.35],
    "fitnet": [0.50, 0.40, 0.55, 0.45],
    "subdistill": [0.60, 0.60, 0.55, 0.65],
    "PCA | basis": [0.60, 0.50, 0.65, 0.60],
}
SECONDS = [100.0, 1.0, 3.0, 2.0]  # of the blocks
BLOCKS = [("dice", 0), ("dice", 1), ("chess", 0), ("chess", 1)]


def grid(**changes):
    entries = {
        "name": "Small grid",
        "methods": METHODS,
        "subtasks": {"dice": ["1"], "chess": ["2"]},
        "students": ["small"],
        "train_images": [10],
        "seeds": [0, 1],
        "task": {},
        "training": {},
    }
    return Benchmark(**entries | changes)


def rows(size=10, student="small"):
    return [
        {
            "key": f"{method}-{subtask}-{seed}-{size}",
            "method": method,
            "subtask": subtask,
            "student": student,
            "train_images": size,
            "seed": seed,
            "tuned": {"learning_rate": 0.004, "max_steps": 7},
            "test": accuracy,
            "validation": accuracy,
            "teacher_test": 0.9 if subtask == "dice" else 0.8,
            "seconds": seconds,
            "machine": "a machine",
        }
        for method, accuracies in ACCURACIES.items()
        for (subtask, seed), accuracy, seconds in zip(BLOCKS, accuracies, SECONDS, strict=True)
    ]


def test_an_estimate_is_students():
    values = [0.2, 0.5, 0.3, 0.9]
    estimate = Estimate.of(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.error == pytest.approx(stats.sem(values))
    assert (estimate.mean - estimate.interval, estimate.mean + estimate.interval) == pytest.approx((low, high))
    lone = Estimate.of([0.4])
    assert lone.mean == 0.4
    assert math.isnan(lone.error)
    assert math.isnan(lone.interval)


def test_differences_are_paired_by_run():
    (comparison,) = compare(rows(), list(METHODS))
    difference = comparison.difference("subdistill", "kd")
    result = stats.ttest_rel(ACCURACIES["subdistill"], ACCURACIES["kd"])
    interval = result.confidence_interval(0.95)
    assert difference.mean == pytest.approx(np.mean(ACCURACIES["subdistill"]) - np.mean(ACCURACIES["kd"]))
    assert difference.mean - difference.interval == pytest.approx(interval.low)
    assert difference.mean + difference.interval == pytest.approx(interval.high)


def test_intervals_are_over_subtasks_whose_seeds_are_averaged_first():
    blocks = [(subtask, seed) for subtask in ("dice", "chess", "suits") for seed in (0, 1)]
    accuracies = {"kd": [0.2, 0.3, 0.5, 0.6, 0.1, 0.2], "fitnet": [0.4, 0.6, 0.6, 0.6, 0.5, 0.3]}
    given = [
        {**rows()[0], "method": method, "subtask": subtask, "seed": seed, "test": accuracy}
        for method, values in accuracies.items()
        for (subtask, seed), accuracy in zip(blocks, values, strict=True)
    ]
    (comparison,) = compare(given, list(accuracies))
    difference = comparison.difference("fitnet", "kd")
    found = stats.ttest_rel([0.5, 0.6, 0.4], [0.25, 0.55, 0.15]).confidence_interval(0.95)
    assert (difference.mean - difference.interval, difference.mean + difference.interval) == pytest.approx(found)
    assert comparison.accuracy("kd").error == pytest.approx(stats.sem([0.25, 0.55, 0.15]))
    methods = {name: METHODS[name] for name in accuracies}
    text = markdown(grid(methods=methods), [comparison], {}, [], "make it", "2026-01-01")
    assert "Errors and intervals are over the 3 subtasks; seeds of one are averaged first." in text


def test_two_subtasks_say_nothing_of_others():
    (comparison,) = compare(rows(), list(METHODS))
    assert comparison.accuracy("kd").error == pytest.approx(stats.sem(ACCURACIES["kd"]))
    text = markdown(grid(), [comparison], {}, [], "make it", "2026-01-01")
    assert "are over the runs of these 2 subtasks, and say nothing of others." in text


def test_intervals_hold_the_mean_over_subtasks_where_seeds_of_one_resemble_each_other():
    draw = np.random.default_rng(0)
    blocks = [(subtask, seed) for subtask in "abcde" for seed in range(5)]
    held = 0
    for _ in range(2000):
        values = np.repeat(draw.normal(size=5), 5) + draw.normal(size=25)
        estimate = Estimate.over_subtasks(values.tolist(), blocks)
        held += abs(estimate.mean) <= estimate.interval
    assert 0.93 <= held / 2000 <= 0.97  # of independent runs it would hold 71 %


def test_ranks_are_averaged_over_runs_and_ties_share_theirs():
    (comparison,) = compare(rows(), list(METHODS))
    ours, pca = (1.5 + 1 + 2.5 + 1) / 4, (1.5 + 2 + 1 + 2) / 4
    expected = {"kd": 4.0, "fitnet": (3 + 3 + 2.5 + 3) / 4, "subdistill": ours, "PCA | basis": pca}
    assert comparison.mean_ranks() == pytest.approx(expected)


def test_only_runs_that_all_methods_have_finished_are_compared():
    partial = [row for row in rows() if not (row["method"] == "fitnet" and row["subtask"] == "dice")]
    failed = [row | {"test": None, "error": "NaN"} if row["key"] == "kd-chess-1-10" else row for row in partial]
    (comparison,) = compare(failed, list(METHODS))
    assert comparison.blocks == [("chess", 0)]
    assert comparison.planned == 4
    assert comparison.failed == {"kd": 1}
    text = markdown(grid(), [comparison], {}, [], "make it", "2026-01-01")
    assert "1 of 4 runs a method" in text
    assert "left out for all methods: Logit distillation (KD) 1" in text
    assert "| SubDistill | 55.0 ± unknown | +30.0 | " in text


def diverged(row):
    return {name: row[name] for name in ("key", "method", "subtask", "student", "train_images", "seed", "tuned")} | {
        "test": None,
        "validation": None,
        "error": "the loss of feature is NaN",
    }


@pytest.mark.parametrize("method", ["kd", "fitnet"])
def test_a_method_that_diverged_in_every_run_leaves_the_figures_of_the_others(tmp_path, method):
    """The first is also what others are compared with, and the row from which a block has the teacher's accuracy."""
    given = [diverged(row) if row["method"] == method else row for row in rows()]
    (comparison,) = compare(given, list(METHODS))
    assert (comparison.left_out, comparison.failed, len(comparison.blocks)) == ([method], {method: 4}, 4)
    lines = markdown(grid(), [comparison], {}, [], "make it", "2026-01-01").splitlines()
    label = {"kd": "Logit distillation (KD)", "fitnet": "FitNet"}[method]
    assert f"have no figures: {label} 4." in "".join(lines)
    assert "left out for all methods" not in "".join(lines)
    columns = 5 if method == "kd" else 6  # without what all are compared with there are no differences
    assert f"| {label} |{' – |' * columns}" in lines  # noqa: RUF001
    (ours,) = [line for line in lines if line.startswith("| SubDistill |")]
    assert ours.startswith("| SubDistill | 60.0 ± ")
    assert ours.endswith("| 60.0 | 60.0 |")
    assert ("| +32.5 (" in ours) == (method != "kd")
    names = [path.name for path in plot_benchmark(grid(), [comparison], tmp_path)]
    assert ("paired_differences.png" in names) == (method != "kd")
    assert "cost_against_accuracy.png" in names


def test_a_method_without_figures_at_one_size_has_those_of_another(tmp_path, figures):
    given = [diverged(row) if row["method"] == "fitnet" else row for row in rows(10)]
    plot_benchmark(grid(train_images=[10, 20]), compare([*given, *rows(20)], list(METHODS)), tmp_path)
    curves = [points[:, 0].tolist() for points, _ in bars_of(figures[-1].axes[0])]
    assert curves == [[0, 1], [1], [0, 1], [0, 1]]


def test_a_method_without_figures_is_in_no_table_of_marks_or_explanations():
    for method in ("kd", "fitnet"):
        explained = {"explanation_cosine": 0.5, "explanation_rank": 0.5, "ceiling_cosine": 1.0, "ceiling_rank": 1.0}
        given = [diverged(row) if row["method"] == method else row | explained for row in marked_rows(None, 0.9)]
        shown = grid(explanations=ExplainedRuns("gradient_x_input"))
        text = markdown(shown, compare(given, list(METHODS)), {}, [], "make it", "2026-01-01")
        _, of_marks, of_explanations = [part for part in text.split("\n\n") if part.startswith("| method |")]
        for table in (of_marks, of_explanations):
            assert len(table.splitlines()) == 2 + 1 + 3  # the heading, the teacher, and the other methods
            assert "| SubDistill |" in table


def test_what_diverged_is_told_where_nothing_can_be_compared():
    given = [diverged(row) if (row["method"] == "kd") == (row["seed"] == 0) else row for row in rows()]
    text = markdown(grid(), compare(given, list(METHODS)), {}, [], "make it", "2026-01-01")
    assert "No subtask and seed is finished with all methods yet. Runs that diverged, and are left out for " in text
    assert "all methods: Logit distillation (KD) 2, FitNet 2, SubDistill 2, PCA | basis 2." in text.replace("\\", "")
    every = markdown(grid(), compare(list(map(diverged, rows())), list(METHODS)), {}, [], "make it", "2026-01-01")
    assert "No subtask and seed is finished" in every
    assert "have no figures: Logit distillation (KD) 4, FitNet 4, " in every


def test_each_student_and_size_is_compared_by_itself():
    found = compare([*rows(), *rows(20), *rows(10, "large")], list(METHODS))
    assert [(one.student, one.train_images) for one in found] == [("small", 10), ("small", 20), ("large", 10)]


@pytest.mark.parametrize(("machines", "told"), [(["a machine"], False), (["a machine", "another"], True)])
def test_seconds_of_different_machines_are_said_not_to_compare(machines, told):
    text = markdown(grid(), compare(rows(), list(METHODS)), {}, machines, "make it", "2026-01-01")
    assert ("Seconds of different machines do not compare" in text) == told


def test_the_table_says_what_was_measured_and_how():
    chosen = {Setting("kd", "small", 10, None): {"learning_rate": 0.004, "temperature": 1}}
    tuning = Tuning([{"all": [{}, {}]}, {"all": [{}]}], {"signs": ["3"]}, [0])
    comparisons = compare(rows(), list(METHODS))
    text = markdown(grid(tuning=tuning), comparisons, chosen, ["a machine"], "make it", "2026-01-01")
    lines = text.splitlines()
    assert lines[0] == "# Small grid"
    assert "Made by `make it` on 2026-01-01; trained on a machine." in lines
    assert "the same number of trials (2 then 1), judged on validation images of other subtasks (signs)" in text
    assert "## 10 training images a class, student `small`" in lines
    assert "| method | accuracy | difference | mean rank | seconds | dice | chess |" in lines
    assert "| Teacher | 85.0 | – | – | – | 90.0 | 80.0 |" in lines  # noqa: RUF001
    error = 100 * stats.sem(ACCURACIES["subdistill"])
    (ours,) = [line for line in lines if line.startswith("| SubDistill |")]
    assert ours.startswith(f"| SubDistill | 60.0 ± {error:.1f} | +32.5 (+")
    assert ours.endswith("| 1.50 | 2.5 | 60.0 | 60.0 |")
    assert any(line.startswith("| PCA \\| basis |") for line in lines)
    assert "- SubDistill and the best of the other layer methods, FitNet: +12.5 (" in text
    assert "| Logit distillation (KD) | 10 | learning_rate 0.004, temperature 1 |" in lines


@pytest.mark.parametrize("change", [-0.3, 0.02])
def test_subdistill_is_compared_with_the_best_of_the_other_layer_methods(change):
    """Also where that is not the method that the table compares all with."""
    given = [*rows(), *({**row, "method": "vid", "test": row["test"] + change} for row in rows()[4:8])]
    methods = {**METHODS, "vid": {}}
    text = markdown(grid(methods=methods), compare(given, list(methods)), {}, [], "make it", "2026-01-01")
    best, theirs = ("FitNet", 0.0) if change < 0 else ("VID", change)
    differences = np.subtract(ACCURACIES["subdistill"], ACCURACIES["fitnet"]) - theirs
    error = stats.sem(differences)
    low, high = 100 * np.array(stats.t.interval(0.95, 3, loc=differences.mean(), scale=error))
    assert (
        f"- SubDistill and the best of the other layer methods, {best}: {100 * differences.mean():+.1f} "
        f"({low:+.1f} to {high:+.1f}) (standard error {100 * error:.1f})"
    ) in text.splitlines()


def test_an_unfinished_grid_says_so():
    text = markdown(grid(), compare(rows()[:3], list(METHODS)), {}, [], "make it", "2026-01-01")
    assert "No subtask and seed is finished with all methods yet." in text
    assert "Nothing was tuned" in text


def test_the_tidy_table_has_a_line_a_run(tmp_path):
    write_table(rows(), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert len(found) == 16
    assert [float(row["test"]) for row in found[:4]] == ACCURACIES["kd"]
    assert found[0]["tuned"] == "learning_rate 0.004, max_steps 7"


def test_every_figure_is_drawn_where_there_is_something_to_draw(tmp_path):
    one = compare(rows(), list(METHODS))
    names = [path.name for path in plot_benchmark(grid(), one, tmp_path)]
    assert names == ["paired_differences.png", "cost_against_accuracy.png"]
    several = compare([*rows(), *rows(20)], list(METHODS))
    names = [path.name for path in plot_benchmark(grid(train_images=[10, 20]), several, tmp_path)]
    assert names[0] == "accuracy_against_training_images.png"
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("L").getcolors()) > 50
    assert plot_benchmark(grid(), compare(rows()[:3], list(METHODS)), tmp_path) == []


def test_one_method_alone_has_no_differences_to_draw(tmp_path):
    kept = [row for row in rows() if row["method"] == "kd"]
    alone = grid(methods={"kd": METHODS["kd"]}, reference="kd")
    names = [path.name for path in plot_benchmark(alone, compare(kept, ["kd"]), tmp_path)]
    assert names == ["cost_against_accuracy.png"]


SMALL, LARGE = "resnet:widths=8-8", "resnet:widths=16-16"


def of_student(student, parameters, size=10):
    return [{**row, "student": student, "parameters": parameters} for row in rows(size)]


@pytest.mark.parametrize("methods", [["kd"], list(METHODS)])
def test_students_are_drawn_in_one_panel_by_their_size(tmp_path, figures, methods):
    given = [row for row in [*of_student(LARGE, 9000), *of_student(SMALL, 700)] if row["method"] in methods]
    found = grid(students=[LARGE, SMALL], methods={name: METHODS[name] for name in methods}, reference="kd")
    names = [path.name for path in plot_benchmark(found, compare(given, methods), tmp_path)]
    assert ("cost_against_accuracy.png" in names) == (len(methods) > 1)
    assert "students.png" in names
    (ax,) = figures[names.index("students.png")].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        f"{SMALL}\n700 parameters",
        f"{LARGE}\n9,000 parameters",
    ]
    assert (ax.get_legend() is not None) == (len(methods) > 1)
    means = {round(100 * x) for line in ax.lines for x in line.get_xdata()}
    assert round(100 * sum(ACCURACIES["kd"]) / 4) in means


def test_a_student_whose_size_is_unknown_has_its_name_alone(tmp_path, figures):
    given = [*of_student(LARGE, None), *of_student(SMALL, 700)]
    names = [
        path.name for path in plot_benchmark(grid(students=[LARGE, SMALL]), compare(given, list(METHODS)), tmp_path)
    ]
    (ax,) = figures[names.index("students.png")].axes
    assert [label.get_text().strip() for label in ax.get_yticklabels()] == [LARGE, f"{SMALL}\n700 parameters"]


@pytest.fixture
def figures(monkeypatch):
    """Figures as they would be saved."""
    figures = []

    def drawn(figure, path):
        figure.canvas.draw()
        figures.append(figure)
        return path

    monkeypatch.setattr(plots, "save_figure", drawn)
    return figures


def bars_of(ax):
    """Of each curve of a panel its points, and the ends of the bars through them, `(N, 2)` each."""
    curves = []
    for container in ax.containers:
        points, _, (bars,) = container.lines
        ends = np.array(bars.get_segments())  # (N, 2, 2), one end after the other
        along = int(not container.has_xerr)
        curves.append((points.get_xydata(), ends[:, :, along]))
    return curves


def test_differences_are_drawn_with_their_intervals_and_every_run(tmp_path, figures):
    plot_benchmark(grid(), compare(rows(), list(METHODS)), tmp_path)
    (ax,) = (ax for ax in figures[0].axes if ax.containers)
    methods = ["PCA | basis", "subdistill", "fitnet"]
    runs = [one.get_offsets() for one in ax.collections if isinstance(one, PathCollection)]
    for place, (method, (points, ends), every) in enumerate(zip(methods, bars_of(ax), runs, strict=True)):
        found = stats.ttest_rel(ACCURACIES[method], ACCURACIES["kd"]).confidence_interval(0.95)
        differences = np.subtract(ACCURACIES[method], ACCURACIES["kd"])
        np.testing.assert_allclose(points, [[differences.mean(), place]])
        np.testing.assert_allclose(ends, [[found.low, found.high]])
        np.testing.assert_allclose(every, [[difference, place] for difference in differences])
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "SubDistill"


def test_accuracies_are_drawn_with_their_standard_errors(tmp_path, figures):
    sizes = [20, 10]
    plot_benchmark(grid(train_images=sizes), compare([*rows(20), *rows(10)], list(METHODS)), tmp_path)
    _, costs, of_sizes = figures
    (ax,) = of_sizes.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "20"]
    for method, (points, ends) in zip(METHODS, bars_of(ax), strict=True):
        mean, error = np.mean(ACCURACIES[method]), stats.sem(ACCURACIES[method])
        np.testing.assert_allclose(points, [[0, mean], [1, mean]])
        np.testing.assert_allclose(ends, [[mean - error, mean + error]] * 2)
        for panel in costs.axes:
            points, ends = bars_of(panel)[list(METHODS).index(method)]
            np.testing.assert_allclose(points, [[2.5, mean]])  # at the median of the seconds
            np.testing.assert_allclose(ends, [[mean - error, mean + error]])


def texts_of(figure):
    found = [text for ax in figure.axes for text in (*ax.texts, ax.title, ax._left_title)]
    return [text for text in found if text.get_text()]


def test_shares_are_said_in_percent_and_folders_without_their_path(tmp_path, figures):
    """The share 1.0 is no single image; a name may hold what no font draws."""
    student = "/home/me/models/my\nstudent"
    given = [*rows(0.25, student), *rows(1.0, student)]
    shown = [row | {"condition": name} for row in marked_rows("", 0.9, given) for name in ("none", "all")]
    benchmark = grid(students=[student, "b"], train_images=[0.25, 1.0])
    comparisons = compare(shown, list(METHODS))
    plot_benchmark(benchmark, comparisons, tmp_path)
    of_sizes, marks = figures[-2].axes[0], figures[-1].axes
    assert [label.get_text() for label in of_sizes.get_xticklabels()] == ["25 %", "100 %"]
    assert of_sizes.get_xlabel() == "training images"
    headings = [ax.get_title(loc="left") for ax in marks]
    assert headings[0].endswith("marked\n25 % of the training images, my\\nstudent")
    assert headings[-1].endswith("followed\n100 % of the training images, my\\nstudent")
    said = "".join(text.get_text() for figure in figures for text in texts_of(figure))
    assert "/home" not in said
    chosen = {Setting("kd", student, size, None): {"unlabelled": "/home/me/more"} for size in (0.25, 1.0)}
    text = markdown(benchmark, comparisons, chosen, [], "make it", "2026-01-01")
    assert "/home" not in text
    assert "## 100 % of the training images, student <code>my&#10;student</code>, all" in text
    assert "| 100 % | unlabelled more |" in text
    write_table(shown, tmp_path / "results.csv")
    assert "/home" not in (tmp_path / "results.csv").read_text(encoding="utf-8")


def test_no_heading_leaves_its_figure(tmp_path, figures):
    student = "resnet:widths=16-24-32-48,image=64"
    named = {**METHODS, "rotation: full width, no subspace": {"method": "subdistill"}}
    shown = rows(student=student)
    shown += [{**row, "method": list(named)[-1]} for row in shown if row["method"] == "subdistill"]
    plot_benchmark(grid(methods=named, students=[student]), compare(shown, list(named)), tmp_path)
    assert len(figures) == 2
    assert figures[0].axes[0].get_xlabel() == "points"  # of a difference of shares
    for figure in figures:
        texts = texts_of(figure)
        assert any(student in text.get_text() for text in texts)
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()
            assert box.y1 <= figure.bbox.y1, text.get_text()


# Conditions and marks


def marked_rows(condition, followed, given=None):
    """Rows with what a mark does: FitNet and SubDistill follow it less than KD does, and the teacher never."""
    less = {"kd": 0.0, "fitnet": 0.1, "subdistill": 0.2, "PCA | basis": 0.05}
    figures = {"followed_without_mark": 0.02, "teacher_clean_accuracy": 0.95}
    figures |= {"teacher_mark_followed": 0.0, "teacher_followed_without_mark": 0.01}
    return [
        row
        | {"condition": condition, "key": f"{row['key']}-{condition}", "clean_accuracy": row["test"] + 0.1}
        | figures
        | {"mark_followed": followed - less[row["method"]] * (1 + 0.1 * row["seed"])}
        for row in given or rows()
    ]


def test_each_condition_is_compared_by_itself():
    found = compare([*marked_rows("none", 0.3), *marked_rows("all", 0.9)], list(METHODS))
    assert [(one.condition, len(one.blocks)) for one in found] == [("none", 4), ("all", 4)]
    benchmark = grid(conditions={"none": {"mark_share": 0.0}, "all": {"mark_share": 1.0}})
    text = markdown(benchmark, found, {}, [], "make it", "2026-01-01")
    assert "Conditions: none: mark_share 0; all: mark_share 1." in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [f"## 10 training images a class, student `small`, {name}" for name in ("none", "all")]


def test_a_second_table_tells_who_follows_the_mark():
    (comparison,) = compare(marked_rows("all", 0.9), list(METHODS))
    lines = markdown(grid(), [comparison], {}, [], "make it", "2026-01-01").splitlines()
    columns = "| method | with the mark | without it | follows the mark | the same without it |"
    start = next(place for place, line in enumerate(lines) if line.startswith(columns))
    teacher, kd, fitnet, ours = lines[start + 2 : start + 6]
    assert teacher == "| Teacher | 85.0 | 95.0 | 0.0 | 1.0 | – |"  # noqa: RUF001
    assert kd.endswith("| 90.0 ± 0.0 | 2.0 ± 0.0 | – |")  # noqa: RUF001
    less = stats.t.interval(0.95, 3, loc=-0.105, scale=stats.sem([0.1, 0.11, 0.1, 0.11]))
    assert fitnet.endswith(f"| -10.5 ({100 * less[0]:+.1f} to {100 * less[1]:+.1f}) |")
    assert ours.startswith(f"| SubDistill | 60.0 ± {100 * stats.sem(ACCURACIES['subdistill']):.1f} | 70.0 ± ")
    assert columns not in "".join(markdown(grid(), compare(rows(), list(METHODS)), {}, [], "", "").splitlines())


def test_no_table_tells_who_follows_a_mark_where_all_test_images_are_of_marked_classes(tmp_path):
    untold = {name: None for name in MARK_COLUMNS if "followed" in name}
    found = compare([row | untold for row in marked_rows("all", 0.9)], list(METHODS))
    assert "follows the mark" not in markdown(grid(), found, {}, [], "make it", "2026-01-01")
    assert "who_learned_the_mark.png" not in [path.name for path in plot_benchmark(grid(), found, tmp_path)]
    write_table([row | untold for row in marked_rows("all", 0.9)], tmp_path / "results.csv")
    assert "nan" not in (tmp_path / "results.csv").read_text(encoding="utf-8").lower()


def test_the_tidy_table_has_the_columns_of_conditions_and_marks_where_there_are_some(tmp_path):
    write_table(marked_rows("all", 0.9), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == (*COLUMNS, "condition", *MARK_COLUMNS)
    assert (found[0]["condition"], float(found[0]["mark_followed"])) == ("all", 0.9)


def test_who_learned_the_mark_is_drawn_over_the_conditions(tmp_path, figures):
    given = [*marked_rows("none", 0.3), *marked_rows("all", 0.9)]
    names = [path.name for path in plot_benchmark(grid(), compare(given, list(METHODS)), tmp_path)]
    assert names[-1] == "who_learned_the_mark.png"
    for ax, column in zip(figures[-1].axes, ("test", "clean_accuracy", "mark_followed"), strict=True):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "all"]
        for method, (points, ends) in zip(METHODS, bars_of(ax), strict=True):
            for place, condition in enumerate(("none", "all")):
                values = [row[column] for row in given if (row["method"], row["condition"]) == (method, condition)]
                mean, error = np.mean(values), stats.sem(values)
                np.testing.assert_allclose(points[place], [place, mean])
                np.testing.assert_allclose(ends[place], [mean - error, mean + error])


# The file of runs


def test_rows_are_found_again_and_a_line_that_was_cut_short_is_dropped(tmp_path):
    path = tmp_path / "folder" / "runs.jsonl"
    first = Results(path)
    for row in rows()[:3]:
        first.add(row)
    assert Results(path).rows == first.rows
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows()[3])[:40])
    again = Results(path)
    assert again.rows == first.rows
    again.add(rows()[3])
    assert list(Results(path).rows) == [row["key"] for row in rows()[:4]]
    assert path.read_text(encoding="utf-8").count("\n") == 4


def test_a_whole_last_line_counts_without_its_newline(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a"}\n\n{"key": "b"}', encoding="utf-8")
    results = Results(path)
    assert list(results.rows) == ["a", "b"]
    assert path.read_text(encoding="utf-8") == '{"key": "a"}\n\n{"key": "b"}'  # reading changes nothing
    results.add({"key": "c"})
    assert path.read_text(encoding="utf-8") == '{"key": "a"}\n\n{"key": "b"}\n{"key": "c"}\n'


@pytest.mark.parametrize("line", ["<<<<<<< HEAD", '{"ke{"key": "b"}', "3", '{"method": "kd"}'])
def test_a_line_that_is_no_run_is_named(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n', encoding="utf-8")
    with pytest.raises(BenchmarkError) as refused:
        Results(path)
    assert str(refused.value).startswith(f"{path}, line 2: expected a run as JSON with its key, found {line!r}")


def test_the_last_row_of_a_run_counts(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a", "test": 0.1}\n{"key": "a", "test": 0.2}\n', encoding="utf-8")
    assert Results(path).rows["a"]["test"] == 0.2


@pytest.mark.parametrize("text", ["", '{"key": "a'])
def test_a_file_without_a_whole_line_is_an_empty_one(tmp_path, text):
    path = tmp_path / "runs.jsonl"
    path.write_text(text, encoding="utf-8")
    results = Results(path)
    results.add({"key": "b"})
    assert Results(path).rows == {"b": {"key": "b"}}
