"""Which runs a benchmark has, and which hyper-parameters win."""

from collections import Counter

import pytest

from subdistill_hf.benchmark.config import Benchmark, BenchmarkError, Tuning
from subdistill_hf.benchmark.jobs import Setting, final_jobs, make_job, tune, untuned_jobs

STAGES = [
    {"all": {"learning_rate": [0.1, 0.2, 0.3]}},
    {"layer": [{}, {"layer_weight_factor": 10}], "logit": [{}, {"temperature": 1}]},
]


def grid(tuning=None, **changes):
    entries = {
        "name": "grid",
        "methods": {"kd": {}, "fitnet": {}, "PCA": {"method": "subdistill", "basis": "pca"}},
        "subtasks": {"a": ["1", "2"], "b": ["3", "4"]},
        "students": ["small", "large"],
        "train_images": [10, 40],
        "seeds": [0, 1, 2],
        "task": {"dataset": "digits"},
        "training": {"max_steps": 5},
        "validation_images": 20,
        "tuning": tuning,
    }
    return Benchmark(**entries | changes)


def elsewhere(**changes):
    return Tuning(**{"stages": STAGES, "subtasks": {"t": ["5", "6"], "u": ["7", "8"]}, "seeds": [0]} | changes)


class Runs:
    """Results from a table of validation accuracies; the test accuracies would choose otherwise."""

    def __init__(self, validation):
        self.validation, self.jobs = validation, []

    def __call__(self, jobs):
        self.jobs += jobs
        return [{**job.described(), "validation": self.validation(job), "test": -self.validation(job)} for job in jobs]


def best_at(rate, weight):
    def validation(job):
        return 1.0 - abs(job.tuned["learning_rate"] - rate) - 0.1 * (job.tuned.get("layer_weight_factor", 1) != weight)

    return validation


def test_the_final_runs_are_the_whole_grid_once():
    jobs = final_jobs(grid(), {})
    assert len(jobs) == 3 * 2 * 2 * 2 * 3 == len({job.key for job in jobs})
    assert Counter(job.method for job in jobs) == {"kd": 24, "fitnet": 24, "PCA": 24}
    blocks = [(job.subtask, job.student, job.train_images, job.seed) for job in jobs]
    assert set(Counter(blocks).values()) == {3}
    assert [job.method for job in jobs[:3]] == ["kd", "fitnet", "PCA"]  # a block ends before the next begins


def test_methods_of_a_block_differ_in_nothing_but_their_options():
    kd, fitnet, pca = final_jobs(grid(), {})[:3]
    assert kd.task == fitnet.task == pca.task
    assert kd.task == {
        "dataset": "digits",
        "classes": ["1", "2"],
        "student": "small",
        "train_images_per_class": 30,
        "validation_fraction": 20 / 30,
    }
    assert kd.training == {"max_steps": 5, "method": "kd"}
    assert pca.training == {"max_steps": 5, "method": "subdistill", "basis": "pca"}


@pytest.mark.parametrize(
    ("size", "validation", "expected"),
    [
        (10, None, {"train_images_per_class": 10}),
        (0.05, None, {"train_fraction": 0.05}),
        (1.0, None, {}),
        (1, 3, {"train_images_per_class": 4, "validation_fraction": 0.75}),
    ],
)
def test_numbers_and_shares_of_training_images(size, validation, expected):
    job = make_job(grid(validation_images=validation), Setting("kd", "small", size, None), "a", ["1", "2"], 0, {})
    assert {name: value for name, value in job.task.items() if "train" in name or "validation" in name} == expected


@pytest.mark.parametrize(("factor", "weight"), [(10, 10.0), (0.5, 0.5), (1, 1.0), (None, None)])
def test_the_factor_multiplies_the_published_weight(factor, weight):
    tuned = {} if factor is None else {"layer_weight_factor": factor}
    jobs = {
        method: make_job(grid(), Setting(method, "small", 10, None), "a", ["1"], 0, tuned)
        for method in ("kd", "fitnet", "PCA")
    }
    assert jobs["fitnet"].training.get("layer_weight") == weight
    assert jobs["PCA"].training.get("layer_weight") == (None if weight is None else 100 * weight)
    assert "layer_weight" not in jobs["kd"].training
    assert all("layer_weight_factor" not in job.training for job in jobs.values())


def test_the_key_is_of_what_shapes_the_result():
    setting = Setting("PCA", "small", 10, None)
    first = make_job(grid(), setting, "a", ["1", "2"], 0, {})
    renamed = grid(methods={"PCA basis": {"method": "subdistill", "basis": "pca"}})
    same = make_job(renamed, Setting("PCA basis", "small", 10, None), "other name", ["1", "2"], 0, {})
    assert first.key == same.key
    changes = [
        make_job(grid(), setting, "a", ["1", "3"], 0, {}),
        make_job(grid(), setting, "a", ["1", "2"], 1, {}),
        make_job(grid(), setting, "a", ["1", "2"], 0, {"learning_rate": 0.1}),
        make_job(grid(), Setting("PCA", "large", 10, None), "a", ["1", "2"], 0, {}),
        make_job(grid(), Setting("PCA", "small", 20, None), "a", ["1", "2"], 0, {}),
        make_job(grid(), Setting("kd", "small", 10, None), "a", ["1", "2"], 0, {}),
        make_job(grid(training={"max_steps": 6}), setting, "a", ["1", "2"], 0, {}),
        make_job(grid(task={"dataset": "glyphs-100"}), setting, "a", ["1", "2"], 0, {}),
    ]
    assert len({first.key, *(job.key for job in changes)}) == 1 + len(changes)


@pytest.mark.parametrize(
    ("size", "told"),
    [(10, "10 images"), (1, "1 image"), (1.0, "100 % of the images"), (0.25, "25 % of the images")],
)
def test_a_run_is_told_with_its_images_and_without_folders(size, told):
    job = make_job(grid(), Setting("kd", "/home/me/student", size, None), "a", ["1"], 0, {})
    assert str(job) == f"kd, a, {told}, student, seed 0"


def test_every_condition_has_the_whole_grid_with_its_options():
    conditions = {"none": {}, "half": {"mark": "plus", "mark_share": 0.5}, "other data": {"dataset": "glyphs-100"}}
    jobs = final_jobs(grid(conditions=conditions), {})
    plain = final_jobs(grid(), {})
    assert Counter(job.condition for job in jobs) == dict.fromkeys(conditions, len(plain))
    for name, options in conditions.items():
        ours = [job for job in jobs if job.condition == name]
        assert [job.task for job in ours] == [{**job.task, **options} for job in plain]
        assert {job.described()["condition"] for job in ours} == {name}
        assert str(ours[0]).endswith(f"seed 0, {name}")
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.key for job in jobs if job.condition == "none"} == {job.key for job in plain}
    assert {job.condition for job in untuned_jobs(grid(elsewhere(), conditions=conditions))} == {*conditions, None}


def test_the_best_on_validation_wins_stage_by_stage():
    benchmark = grid(elsewhere(train_images=10, student="small"))
    runs = Runs(best_at(0.2, 10))
    chosen = tune(benchmark, runs)
    assert chosen == {
        Setting("kd", "small", 10, None): {"learning_rate": 0.2},
        Setting("fitnet", "small", 10, None): {"learning_rate": 0.2, "layer_weight_factor": 10},
        Setting("PCA", "small", 10, None): {"learning_rate": 0.2, "layer_weight_factor": 10},
    }
    assert Counter(job.method for job in runs.jobs) == {"kd": 10, "fitnet": 10, "PCA": 10}
    assert {job.subtask for job in runs.jobs} == {"t", "u"}
    finals = final_jobs(benchmark, chosen)
    assert {job.subtask for job in finals} == {"a", "b"}
    for job in finals:
        assert job.tuned == chosen[Setting(job.method, "small", 10, None)]
        assert job.training["learning_rate"] == 0.2


def test_a_trial_is_judged_by_its_mean_over_all_tuning_seeds():
    benchmark = grid(elsewhere(stages=STAGES[:1], seeds=[3, 5], train_images=10, student="small"))
    runs = Runs(lambda job: {3: 0.5 + job.tuned["learning_rate"], 5: 0.9 - 2 * job.tuned["learning_rate"]}[job.seed])
    assert {options["learning_rate"] for options in tune(benchmark, runs).values()} == {0.1}
    assert Counter(job.seed for job in runs.jobs) == dict.fromkeys([3, 5], 3 * 3 * 2)
    assert {job.seed for job in untuned_jobs(benchmark)} == {0, 1, 2, 3, 5}


def test_a_later_stage_tries_an_option_anew():
    stages = [{"all": {"learning_rate": [0.1, 0.2], "max_steps": [7]}}, {"all": {"learning_rate": [0.25, 0.3]}}]
    runs = Runs(lambda job: job.tuned["learning_rate"])
    chosen = tune(grid(elsewhere(stages=stages, train_images=10, student="small")), runs)
    assert list(chosen.values()) == [{"learning_rate": 0.3, "max_steps": 7}] * 3


def test_each_size_and_student_is_tuned_by_itself_unless_one_is_named():
    small_likes_large_rates = Runs(lambda job: job.tuned["learning_rate"] * (1 if job.student == "small" else -1))
    chosen = tune(grid(elsewhere()), small_likes_large_rates)
    assert len(chosen) == 3 * 2 * 2
    for setting, options in chosen.items():
        assert options["learning_rate"] == (0.3 if setting.student == "small" else 0.1)
    jobs = final_jobs(grid(elsewhere()), chosen)
    assert {(job.student, job.training["learning_rate"]) for job in jobs} == {("small", 0.3), ("large", 0.1)}


def test_without_tuning_subtasks_each_final_one_is_tuned_by_itself():
    benchmark = grid(elsewhere(subtasks={}, train_images=10, student="small"))
    runs = Runs(lambda job: job.tuned["learning_rate"] * (1 if job.subtask == "a" else -1))
    chosen = tune(benchmark, runs)
    assert {(job.subtask, tuple(job.task["classes"])) for job in runs.jobs} == {("a", ("1", "2")), ("b", ("3", "4"))}
    jobs = final_jobs(benchmark, chosen)
    assert {(job.subtask, job.training["learning_rate"]) for job in jobs} == {("a", 0.3), ("b", 0.1)}
    tuned = {job.key for job in runs.jobs}
    assert sum(job.key in tuned for job in jobs) == 3 * 2  # the winners at seed 0 are not run again


def test_a_trial_that_failed_does_not_win_and_all_failing_is_said():
    class Failing(Runs):
        def __call__(self, jobs):
            for row in (rows := super().__call__(jobs)):
                if row["tuned"]["learning_rate"] > self.limit and row["subtask"] in self.subtasks:
                    row["validation"] = None
            return rows

    runs = Failing(lambda job: job.tuned["learning_rate"])
    runs.limit, runs.subtasks = 0.25, {"t", "u"}
    assert all(options["learning_rate"] == 0.2 for options in tune(grid(elsewhere()), runs).values())
    runs.subtasks = {"t"}  # of two runs of a trial one failed
    assert all(options["learning_rate"] == 0.2 for options in tune(grid(elsewhere()), runs).values())
    runs.limit = 0.0
    with pytest.raises(BenchmarkError, match="no trial of kd could be trained"):
        tune(grid(elsewhere()), runs)


def test_what_is_checked_first_has_every_option_and_subtask():
    jobs = untuned_jobs(grid(elsewhere()))
    assert {job.subtask for job in jobs} == {"a", "b", "t", "u"}
    assert {name for job in jobs for name in job.tuned} == {"learning_rate", "temperature", "layer_weight_factor"}


def test_without_tuning_nothing_is_run_for_it():
    assert tune(grid(), Runs(lambda job: 0.0)) == {}
    assert all(job.tuned == {} for job in final_jobs(grid(), {}))
