"""`subdistill distill`: its options, what it refuses, and whole runs that leave whole folders."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from command_line import DAMAGED_TEST, DAMAGED_TRAINING, STRANGER, UNTRAINED, arguments, files, run
from helpers import NAMES, save_teacher
from subdistill_hf.data.preprocessing import process
from subdistill_hf.formatting import accuracy_with_error
from subdistill_hf.hub.clean import check_clean
from subdistill_hf.reporting.model_card import standing
from subdistill_hf.reporting.report import RunReport

pytestmark = [
    pytest.mark.usefixtures("datasets_cache", "quick_reports"),
    pytest.mark.filterwarnings("ignore:the license of the teacher 'teacher' is unknown"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO"),  # `datasets` leaves damaged files open
]
FEW_POSITIONS = {"train_images_per_class": 4, "layers": "resnet.encoder.stages.3=resnet.encoder.stages.2"}


# Help


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
        (FEW_POSITIONS, "layer 'resnet.encoder.stages.3': 12 positions cannot determine a subspace of 12 dimensions"),
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
        ({"eval_strategy": "no", "load_best_model_at_end": "true"}, "--load_best_model_at_end requires"),
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
    for name in ("report.json", "report.html", "explanations/explanations.json", "wrong_answers/9.webp"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"old": true}', encoding="utf-8")
    given = arguments(inputs, folder, compare="scratch kd", disable_tqdm="false", validation_fraction=0.2)
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
        "report.html",
        "report.json",
        "runs",
        "subspaces.png",
        "training_curves.png",
        "wrong_answers",
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
    assert (report["hyperparameters"]["layer_weight"], report["hyperparameters"]["layer_weight_end"]) == (
        500.0,
        0.001,
    )
    assert report["hyperparameters"]["target_scale"] == "unit"
    assert "rotation  procrustes, which suits these layers" in printed
    compared = "0.004 for From scratch (labels only) and Logit distillation (KD)"
    assert f"- Initial learning rate: {compared}; 0.016 for SubDistill\n" in card


def test_the_page_of_a_run_shows_its_figures_and_its_worst_errors(finished):
    folder, _, _ = finished
    report = RunReport.load(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for sentence in standing(report):
        assert sentence in card
    assert accuracy_with_error(report.published_result.accuracy, report.dataset.test_images) in page
    assert page.count('<p class="absent">') == 2  # neither exported nor explained
    wrong = report.wrong_answers
    assert 0 < len(wrong) <= 6 * len(NAMES)
    assert {path.name for path in (folder / "wrong_answers").iterdir()} == {one.thumbnail for one in wrong}
    assert page.count("data:image/webp;base64,") == len(wrong)
    assert str(folder) not in page
    check_clean({"report.html": page.encode()}, folder)


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
    given = arguments(
        inputs, tmp_path / "out", compare="scratch kd", validation_fraction=0.2, resume_from_checkpoint="true"
    )
    with pytest.warns(
        UserWarning, match=r"stays that of the checkpoint, which began with 0\.016: for 1e-05 start a new run"
    ):
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
    for method, step in (("scratch", 6), ("kd", 6), ("subdistill", 3)):
        assert f"resumed  {method} from checkpoint-{step}\n" in printed


def test_a_run_does_not_go_on_to_an_earlier_end(finished, inputs):
    folder, _, _ = finished
    before = files(folder)
    given = arguments(
        inputs, folder, compare="scratch kd", validation_fraction=0.2, resume_from_checkpoint="true", max_steps=4
    )
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
        again = {"compare": "scratch kd", "resume_from_checkpoint": "true", "validation_fraction": 0.2}
        changed = again | changed
        status, _, said = run("distill", arguments(inputs, folder, **changed))
        assert status == 2
        assert f"made with another choice of {part}: " in said
    assert files(folder) == before


def retrained(inputs):
    model = AutoModelForImageClassification.from_pretrained(inputs / "teacher")
    with torch.no_grad():
        model.classifier[1].bias[3] += 1e-3
    return model
