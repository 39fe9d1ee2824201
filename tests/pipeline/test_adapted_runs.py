"""Whole runs from the command line with adapters: a fitted teacher, and a student that is trained through LoRA."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageClassification

from helpers import processor, save_teacher, teacher_resnet, vit, write_colour_folder
from subdistill_hf.cli import main
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.hub.files import student_files
from subdistill_hf.hub.snippet import hub_code, local_code
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.loading import load_teacher, weights_digest
from subdistill_hf.models.students import build_student, check_student_lora, with_lora
from subdistill_hf.pipeline.adaptation_training import ADAPTER_FOLDER

pytestmark = [
    pytest.mark.usefixtures("datasets_cache", "quick_reports"),
    pytest.mark.filterwarnings("ignore:the license of the teacher .* is unknown"),
]
COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted-runs")
    save_teacher(folder / "teacher")
    save_teacher(folder / "pretrained", vit(hidden=16, layers=3, names=["some", "other"]))
    write_colour_folder(folder / "images", COLOURS, train=16, test=6)
    return folder


def arguments(inputs, output, **changed):
    options = {
        "teacher": inputs / "teacher",
        "dataset": inputs / "images",
        "classes": "red green blue",
        "student": inputs / "pretrained",
        "student_lora": "true",
        "student_lora_rank": 4,
        "adapt_teacher": "lora",
        "adapt_epochs": 10,
        "adapt_learning_rate": 1e-2,
        "output_dir": output,
        "max_steps": 4,
        "save_steps": 0.5,
        "eval_steps": 0.5,
        "per_device_train_batch_size": 12,
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
    }
    return [word for name, value in (options | changed).items() for word in [f"--{name}", *str(value).split()]]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "run"
    assert main(["distill", *arguments(inputs, output, student_lora_save="adapter")]) == 0
    return output


def logits(model):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits


def report_of(output):
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


def test_a_run_fits_its_teacher_and_tells_of_it(finished):
    report = report_of(finished)
    adaptation = report["teacher"]["adaptation"]
    assert (adaptation["method"], adaptation["train_images"], adaptation["classes"]) == ("lora", 39, 3)
    teacher = load_teacher(str(finished / ADAPTER_FOLDER))
    assert report["teacher"]["digest"] == weights_digest(teacher.model)
    assert report["teacher"]["name"] == "teacher"
    tested = report["results"][0]
    assert tested["method"] == "teacher"
    assert tested["accuracy"] >= 0.8
    card = (finished / "README.md").read_text(encoding="utf-8")
    assert "(fitted to this dataset first)" in card
    assert "Accuracy of the fitted teacher" in card


def test_a_student_saved_as_an_adapter_is_its_adapter_and_what_names_its_classes(inputs, finished):
    assert not list(finished.glob("model*"))
    files = student_files(finished)
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "preprocessor_config.json"} < set(files)
    assert not any(ADAPTER_FOLDER in name for name in files)
    report = report_of(finished)
    assert report["student"]["size_bytes"] == (finished / "adapter_model.safetensors").stat().st_size
    whole = AutoModelForImageClassification.from_pretrained(
        inputs / "pretrained", num_labels=3, ignore_mismatched_sizes=True
    )
    assert report["student"]["parameters"] == sum(parameter.numel() for parameter in whole.parameters())
    assert report["student"]["lora"]["rank"] == 4
    assert report["usage"]["code"] == local_code(adapter=True)
    assert "red: 0." in report["usage"]["output"]


def test_the_answers_of_the_report_are_those_of_the_saved_adapter(inputs, finished):
    base = AutoModelForImageClassification.from_pretrained(
        inputs / "pretrained", config=AutoConfig.from_pretrained(finished), ignore_mismatched_sizes=True
    )
    alone = PeftModel.from_pretrained(base, finished)
    as_teacher = load_teacher(str(finished))
    assert as_teacher.labels == {0: "red", 1: "green", 2: "blue"}
    torch.testing.assert_close(logits(as_teacher.model), logits(alone), rtol=0, atol=1e-5)


def test_a_resumed_run_takes_its_adapter_again_and_may_save_the_student_merged(inputs, finished, tmp_path, capsys):
    output = shutil.copytree(finished, tmp_path / "run")
    expected = logits(load_teacher(str(finished)).model)
    shutil.rmtree(output / "runs" / "subdistill" / "checkpoint-4")
    assert main(["distill", *arguments(inputs, output, resume_from_checkpoint="true")]) == 0
    printed = capsys.readouterr().out
    assert f"{output / ADAPTER_FOLDER} is used again" in printed
    assert "teacher  teacher, fitted: " in printed
    assert not list(output.glob("adapter_*"))
    student = AutoModelForImageClassification.from_pretrained(output)
    torch.testing.assert_close(logits(student), expected, rtol=0, atol=1e-5)
    assert student.config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert report_of(output)["teacher"] == report_of(finished)["teacher"]
    assert report_of(output)["student"]["lora"]["saved"] == "merged"


def test_a_run_that_cannot_be_is_refused_before_its_teacher_is_fitted(inputs, tmp_path, capsys):
    given = arguments(inputs, tmp_path / "out", layers="nothing=nothing")
    assert main(["distill", *given]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (
            "distill",
            {"gradient_checkpointing": "true"},
            "It is the student of that training: gradient_checkpointing: Res",
        ),
        ("distill", {"teacher": "broken"}, "its answer to the first training image is not finite"),
        ("adapt", {"teacher": "broken"}, "its answer to the first training image is not finite"),
        (
            "adapt",
            {"teacher": "broken", "adapt_teacher": "head"},
            "its answer to the first training image is not finite",
        ),
    ],
    ids=["training", "answers", "answers, adapt", "answers of a head"],
)
def test_a_refused_fit_leaves_an_earlier_run_as_it_was(inputs, tmp_path, capsys, command, options, message):
    output, broken = tmp_path / "run", teacher_resnet()
    (output / "runs" / "teacher").mkdir(parents=True)
    for name in ("report.json", "runs/teacher/old"):
        (output / name).write_text("{}", encoding="utf-8")
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    save_teacher(tmp_path / "broken", broken)
    changed = options | ({"teacher": tmp_path / "broken"} if "teacher" in options else {})
    words = arguments(inputs, output, **{"overwrite": "true", "report_to": "none", **changed})
    if command == "adapt":  # without what is of students
        words = adapt_words(words)
    assert main([command, *words]) == 2
    said = capsys.readouterr().err
    assert f"the teacher '{'broken' if 'teacher' in options else 'teacher'}' cannot be fitted" in said
    assert message in said
    left = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert left == {"report.json", "runs/teacher/old"}


def adapt_words(words):
    """The words of `adapt` among those of `distill`."""
    of_students = ("--student", "--student_lora", "--student_lora_rank", "--max_steps", "--save_steps", "--eval_steps")
    kept, left_out = [], False
    for word in words:
        left_out = word in of_students if word.startswith("--") else left_out
        kept += [] if left_out else [word]
    return kept


# The student


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_lora": True}, "'resnet:widths=16-24-32-48' is new, and low-rank changes of random weights cannot"),
        ({"student_lora": True, "student": "timm/resnet18"}, "'timm/resnet18' is new"),
    ],
)
def test_student_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        check_student_lora(TaskOptions(**options))


def test_an_adapter_that_peft_alone_could_not_run_is_not_asked_for(tmp_path):
    student = build_student("mobilenetv2:width=0.35,image=64", ["a", "b"], processor())
    student.model.save_pretrained(tmp_path)
    options = {"student": str(tmp_path), "student_lora": True}
    with pytest.raises(ModelError, match="PEFT alone cannot run an adapter of mobilenet_v2"):
        with_lora(student, TaskOptions(**options, student_lora_save="adapter"))
    assert with_lora(student, TaskOptions(**options)).peft_config["default"].r == 8


def test_the_students_modules_and_rank_are_those_that_were_chosen(inputs):
    options = TaskOptions(
        student=str(inputs / "pretrained"),
        student_lora=True,
        student_lora_rank=2,
        student_lora_target_modules=["q_proj"],
    )
    student = build_student(options.student, ["a", "b"], None)
    model = with_lora(student, options)
    changes = {name: value.shape for name, value in model.named_parameters() if "lora_A" in name}
    assert len(changes) == 3
    assert all(".q_proj." in name and shape[0] == 2 for name, shape in changes.items())
    assert model.peft_config["default"].base_model_name_or_path == str(inputs / "pretrained")


def test_the_code_of_a_pushed_adapter_reads_the_repository_wherever_the_local_code_reads_the_folder():
    local, pushed = local_code(adapter=True), hub_code("user/expert", "mine", adapter=True)
    assert local.count('"."') == pushed.count('"user/expert", revision="mine"') == 4
    assert pushed.count('hf_hub_download("user/expert", "example.png", revision="mine")') == 1
    assert '"."' not in pushed
    compile(pushed, "card", "exec")
