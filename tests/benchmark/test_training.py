"""One run of a benchmark: each figure is of its images and its network, and what would end a run is refused before."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from helpers import CLASS_IDS, config, save_teacher, task_options, teacher_resnet, write_image_folder
from subdistill_hf.benchmark import training
from subdistill_hf.benchmark.config import BenchmarkError, ExplainedRuns
from subdistill_hf.benchmark.jobs import Job
from subdistill_hf.benchmark.training import check, config_of, machine, train_job
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.pipeline.run import distill

NAMES = [CLASS_NAMES[class_id] for class_id in CLASS_IDS]
QUICK = {"method": "kd", "max_steps": 1, "per_device_train_batch_size": 8, "use_cpu": True}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A teacher, images, fewer images, and images without labels."""
    folder = tmp_path_factory.mktemp("inputs")
    save_teacher(folder / "teacher", teacher_resnet())
    write_image_folder(folder / "images", train=12, test=31)
    write_image_folder(folder / "few", train=3)
    (folder / "mine").mkdir()
    for index in range(5):
        render(0, "train", 40 + index, 7).save(folder / "mine" / f"{index}.png")
    return folder


def job_on(inputs, seed=0, task=(), arguments=(), **named):
    options = {"teacher": str(inputs / "teacher"), "dataset": str(inputs / "images"), "classes": NAMES}
    options |= {"student": "resnet:widths=8-8-8,image=32", "train_images_per_class": 10, "validation_fraction": 0.4}
    describing = {"method": "kd", "subtask": "ours", "student": options["student"], "train_images": 6, "tuned": {}}
    given = {"task": options | dict(task), "training": QUICK | dict(arguments)}
    return Job(**describing | given | named, seed=seed)


class Runs:
    """Keeps the task and the trainer of each run, which may be changed before it trains."""

    def __init__(self, monkeypatch):
        self.tasks, self.trainers, self.change = [], [], lambda trainer: None
        build = training.build_trainer

        def keeping(task, *given):
            trainer, student, choices = build(task, *given)
            self.tasks.append(task)
            self.trainers.append(trainer)
            self.change(trainer)
            return trainer, student, choices

        monkeypatch.setattr(training, "build_trainer", keeping)


@pytest.fixture
def runs(monkeypatch, datasets_cache):
    return Runs(monkeypatch)


def drawn_logits(classifier, images, workers=0):
    """Logits that tell networks and images apart, and are neither right nor the same for both."""
    pixels = sum(int(images.image(index).long().sum()) for index in range(len(images)))
    generator = torch.Generator().manual_seed(100 * pixels + classifier.is_teacher)
    return torch.randn(len(images), 3, generator=generator)


def share(values):
    return sum(values) / len(values)


def answers(network, task, images):
    """The class that a network gives each image."""
    classifier = SimpleNamespace(is_teacher=network == "teacher")
    return drawn_logits(classifier, images).argmax(dim=1).tolist()


def expected_figures(task):
    """The figures of a run with a mark, computed from the answers to each image."""
    found = {}
    for split, images in (("validation", task.plain("validation")), ("test", task.data.views("test"))):
        ours, theirs = (answers(network, task, images) for network in ("student", "teacher"))
        found[split] = share([one == label for one, label in zip(ours, images.labels, strict=True)])
        found[f"teacher_{split}"] = share([one == label for one, label in zip(theirs, images.labels, strict=True)])
        found[f"{split}_agreement"] = share([one == other for one, other in zip(ours, theirs, strict=True)])
    labels, marked = task.test.labels, task.data.marking.outputs
    for network, prefix in (("student", ""), ("teacher", "teacher_")):
        clean = answers(network, task, task.data.views("test", marked=None))
        with_mark = answers(network, task, task.data.views("test"))
        found[f"{prefix}clean_accuracy"] = share([one == label for one, label in zip(clean, labels, strict=True)])
        for name, given in (("mark_followed", with_mark), ("followed_without_mark", clean)):
            others = [one in marked for one, label in zip(given, labels, strict=True) if label not in marked]
            found[prefix + name] = share(others)
    return found


def test_each_figure_is_of_its_images_and_its_network(inputs, runs, monkeypatch):
    """Runs of the same images share the teacher's answers; those of another seed validate on others."""
    monkeypatch.setattr(training, "predict", drawn_logits)
    told = []
    for seed in (0, 1, 0):
        row = train_job(job_on(inputs, seed, {"mark": "plus", "mark_share": 1.0, "mark_classes": NAMES[:1]}))
        task, trainer = runs.tasks[-1], runs.trainers[-1]
        expected = expected_figures(task)
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert row["images"] == len(task.data.train) == 18
        assert row["parameters"] == sum(weight.numel() for weight in trainer.model.parameters())
        assert (row["seed"], row["steps"], "unlabelled" in row) == (seed, 1, False)
        told.append(expected)
    for split in ("validation", "test"):  # otherwise one in the other's place would not be noticed
        assert [each[split] for each in told] != [each[f"{split}_agreement"] for each in told]
    assert told[0]["test"] != told[0]["clean_accuracy"]
    assert [task.config.seed for task in runs.tasks] == [0, 1, 0]


def test_the_student_is_explained(inputs, runs, monkeypatch):
    explained = []
    monkeypatch.setattr(training, "explanation_figures", lambda *given: explained.append(given) or {"told": 0.5})
    wanted = ExplainedRuns("gradient_x_input", 4)
    assert train_job(job_on(inputs, explanations=wanted))["told"] == 0.5
    ((how, task, network),) = explained
    assert (how, task, network.model) == (wanted, runs.tasks[0], runs.trainers[0].model)
    assert "told" not in train_job(job_on(inputs))


def test_the_images_without_labels_that_were_taken_are_counted(inputs, runs):
    row = train_job(job_on(inputs, task={"unlabelled": str(inputs / "mine"), "unlabelled_threshold": 0.0}))
    assert row["unlabelled"] == runs.tasks[0].selection.kept == 5


def test_seconds_of_the_steps_are_apart_from_those_before_them(inputs, runs, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def change(trainer):
        train = trainer.train

        def timed():
            clock.now += 9.5
            trained = train()
            return trained._replace(metrics=trained.metrics | {"train_runtime": 6.25})

        monkeypatch.setattr(trainer, "train", timed)

    runs.change = change
    measure = training._figures
    monkeypatch.setattr(training, "_figures", lambda *given: (setattr(clock, "now", 500.0), measure(*given))[1])
    row = train_job(job_on(inputs))
    assert (row["seconds"], row["preparation_seconds"]) == (6.25, 3.25)  # and those of measuring are in neither


def test_the_arguments_of_a_run_are_those_of_its_job(inputs):
    job = job_on(inputs, seed=7, arguments={"teacher_cache": False, "seed": 3, "learning_rate": 0.5})
    made = config_of(job, "somewhere")
    assert (made.seed, made.output_dir, made.learning_rate, made.teacher_cache) == (7, "somewhere", 0.5, "off")


def test_each_condition_is_checked_with_the_seed_of_its_runs(inputs, datasets_cache, monkeypatch):
    load, seeds = training.load_subtask, []
    monkeypatch.setattr(training, "load_subtask", lambda options, seed: seeds.append(seed) or load(options, seed))
    good = job_on(inputs, 5, condition="all")
    check([good])
    assert seeds == [5]
    few = job_on(inputs, 5, {"dataset": str(inputs / "few")}, condition="few")
    with pytest.raises(BenchmarkError, match=r"few: class .* has 3 images: expected 10"):
        check([few, good])
    marked = job_on(inputs, 5, {"mark_shar": 0.5}, condition="marked")
    with pytest.raises(BenchmarkError, match="marked: 'mark_shar' is no option of TaskOptions; did you mean"):
        check([marked, good])


def test_arguments_that_a_trainer_would_refuse_late_are_refused_before(inputs, datasets_cache):
    with pytest.raises(BenchmarkError, match=r"ours, 6 images.*: fp16 needs an accelerator"):
        check([job_on(inputs, arguments={"fp16": True}), job_on(inputs)])


@pytest.mark.usefixtures("datasets_cache", "quick_reports")
def test_the_answer_for_other_classes_is_shifted_as_in_what_a_user_gets(tmp_path):
    save_teacher(tmp_path / "teacher")
    write_image_folder(tmp_path / "images", class_ids=(*CLASS_IDS, 20, 21, 22, 23, 24), train=6, test=3)
    options = task_options(tmp_path, dataset=str(tmp_path / "images"), classes=NAMES, other_class=True)
    settings = config(tmp_path / "out", method="subdistill", max_steps=2)
    report = distill(options, settings)
    chosen = {"method": "subdistill", "max_steps": 2, "learning_rate": report.published_result.learning_rate}
    chosen |= {name: getattr(settings, name) for name in ("use_cpu", "per_device_train_batch_size", "rotation")}
    named = {"subtask": "ours", "student": options.student, "train_images": 6, "seed": settings.seed, "tuned": {}}
    row = train_job(Job(**named, method="subdistill", task=asdict(options), training=chosen))
    teacher, student = report.results
    assert 0 not in (teacher.other_shift, student.other_shift)  # otherwise the figures say nothing
    assert (row["teacher_test"], row["test"]) == (teacher.accuracy, student.accuracy)
    assert row["test_agreement"] == student.teacher_agreement


@pytest.mark.parametrize(("threads", "told"), [(1, ", 1 thread a run, torch "), (2, ", 2 threads a run, torch ")])
def test_the_threads_of_a_run_are_told_as_many_as_there_are(monkeypatch, threads, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert told in machine()
