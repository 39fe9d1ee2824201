"""The command line: help without torch, messages without tracebacks, and whole runs that leave whole folders."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from helpers import NAMES, damaged_png, run_python, save_teacher, write_image_folder
from subdistill_hf.cli import DEMO, main, make_parser
from subdistill_hf.core.subspaces import load_subspaces
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.preprocessing import process

pytestmark = [
    pytest.mark.usefixtures("datasets_cache"),
    pytest.mark.filterwarnings("ignore:the license of the teacher 'teacher' is unknown"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO"),  # `datasets` leaves damaged files open
]
FEW_POSITIONS = {"train_images_per_class": 4, "layers": "resnet.encoder.stages.3=resnet.encoder.stages.2"}

DAMAGED_TRAINING, DAMAGED_TEST, UNTRAINED = CLASS_NAMES[20], CLASS_NAMES[21], CLASS_NAMES[22]
STRANGER = "zzz_unknown_to_the_teacher"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A teacher of 100 classes, and images: three good classes and four with something wrong."""
    folder = tmp_path_factory.mktemp("cli")
    save_teacher(folder / "teacher")
    images = write_image_folder(folder / "images", train=10, test=4)
    for split in ("train", "test"):
        for name in (DAMAGED_TRAINING, DAMAGED_TEST, STRANGER):
            shutil.copytree(images / split / NAMES[0], images / split / name)
    (images / "train" / DAMAGED_TRAINING / "3.png").write_bytes(damaged_png())
    (images / "test" / DAMAGED_TEST / "1.png").write_bytes(damaged_png())
    shutil.copytree(images / "test" / NAMES[0], images / "test" / UNTRAINED)
    (folder / "empty").mkdir()
    return folder


def arguments(inputs, output, **changed):
    options = {
        "teacher": inputs / "teacher",
        "dataset": inputs / "images",
        "classes": " ".join(NAMES),
        "student": "resnet:widths=8-8-12,image=32",
        "output_dir": output,
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        "save_total_limit": 9,
    }
    options |= changed
    return [word for name, value in options.items() for word in [f"--{name}", *str(value).split()]]


def run(command, given):
    """The exit status, and what was printed to standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([command, *given])
        except SystemExit as stopped:  # argparse
            status = stopped.code
    return status, out.getvalue(), err.getvalue()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Help


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["usage: subdistill COMMAND", "distill", "inspect", "analyse", "demo"]),
        (["--help"], ["usage: subdistill COMMAND"]),
        (["distill", "--help"], ["--teacher", "--classes", "--layers", "--centring", "--help-all"]),
        (["demo", "-h"], ["usage: subdistill demo", "subdistill distill --classes superclass:zodiac_signs"]),
        (["inspect", "--help"], ["--teacher", "--basis", "--output_dir"]),
        (["analyse", "--help"], ["--teacher", "--layers", "--bases", "--dimensions", "--output_dir"]),
    ],
    ids=lambda given: " ".join(given),
)
def test_help_is_given_without_torch(given, expected):
    code = "import sys; from subdistill_hf.cli import main; status = main(sys.argv[1:]); "
    code += "assert not {'torch', 'datasets', 'torchvision'} & sys.modules.keys(); sys.exit(status)"
    printed = run_python(code, *given).stdout
    for text in expected:
        assert text in printed


@pytest.mark.parametrize("given", ["--help", "--help-all"])
def test_help_tells_the_defaults_of_the_command_line(given):
    _, printed, _ = run("distill", [given])
    described = " ".join(printed.split("\n  --rotation ", 1)[1].split("\n  --", 1)[0].split())
    assert described.endswith("(default: auto)")


def test_all_help_lists_the_training_arguments_too():
    status, printed, _ = run("distill", ["--help-all"])
    assert status == 0
    for option in ("--teacher", "--layer_weight", "--learning_rate", "--gradient_accumulation_steps"):
        assert option in printed


def test_an_unknown_command_ends_the_program_with_status_2():
    code = "import sys; from subdistill_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_python(code, "distil", "--teacher", "mine", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unknown command 'distil'\n\nusage: subdistill COMMAND")


def test_the_demo_is_a_run_of_distill_with_options_that_exist():
    task, config = make_parser().parse_args_into_dataclasses(DEMO.split(), look_for_args_file=False)
    assert task.compare == ["scratch", "kd"]
    assert config.method == "subdistill"


# Bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": f"{NAMES[0]} white_chess_quen"}, f"unknown class 'white_chess_quen'; nearest: {NAMES[1]}"),
        ({"classes": NAMES[0]}, "at least two classes, found 1"),
        ({"classes": "superclass:chess 1"}, "this dataset has no superclasses"),
        ({"classes": f"{NAMES[0]} {UNTRAINED}"}, f"class '{UNTRAINED}' has 0 training images"),
        ({"classes": f"{NAMES[0]} {STRANGER}"}, f"the teacher has no class '{STRANGER}'"),
        ({"classes": f"{NAMES[0]} {DAMAGED_TRAINING}"}, "3.png (class 1) cannot be decoded"),
        ({"classes": f"{NAMES[0]} {DAMAGED_TEST}"}, "1.png (class 1) cannot be decoded"),
        ({"dataset": "{inputs}/empty"}, "empty' cannot be loaded"),
        ({"teacher": "{inputs}/images"}, "images' cannot be loaded"),
        ({"student": "resnet:widths=8-no"}, "student recipe 'resnet:widths=8-no'"),
        ({"layers": "resnet.encoder.stages.7=resnet.encoder.stages.1"}, "nearest names: resnet.encoder.stages."),
        ({"layers": "classifier=resnet.encoder.stages.1"}, "layer 'classifier' gives a torch.float32 tensor of shape"),
        (FEW_POSITIONS, "layer 'resnet.encoder.stages.3': 9 positions cannot determine a subspace of 12 dimensions"),
        ({"method": "fitnets"}, "argument --method: invalid choice: 'fitnets' (choose from 'scratch', 'kd', 'ce_kd'"),
        ({"basis": "lda"}, "argument --basis: invalid choice: 'lda' (choose from 'prca', "),
        ({"centring": "median"}, "argument --centring: invalid choice: 'median' (choose from 'mean', 'batch_norm', '"),
        ({"layer_weight": -1}, "layer_weight=-1.0: expected at least 0"),
        ({"compare": "kd fitnets"}, "argument --compare: invalid choice: 'fitnets' (choose from 'scratch', 'kd', "),
        ({"augmentation": "cutout"}, "argument --augmentation: invalid choice: 'cutout' (choose from 'none', "),
        ({"mix": 1.5}, "mix=1.5: expected a share of the views, from 0 to 1"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5"),
        ({"resume_from_checkpoint": "{inputs}/empty"}, "expected true, for the last checkpoint, or a checkpoint's"),
        ({"colour": "red"}, "there is no option --colour (subdistill distill --help lists the options)"),
        ({"lerning_rate": 1e-3}, "there is no option --lerning_rate; did you mean --learning_rate?"),
        ({"eval_strategy": "no"}, "--load_best_model_at_end requires"),
        ({"max_steps": "many"}, "invalid int value: 'many' (subdistill distill --help lists the options)"),
        ({"optim": "steepest"}, "argument --optim: invalid choice: 'steepest'"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: expected at least 1"),
        ({"report_to": "paper"}, "report_to='paper': expected one of none, all, "),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_bad_input_gets_one_message_before_training_and_leaves_nothing(inputs, tmp_path, changed, message):
    changed = {"compare": "kd"} | {name: str(value).format(inputs=inputs) for name, value in changed.items()}
    status, printed, said = run("distill", arguments(inputs, tmp_path / "out", **changed))
    assert status == 2
    assert message in said
    assert "\nerror: " in f"\n{said}"  # on a line of its own
    assert "Traceback" not in said
    assert "usage:" not in said
    assert "trained in" not in printed
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_leaves_an_older_one_whole(inputs, tmp_path):
    (tmp_path / "runs" / "kd" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "runs" / "kd" / "checkpoint-2" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    before = files(tmp_path)
    status, _, said = run("distill", arguments(inputs, tmp_path))
    assert status == 2
    assert "already holds another run" in said
    for changed in ({"classes": "nonesuch 1"}, {"layers": "no=such"}, FEW_POSITIONS):
        status, _, said = run("distill", [*arguments(inputs, tmp_path, **changed), "--overwrite"])
        assert status == 2, said
        assert files(tmp_path) == before
    (tmp_path / "report.json").unlink()
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "letter.txt").write_text("mine", encoding="utf-8")
    status, _, said = run("distill", [*arguments(inputs, tmp_path), "--overwrite"])
    assert status == 2
    assert "already holds other files" in said
    assert list(files(tmp_path)) == ["letter.txt"]


# A whole run


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """Overwrites the remains of another run; returns the folder and what was printed."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "runs" / "kd" / "checkpoint-99").mkdir(parents=True)
    (folder / "runs" / "kd" / "checkpoint-99" / "old.txt").write_text("old", encoding="utf-8")
    (folder / "report.json").write_text('{"old": true}', encoding="utf-8")
    given = arguments(inputs, folder, compare="scratch kd", disable_tqdm="false")
    status, printed, said = run("distill", [*given, "--overwrite"])
    assert status == 0, said
    return folder, printed, said


def test_a_run_leaves_student_processor_card_report_and_plots(finished):
    folder, printed, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "confusion.png",
        "contact_sheet.png",
        "example.png",
        "model.safetensors",
        "preprocessor_config.json",
        "report.json",
        "runs",
        "subspaces.png",
        "training_curves.png",
    }
    for plot in ("confusion.png", "subspaces.png", "training_curves.png"):
        with Image.open(folder / plot) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors()) > 10
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["kd", "scratch", "subdistill"]
    assert not (folder / "runs" / "kd" / "checkpoint-99").exists()
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [result["method"] for result in report["results"]] == ["teacher", "scratch", "kd", "subdistill"]
    assert report["classes"] == list(NAMES)
    assert report["command"].startswith("subdistill distill --teacher ")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert name in card
    assert report["usage"]["output"] in card
    assert "1 process on cpu" in printed
    assert [result["learning_rate"] for result in report["results"]] == [None, 4e-3, 4e-3, 1.6e-2]
    assert report["hyperparameters"]["learning_rate"] == 1.6e-2
    assert report["hyperparameters"]["rotation"] == "procrustes"
    assert "rotation  procrustes, which suits these layers" in printed
    compared = "0.004 for From scratch (labels only) and Logit distillation (KD)"
    assert f"- Initial learning rate: {compared}; 0.016 for SubDistill\n" in card


def test_figures_of_the_report_are_those_of_the_saved_student(finished, inputs):
    folder, printed, _ = finished
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    paths = [path for name in NAMES for path in sorted((inputs / "images" / "test" / name).glob("*.png"))]
    labels = torch.tensor([NAMES.index(path.parent.name) for path in paths])
    images = [Image.open(path).convert("RGB") for path in paths]
    with torch.no_grad():
        answers = model(**processor(images=images, return_tensors="pt")).logits.argmax(1)
    result = report["results"][-1]
    accuracy = float((answers == labels).float().mean())
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert report["student"]["size_bytes"] == (folder / "model.safetensors").stat().st_size
    assert report["dataset"]["test_images"] == len(paths)
    assert report["dataset"]["train_images_per_class"] == dict.fromkeys(NAMES, 8)
    row = next(line for line in printed.splitlines() if line.startswith("SubDistill"))
    assert f"{100 * accuracy:.1f} %" in row
    with torch.no_grad():
        example = process(processor, [torch.from_numpy(image_array(folder / "example.png"))])
        probabilities = model(pixel_values=example).logits.softmax(1)[0]
    said = dict(line.split(": ") for line in report["usage"]["output"].splitlines())
    for name, probability in zip(NAMES, probabilities, strict=True):
        assert float(said[name]) == pytest.approx(float(probability), abs=1e-3)


def image_array(path):
    import numpy as np

    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy()


def test_progress_shows_each_method_with_its_loss_and_accuracy(finished):
    _, _, said = finished
    for method in ("scratch", "kd", "subdistill"):
        assert f"{method}: 100%" in said
    assert "loss=" in said
    assert "validation accuracy=" in said


def test_an_interrupted_run_goes_on_and_ends_with_the_same_student(finished, inputs, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder, tmp_path / "out")
    for name in ("report.json", "model.safetensors", "README.md"):
        (tmp_path / "out" / name).unlink()
    runs = tmp_path / "out" / "runs"
    for step in (4, 5, 6):  # as if it had been killed in the middle of its third and last method
        shutil.rmtree(runs / "subdistill" / f"checkpoint-{step}")
    given = arguments(inputs, tmp_path / "out", compare="scratch kd", resume_from_checkpoint="true")
    with pytest.warns(UserWarning, match=r"goes on as in the checkpoint, from 0\.016 on: 1e-05 needs a new run"):
        status, printed, said = run("distill", [*given, "--learning_rate", "1e-5"])
    assert status == 0, said
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "out", folder))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    whole, resumed = (
        json.loads((place / "report.json").read_text(encoding="utf-8")) for place in (folder, tmp_path / "out")
    )
    for before, after in zip(whole["results"], resumed["results"], strict=True):
        assert after["accuracy"] == before["accuracy"]
        assert after["learning_rate"] == before["learning_rate"]
        assert after["training_seconds"] is None
    assert (runs / "subdistill" / "checkpoint-6").is_dir()
    assert "SubDistill" in printed


def test_a_run_does_not_go_on_to_an_earlier_end(finished, inputs):
    folder, _, _ = finished
    before = files(folder)
    given = arguments(inputs, folder, compare="scratch kd", resume_from_checkpoint="true", max_steps=4)
    status, _, said = run("distill", given)
    assert status == 2
    assert "later than max_steps=4: ask for more, or start a new run" in said
    assert files(folder) == before


def test_a_run_is_not_resumed_with_another_teacher_or_other_classes(finished, inputs, tmp_path):
    folder, _, _ = finished
    before = files(folder)
    other = save_teacher(tmp_path / "teacher", mean=0.5, model=retrained(inputs))
    for changed, part in (
        ({"teacher": other}, "teacher"),
        ({"classes": " ".join(reversed(NAMES))}, "classes"),
        ({"student": "resnet:widths=8-8-16,image=32"}, "student"),
        ({"centring": "mean"}, "method"),
        ({"mix": 0.5}, "views"),
    ):
        changed = {"compare": "scratch kd", "resume_from_checkpoint": "true"} | changed
        status, _, said = run("distill", arguments(inputs, folder, **changed))
        assert status == 2
        assert f"made with another choice of {part}: " in said
    assert files(folder) == before


def retrained(inputs):
    model = AutoModelForImageClassification.from_pretrained(inputs / "teacher")
    with torch.no_grad():
        model.classifier[1].bias[3] += 1e-3
    return model


# Inspect


def inspection(inputs, command="inspect", **changed):
    options = {"teacher": inputs / "teacher", "dataset": inputs / "images", "classes": " ".join(NAMES)} | changed
    return run(command, [word for name, value in options.items() for word in [f"--{name}", *str(value).split()]])


def test_inspect_prints_the_spectrum_of_each_stage_and_writes_its_files(inputs, tmp_path):
    status, printed, said = inspection(inputs, output_dir=tmp_path / "spectra", train_images_per_class=10)
    # 24 training images: the last stage, of 36 channels at one position each, has too few.
    assert status == 2
    assert "layer 'resnet.encoder.stages.3': 24 positions cannot determine a subspace of 36 dimensions" in said
    layers = [f"resnet.encoder.stages.{index}" for index in range(3)]
    status, printed, said = inspection(inputs, output_dir=tmp_path / "spectra", layers=" ".join(layers))
    assert status == 0, said
    subspaces = load_subspaces(tmp_path / "spectra")
    assert list(subspaces) == layers
    rows = {line.split()[0]: line for line in printed.splitlines() if line.startswith("resnet")}
    for name, width, grid in zip(layers, (12, 20, 28), ("8x8", "4x4", "2x2"), strict=True):
        kept = subspaces[name].energies.cumsum(0) / subspaces[name].energies.sum()
        needed = [int((kept < share).sum()) + 1 for share in (0.5, 0.9, 0.99)]
        assert rows[name].split()[1:4] == [str(width), "x", grid]
        assert (
            rows[name].split()[4:] == f"{needed[0]} of {width} {needed[1]} of {width} {needed[2]} of {width}".split()
        )
        assert subspaces[name].dimensions == width
    with Image.open(tmp_path / "spectra" / "spectra.png") as image:
        assert min(image.size) > 200
    assert {path.name for path in (tmp_path / "spectra").iterdir()} == {
        "spectra.png",
        "subspaces.json",
        "subspaces.safetensors",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": "nonesuch 1"}, "unknown class 'nonesuch'"),
        ({"layers": "resnet.encoder.stage.1"}, "nearest names: resnet.encoder.stages."),
        ({"basis": "lda"}, "argument --basis: invalid choice: 'lda' (choose from 'prca', "),
        ({"classes": f"{NAMES[0]} {DAMAGED_TRAINING}"}, "cannot be decoded"),
    ],
)
def test_bad_input_to_inspect_gets_one_message(inputs, tmp_path, changed, message):
    status, printed, said = inspection(inputs, output_dir=tmp_path / "spectra", **changed)
    assert (status, printed) == (2, "")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "spectra").exists()


@pytest.mark.parametrize("command", ["inspect", "analyse"])
def test_a_file_in_place_of_the_output_folder_is_refused_before_the_teacher_is_loaded(inputs, tmp_path, command):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    status, printed, said = inspection(inputs, command, teacher=tmp_path / "nowhere", output_dir=tmp_path / "out")
    assert (status, printed) == (2, "")
    assert "is a file: expected a folder" in said
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_inspect_and_analyse_say_that_images_are_marked(inputs, tmp_path):
    # of ten images two are for validation, and half of the rest is marked
    chosen = {"layers": "resnet.encoder.stages.0", "mark": "plus", "mark_share": 0.5, "mark_classes": NAMES[1]}
    _, printed, said = inspection(inputs, **chosen)
    assert f"mark plus: on 4 training images of {NAMES[1]}, and all test images" in printed, said
    plain = inspection(inputs, "analyse", output_dir=tmp_path / "plain", layers=chosen["layers"], bases="pca")
    marked = inspection(inputs, "analyse", output_dir=tmp_path / "out", **chosen, bases="pca")
    assert ["mark plus: on 4 training" in printed for _, printed, _ in (plain, marked)] == [False, True]
    found = [json.loads((tmp_path / name / "analysis.json").read_text(encoding="utf-8")) for name in ("plain", "out")]
    assert found[0]["mark"] is None
    assert found[1]["mark"]["classes"] == [NAMES[1]]
    assert found[0]["layers"] != found[1]["layers"]


# Analyse


def test_analyse_prints_accuracies_of_each_stage_and_writes_its_files(inputs, tmp_path):
    layers = "resnet.encoder.stages.0 resnet.encoder.stages.1"
    status, printed, said = inspection(
        inputs, "analyse", output_dir=tmp_path / "out", layers=layers, bases="pca random"
    )
    assert status == 0, said
    assert "projections" in said  # the bar
    figures = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))
    for layer in figures["layers"]:
        assert f"accuracy in %, {layer['layer']} ({layer['output']}) projected" in printed
        for k, pca, random in zip(layer["dimensions"], *layer["accuracy"].values(), strict=True):
            assert [str(k), f"{100 * pca:.1f}", f"{100 * random:.1f}"] in [
                line.split() for line in printed.splitlines()
            ]
    with Image.open(tmp_path / "out" / "analysis.png") as image:
        assert min(image.size) > 200


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": "nonesuch 1"}, "unknown class 'nonesuch'"),
        ({"bases": "pca lda"}, "argument --bases: invalid choice: 'lda' (choose from 'prca', "),
        ({"dimensions": "1 99"}, "no layer can be projected on 99 dimensions"),
        ({"dimensions": "many"}, "invalid int value: 'many'"),
    ],
)
def test_bad_input_to_analyse_gets_one_message(inputs, tmp_path, changed, message):
    status, printed, said = inspection(inputs, "analyse", output_dir=tmp_path / "out", **changed)
    assert (status, printed) == (2, "")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_process_group_of_the_caller_stays_open(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert main(["push", str(tmp_path / "nothing")]) == 1
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()
