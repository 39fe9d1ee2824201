"""Two real processes (gloo, CPU) give what one process gives, and end with the same weights."""

import contextlib
import json
import multiprocessing.connection
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from helpers import (
    NAMES,
    REPOSITORY,
    assert_equal_weights,
    config,
    convnext,
    processor,
    quiet_environment,
    resnet,
    save_teacher,
    task_options,
    teacher_resnet,
    teacher_vit,
    trainer,
    version_of,
    views,
    weights_of,
    write_image_folder,
)
from loopback_hub import LoopbackHub
from programs import QUICK_REPORTS, start_program
from subdistill_hf.analysis.analyse import analyse
from subdistill_hf.analysis.inspect import inspect
from subdistill_hf.config.commands import AnalyseOptions, InspectOptions
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.core.subspaces import load_subspaces, save_subspaces
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.models.loading import count_parameters, weights_digest
from subdistill_hf.pipeline.adaptation import adapt, plan_adaptation
from subdistill_hf.pipeline.run import build_run, distill, teacher_of
from subdistill_hf.pipeline.task import load_task

GLOBAL_BATCH = 8
COMPARED = {
    "vid": {"method": "vid"},
    "vkd": {"method": "vkd"},
    "procrustes": {"rotation": "procrustes"},
    "cached": {"teacher_cache": "2", "teacher_cache_precision": "float32"},
    "positions": {"positions": 4},
    "layers-alone": {"method": "vid", "kd_weight": 0.0, "task_weight": 0.0, "ddp_find_unused_parameters": False},
}
SHARDED = {"sharded": ("vit", False), "sharded-cached": ("resnet", True)}


def followed(folder, processes, **options):
    """A student without batch norm, so that nothing depends on how a batch is shared out.

    accelerate's seeded sampler gives every process one order of the images, and each global batch to the processes
    in turn, so that the global batches are those of one process; an epoch of 24 images has three.
    """
    count = int(options["teacher_cache"]) if "teacher_cache" in options else None
    images = views(augmentation="pad_crop", flip=True, seed=5, views=count)
    parts = {"data_collator": ViewCollator(processor(), processor(40)), "fit_dataset": views(9)}
    return trainer(
        folder,
        convnext(),
        teacher_resnet(),
        train=images,
        parts=parts,
        **{"max_steps": 12, "task_weight": 0.5} | options,
        per_device_train_batch_size=GLOBAL_BATCH // processes,
        per_device_eval_batch_size=5,
    )


def taught(folder, kind, cached, shard):
    """A student of 21 images, of which one process reads 11 and takes a pass more of the teacher than the other."""
    options = {"teacher_cache": "2", "teacher_cache_precision": "float32"} if cached else {}
    images = views(7, augmentation="pad_crop", flip=True, seed=5, views=2 if cached else None)
    return trainer(
        folder,
        convnext(),
        teacher_vit() if kind == "vit" else teacher_resnet(),
        train=images,
        shard_teacher=shard,
        channels_last=False,  # a sharded teacher lies contiguously
        per_device_train_batch_size=5,
        per_device_eval_batch_size=5,
        **options,
    )


def with_batch_norm(folder):
    """Each process has its own images in its batch norms."""
    return trainer(
        folder,
        resnet(),
        teacher_resnet(),
        max_steps=7,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=7,
        save_strategy="steps",
        save_steps=7,
    )


def adapted_teacher(folder, teacher, processes, way="lora"):
    """A teacher of glyphs, fitted to digits; its batch norms keep their statistics, so that nothing depends on who
    has which image."""
    options = TaskOptions(
        teacher=str(teacher),
        dataset="digits",
        classes=["one", "seven"],
        train_images_per_class=20,
        adapt_teacher=way,
        adapt_epochs=2.0,
    )
    task = load_task(options, config(folder, per_device_train_batch_size=GLOBAL_BATCH // processes))
    return adapt(plan_adaptation(task, folder / "runs", resume=False), folder / "runs")


def one_layer(folder, teacher):
    """Options of `inspect` and `analyse`: one layer of a teacher on the images beside it."""
    return {
        "teacher": str(teacher),
        "dataset": str(teacher.with_name("images")),
        "classes": list(NAMES),
        "layers": ["resnet.encoder.stages.0"],
        "output_dir": str(folder),
    }


def inspected(folder, teacher):
    return inspect(InspectOptions(**one_layer(folder, teacher)))


def analysed(folder, teacher):
    options = AnalyseOptions(**one_layer(folder, teacher), bases=["pca", "random"], dimensions=[1, 3, 12])
    return analyse(options)


def with_unlabelled(folder, inputs, threshold, **changed):
    """A task with images without labels, of which the teacher chooses."""
    given = {"unlabelled": str(inputs / "mine"), "unlabelled_threshold": threshold, "mix": 0, **changed}
    return load_task(task_options(inputs, **given), config(folder, per_device_train_batch_size=4))


def chosen_images(folder, inputs, rank=0):
    """The images without labels that a task takes, at a threshold that keeps a third of them.

    The second process has another threshold, as rounding may make it: what the first one chose must count.
    """
    masses = sorted(with_unlabelled(folder / "all", inputs, 0.0).selection.masses)
    middle = (masses[7] + masses[8]) / 2
    task = with_unlabelled(folder / "chosen", inputs, 0.0 if rank else middle)
    unlabelled = {"unlabelled": None, "dataset": str(inputs / "mine"), "label_column": "none", "test_fraction": 0.25}
    alone = with_unlabelled(folder / "alone", inputs, 0.0 if rank else masses[3], **unlabelled)
    return task, {
        "kept": task.selection.kept,
        "taught": [[int(pixel) for pixel in task.plain("taught").image(place).flatten()[::97]] for place in range(22)],
        "answers": [list(rows[alone.data.columns.label][:]) for rows in (alone.data.train, alone.data.test)],
    }


WORKER = f"""{QUICK_REPORTS}
import sys
from pathlib import Path
from training import test_processes
from subdistill_hf.core.distributed import close_process_group
test_processes.work(Path(sys.argv[1]))
close_process_group()
"""

EXAMPLE = f"""
import sys
sys.path.insert(0, "tests")
{QUICK_REPORTS}"""
EXAMPLE += """
import json, os, runpy
from pathlib import Path
import torch
torch.set_num_threads(1)
from training import test_processes
from subdistill_hf.cli import commands
folder = sys.argv.pop(1)
run, seen = commands._run, {}
def watched(*given):
    run(*given)
    seen["before"] = test_processes.gloo_threads()
commands._run = watched
try:
    runpy.run_path("examples/run_subdistill.py", run_name="__main__")
finally:
    seen["after"] = test_processes.gloo_threads(wait=True)
    Path(folder, f"threads-{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""


def gloo_threads(wait=False):
    """Names of this process's threads that belong to a process group; `wait` gives those that end time to be gone."""
    for _ in range(50 if wait else 1):
        names = []
        for path in Path("/proc/self/task").glob("*/comm"):
            with contextlib.suppress(OSError):  # it has just ended
                names.append(path.read_text(encoding="utf-8").strip())
        found = [name for name in names if "gloo" in name]
        if not found:
            break
        time.sleep(0.1)
    return found


def work(folder):
    """What each process does; the tests read what it leaves."""
    run = followed(folder / "followed", 2)
    run.train()
    rank = run.args.process_index
    assert (run.args.world_size, torch.distributed.get_backend()) == (2, "gloo")
    save_subspaces(run.subspaces, folder / f"subspaces-{rank}")
    save_file(weights_of(run.distillation), folder / f"followed-{rank}.safetensors")
    (folder / f"followed-{rank}.json").write_text(json.dumps(run.state.log_history), encoding="utf-8")
    for name, options in COMPARED.items():
        run = followed(folder / name, 2, max_steps=4, **options)
        run.train()
        kept = {key: weight.contiguous() for key, weight in weights_of(run.distillation).items()}
        save_file(kept, folder / f"{name}-{rank}.safetensors")
    for name, (kind, cached) in SHARDED.items():
        for shard in (False, True):
            run = taught(folder / f"{name}-{shard}", kind, cached, shard)
            run.train()
            save_subspaces(run.subspaces, folder / f"{name}-{shard}-subspaces-{rank}")
            save_file(weights_of(run.distillation), folder / f"{name}-{shard}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(shares_of(run.teacher)), encoding="utf-8")
    distill(*sharded_run(folder))
    run = with_batch_norm(folder / "batch-norm")
    run.train()
    save_file(weights_of(run.distillation), folder / f"batch-norm-{rank}.safetensors")
    predicted = run.predict(views(5, "test"))
    teacher = adapted_teacher(folder / "adapted", folder / "teacher", 2).teacher.model
    save_file(weights_of(teacher), folder / f"teacher-{rank}.safetensors")
    with_head = adapted_teacher(folder / "head", folder / "teacher", 2, "head").teacher.model
    save_file(weights_of(with_head), folder / f"head-{rank}.safetensors")
    save_subspaces(inspected(folder / "spectra", folder / "teacher"), folder / f"spectra-{rank}")
    analysis = asdict(analysed(folder / "analysis", folder / "teacher"))
    (folder / f"analysis-{rank}.json").write_text(json.dumps(analysis), encoding="utf-8")
    task, chosen = chosen_images(folder / f"unlabelled-{rank}", folder, rank)
    (folder / f"chosen-{rank}.json").write_text(json.dumps(chosen), encoding="utf-8")
    distilled = build_run(task, "kd", teacher_of(task)).trainer
    distilled.train()
    save_file(weights_of(distilled.model), folder / f"unlabelled-{rank}.safetensors")
    history = [*run.state.log_history, {"predictions": predicted.predictions.tolist(), **predicted.metrics}]
    (folder / f"batch-norm-{rank}.json").write_text(json.dumps(history), encoding="utf-8")


def shares_of(teacher):
    """Numbers of weights of this process and of all, and the digest of a sharded teacher."""
    weights = list(teacher.model.parameters())
    own, everyones = sum(weight.to_local().numel() for weight in weights), sum(weight.numel() for weight in weights)
    return {"own": own, "all": everyones, "digest": teacher.digest}


def sharded_run(folder):
    """Options of two steps of `distill` with a sharded teacher."""
    options = TaskOptions(
        teacher=str(folder / "teacher"),
        dataset=str(folder / "images"),
        classes=list(NAMES),
        student="resnet:widths=8-8-8",
        html_report=False,
    )
    return options, config(folder / "sharded-run", max_steps=2, shard_teacher=True, per_device_train_batch_size=4)


def run_ranks(code, folder, environment):
    """Run a program in two processes at once, with the variables of `torchrun`, and no fresh interpreter."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes, places = [], [folder / f"printed-{rank}" for rank in range(2)]
    for rank, place in enumerate(places):
        place.mkdir()
        variables = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        given = {"folder": REPOSITORY, "environment": environment | variables, "printed": place}
        processes.append(start_program(code, folder, **given))
    while any(process.exitcode is None for process in processes):
        multiprocessing.connection.wait([process.sentinel for process in processes if process.exitcode is None])
        if any(process.exitcode for process in processes):  # the other one would wait for it
            for process in processes:
                process.kill()
    for process, place in zip(processes, places, strict=True):
        assert process.exitcode == 0, (place / "err").read_text(encoding="utf-8")


def torchrun(*arguments, environment):
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    save_teacher(folder / "teacher")
    write_image_folder(folder / "images")
    (folder / "mine").mkdir()
    for index in range(12):
        render(0, "train", 40 + index, 7).save(folder / "mine" / f"{index}.png")
    run_ranks(WORKER, folder, quiet_environment(HF_DATASETS_CACHE=str(folder / "cache")))
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    run = followed(tmp_path_factory.mktemp("one"), 1)
    run.train()
    return run


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_ddp_fits_the_subspaces_of_one_process(two_processes, one_process):
    for rank in (0, 1):
        found = load_subspaces(two_processes / f"subspaces-{rank}")
        assert found.keys() == one_process.subspaces.keys()
        assert len(found) == 3
        for name, subspace in one_process.subspaces.items():
            assert found[name].count == subspace.count
            for values, expected in (
                (found[name].basis, subspace.basis),
                (found[name].mean, subspace.mean),
                (found[name].energies / subspace.total_energy, subspace.energies / subspace.total_energy),
            ):
                torch.testing.assert_close(values, expected, rtol=0, atol=1e-8)


def test_ddp_ends_with_identical_student_rotations_and_statistics_in_every_process(two_processes):
    for name in ("followed", "batch-norm"):
        first, second = (load_file(two_processes / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert_equal_weights(first, second)
        assert sum("alignments" in weight for weight in first) >= 9


def test_ddp_with_two_processes_follows_one_at_the_same_global_batch(two_processes, one_process):
    """After 12 steps of 1e-3 over 4 epochs of augmented views: losses to 1e-5 of themselves, weights to 2e-5."""
    theirs = [entry for entry in one_process.state.log_history if "loss" in entry]
    ours = [entry for entry in read(two_processes / "followed-0.json") if "loss" in entry]
    assert len(ours) == len(theirs) == 12
    for entry, expected in zip(ours, theirs, strict=True):
        assert entry.keys() == expected.keys()
        for name in entry:
            assert entry[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    assert_equal_weights(
        load_file(two_processes / "followed-0.safetensors"), weights_of(one_process.distillation), tolerance=2e-5
    )


@pytest.mark.parametrize("name", COMPARED)
def test_ddp_with_other_layer_losses_and_a_teacher_cache_follows_one_process_too(two_processes, tmp_path, name):
    """After 4 steps of 1e-3, which Adam makes that large for the smallest gradient too: weights to 1e-4."""
    run = followed(tmp_path, 1, max_steps=4, **COMPARED[name])
    run.train()
    first, second = (load_file(two_processes / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert_equal_weights(first, second)
    assert_equal_weights(first, weights_of(run.distillation), tolerance=1e-4)
    assert any(weight.startswith("alignments.") for weight in first)


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_teacher_gives_subspaces_and_students_of_a_whole_one_bit_for_bit(two_processes, name):
    for rank in (0, 1):
        whole, shared = (load_subspaces(two_processes / f"{name}-{shard}-subspaces-{rank}") for shard in (False, True))
        assert len(whole) == 3  # as the student has layers
        assert {layer: one.digest for layer, one in whole.items()} == {
            layer: one.digest for layer, one in shared.items()
        }
        assert_equal_weights(
            *(load_file(two_processes / f"{name}-{shard}-{rank}.safetensors") for shard in (False, True))
        )


@pytest.mark.parametrize("name", SHARDED)
def test_each_process_holds_half_of_a_sharded_teacher_and_its_digest_is_that_of_whole_weights(two_processes, name):
    model = teacher_vit() if SHARDED[name][0] == "vit" else teacher_resnet()
    parts = [read(two_processes / f"{name}-{rank}.json") for rank in (0, 1)]
    assert sum(part["own"] for part in parts) == parts[0]["all"] == count_parameters(model)
    for part in parts:
        assert part["own"] < 0.52 * part["all"]
        assert part["digest"] == weights_digest(model)


def test_a_run_with_a_sharded_teacher_leaves_a_student_and_figures_of_the_whole_one(two_processes):
    report = read(two_processes / "sharded-run" / "report.json")
    teacher, student = report["results"]
    assert (teacher["method"], student["method"]) == ("teacher", "subdistill")
    assert teacher["parameters"] == count_parameters(teacher_resnet())
    assert AutoModelForImageClassification.from_pretrained(two_processes / "sharded-run").num_labels == len(NAMES)


def test_a_teacher_fitted_by_two_processes_is_that_of_one(two_processes, tmp_path):
    first, second = (load_file(two_processes / f"teacher-{rank}.safetensors") for rank in (0, 1))
    assert_equal_weights(first, second)
    one = adapted_teacher(tmp_path, two_processes / "teacher", 1)
    assert_equal_weights(weights_of(one.teacher.model), first, tolerance=2e-5)
    assert one.adaptation["train_images"] == 32


def test_a_head_fitted_by_two_processes_is_that_of_one(two_processes, tmp_path):
    first, second = (load_file(two_processes / f"head-{rank}.safetensors") for rank in (0, 1))
    assert_equal_weights(first, second)
    one = adapted_teacher(tmp_path, two_processes / "teacher", 1, "head")
    assert_equal_weights(weights_of(one.teacher.model), first, tolerance=2e-5)
    assert one.adaptation["epochs"] <= 2


def test_inspecting_a_teacher_with_two_processes_finds_what_one_finds(two_processes, tmp_path, datasets_cache):
    (alone,) = inspected(tmp_path / "spectra", two_processes / "teacher").values()
    for name in ("spectra", "spectra-0", "spectra-1"):
        (found,) = load_subspaces(two_processes / name).values()
        assert found.count == alone.count
        torch.testing.assert_close(found.energies, alone.energies, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.basis, alone.basis, rtol=0, atol=1e-6)
    assert files_of(tmp_path / "spectra") == files_of(two_processes / "spectra")


def test_an_analysis_by_two_processes_is_that_of_one(two_processes, tmp_path, datasets_cache):
    alone = asdict(analysed(tmp_path / "analysis", two_processes / "teacher"))
    assert alone["test_images"] % 2 == 1  # so that the processes' shares differ
    for rank in (0, 1):
        found = read(two_processes / f"analysis-{rank}.json")
        (ours,), (theirs,) = found.pop("layers"), alone["layers"]
        assert found == {name: value for name, value in alone.items() if name != "layers"}
        assert ours["accuracy"] == theirs["accuracy"]
        for basis, kept in ours["energy_fraction"].items():
            assert kept == pytest.approx(theirs["energy_fraction"][basis], rel=1e-9)
    assert files_of(tmp_path / "analysis") == files_of(two_processes / "analysis")


def test_two_processes_learn_from_the_images_without_labels_that_one_chooses(two_processes, tmp_path, datasets_cache):
    _, alone = chosen_images(tmp_path, two_processes)
    assert alone["kept"] == 4
    assert sum(map(len, alone["answers"])) == 9
    for rank in (0, 1):
        assert read(two_processes / f"chosen-{rank}.json") == alone
    first, second = (load_file(two_processes / f"unlabelled-{rank}.safetensors") for rank in (0, 1))
    assert_equal_weights(first, second)


def test_evaluation_and_prediction_are_of_the_saved_student_whatever_the_process(two_processes):
    """12 images in batches of 2 to two processes; each has batch-norm statistics of its own until they are shared."""
    first, second = (read(two_processes / f"batch-norm-{rank}.json") for rank in (0, 1))
    saved = AutoModelForImageClassification.from_pretrained(two_processes / "batch-norm" / "checkpoint-7").eval()
    images = views(5, "test")
    pixels = ViewCollator(processor())([images[index] for index in range(15)])["pixel_values"]
    with torch.no_grad():
        logits = saved(pixel_values=pixels).logits
    for history in (first, second):
        torch.testing.assert_close(torch.tensor(history[-1]["predictions"]), logits, rtol=0, atol=1e-5)
    some = torch.tensor(views(4, "test").labels), [index for index in range(15) if index % 5 < 4]
    accuracy = float((logits[some[1]].argmax(1) == some[0]).float().mean())
    for history in (first, second):
        (evaluated,) = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
        assert evaluated == pytest.approx(accuracy)
    exported = load_file(two_processes / "batch-norm" / "checkpoint-7" / "model.safetensors")
    trained = load_file(two_processes / "batch-norm-1.safetensors")
    for name, value in exported.items():
        assert torch.equal(trained[f"student.{name}"], value), name


def short_run(folder):
    """Options of two steps with a teacher and images in `folder`, which it makes."""
    save_teacher(folder / "teacher")
    write_image_folder(folder / "images")
    options = (
        f"--teacher {folder / 'teacher'} --dataset {folder / 'images'} --classes {' '.join(NAMES)} "
        f"--student resnet:widths=8-8-8 --output_dir {folder / 'out'} --use_cpu --report_to none --max_steps 2 "
        "--per_device_train_batch_size 4 --disable_tqdm true"
    )
    return options.split()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder of a run of the example script in two processes, what it printed, and the repository it pushed to."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "example.py").write_text(EXAMPLE, encoding="utf-8")
    arguments = [*short_run(folder), "--push_to_hub", "--hub_model_id", "expert"]
    with LoopbackHub(folder / "hub") as hub:
        environment = hub.environment(HF_DATASETS_CACHE=str(folder / "cache"))
        printed = torchrun(folder / "example.py", folder, *arguments, environment=environment)
        pushed = hub.commits("user/expert"), hub.files("user/expert")
    assert not hub.errors
    return folder, printed, pushed


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux names the threads of a process in /proc")
@pytest.mark.skipif(version_of(torch) < (2, 12), reason="torch names the threads of gloo from 2.12 on")
def test_a_command_leaves_no_thread_of_its_group_that_could_abort_the_end_of_the_process(example):
    for rank in (0, 1):
        threads = read(example[0] / f"threads-{rank}.json")
        assert len(threads["before"]) >= 2
        assert threads["after"] == []


def test_the_example_script_runs_in_two_processes_and_one_of_them_pushes(example):
    folder, printed, (commits, pushed) = example
    assert printed.count("2 processes on cpu") == 1
    assert printed.count("SubDistill  ") == 1
    report = read(folder / "out" / "report.json")
    assert [result["method"] for result in report["results"]] == ["teacher", "subdistill"]
    assert (report["dataset"]["train_images"], report["dataset"]["test_images"]) == (18, 9)
    model = AutoModelForImageClassification.from_pretrained(folder / "out")
    assert model.config.id2label == dict(enumerate(NAMES))
    assert [commit.title for commit in commits] == ["initial commit", "Student, processor and card"]
    assert pushed["model.safetensors"] == (folder / "out" / "model.safetensors").read_bytes()
    assert "README.md" in pushed
