"""`subdistill adapt` leaves a plain model that teaches, with its card and figures, or refuses with one message."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, pipeline

from command_line import run
from helpers import save_teacher, teacher_resnet, teacher_vit, write_colour_folder
from subdistill_hf.models.loading import load_teacher, weights_digest

pytestmark = [
    pytest.mark.usefixtures("datasets_cache"),
    pytest.mark.filterwarnings("ignore:the license of the teacher .* is unknown"),
]
COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    save_teacher(folder / "teacher")
    write_colour_folder(folder / "images", COLOURS, train=20, test=8)
    return folder


def given(inputs, output, *further):
    options = {"teacher": inputs / "teacher", "dataset": inputs / "images", "output_dir": output}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [*words, "--adapt_teacher", "head", "--use_cpu", "--disable_tqdm", "true", "--adapt_epochs", "40", *further]


@pytest.fixture(scope="module")
def left(inputs, tmp_path_factory):
    """The folder of an adapted teacher, and what was printed."""
    output = tmp_path_factory.mktemp("left") / "colours"
    status, printed, said = run("adapt", given(inputs, output))
    assert status == 0, said
    return output, printed, said


def figures_of(output):
    return json.loads((output / "adapted_teacher.json").read_text(encoding="utf-8"))


def test_the_folder_holds_a_plain_model_that_teaches_all_classes(left):
    output, printed, _ = left
    teacher = load_teacher(str(output))
    assert teacher.base is None
    assert teacher.labels == dict(enumerate(COLOURS))
    assert weights_digest(teacher.model) == figures_of(output)["teacher"]["digest"]
    plain, pixels = AutoModelForImageClassification.from_pretrained(output).eval(), torch.rand(2, 3, 32, 32)
    adapter = load_teacher(str(output / "teacher-adapter")).model
    with torch.no_grad():
        torch.testing.assert_close(plain(pixel_values=pixels).logits, adapter(pixel_values=pixels).logits)
    assert f"The adapted teacher is in {output}, for --teacher" in printed
    assert not (output / ".run.lock").exists()


def test_the_figures_are_those_of_the_saved_model_on_the_test_images(inputs, left):
    output, printed, _ = left
    report = figures_of(output)
    classify = pipeline("image-classification", model=str(output))
    images = sorted((inputs / "images" / "test").glob("*/*.png"))
    right = [classify(str(image))[0]["label"] == image.parent.name for image in images]
    assert report["result"]["accuracy"] == sum(right) / len(right) >= 0.8
    assert f"of {len(images)} test images" in printed
    assert report["teacher"]["adaptation"]["train_images"] == 48
    assert report["dataset"]["augmentation"] is None
    assert "--augmentation" not in printed
    assert "mix" not in printed


@pytest.mark.parametrize("how", ["head", "lora"])
def test_a_teacher_of_several_classes_an_image_is_one_of_a_single_class_afterwards(inputs, tmp_path, how):
    model = teacher_resnet()
    model.config.problem_type = "multi_label_classification"
    several = ["--teacher", str(save_teacher(tmp_path / "several", model)), "--adapt_teacher", how]
    status, _, said = run("adapt", given(inputs, tmp_path / "out", *several, "--adapt_epochs", "1"))
    assert status == 0, said
    assert "problem_type" not in said
    for folder in (tmp_path / "out", tmp_path / "out" / "teacher-adapter"):
        assert load_teacher(str(folder)).model.config.problem_type == "single_label_classification"
    image = next((inputs / "images" / "test").glob("*/*.png"))
    answers = pipeline("image-classification", model=str(tmp_path / "out"))(str(image))
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


def test_what_the_default_student_cannot_do_is_not_asked_of_a_teacher(inputs, tmp_path):
    teacher = ["--teacher", str(save_teacher(tmp_path / "vit", teacher_vit(layers=1))), "--adapt_teacher", "lora"]
    words = given(inputs, tmp_path / "out", *teacher, "--adapt_epochs", "1", "--gradient_checkpointing", "true")
    status, _, said = run("adapt", words)
    assert status == 0, said


def test_the_card_says_how_the_teacher_was_adapted_and_names_no_folder(inputs, left):
    output, _, said = left
    card = ModelCard.load(output / "README.md")
    assert "A new head alone (111 trained parameters of " in card.text
    assert "from what its body, unchanged, gives for 48 training images: " in card.text
    assert "12 for validation" in card.text
    assert "24 of the `test` split" in card.text
    assert "subdistill adapt --teacher teacher --dataset images" in card.text
    assert str(inputs) not in (output / "README.md").read_text() + (output / "adapted_teacher.json").read_text()
    (tested,) = card.data.eval_results
    assert tested.metric_value == round(figures_of(output)["result"]["accuracy"], 4)
    assert "the license of the teacher 'teacher' is unknown" in said


def test_the_same_command_takes_the_adapter_again_when_it_resumes_and_is_refused_otherwise(inputs, left):
    output, _, _ = left
    before = (output / "model.safetensors").read_bytes()
    status, _, said = run("adapt", given(inputs, output))
    assert status == 2
    assert "already holds another run: --resume_from_checkpoint true to continue it, --overwrite to replace it" in said
    status, printed, _ = run("adapt", given(inputs, output, "--resume_from_checkpoint", "true"))
    assert status == 0
    assert "is used again" in printed
    assert (output / "model.safetensors").read_bytes() == before


def test_a_teacher_that_knows_the_classes_is_refused(inputs, left, tmp_path):
    status, printed, said = run("adapt", given(inputs, tmp_path / "out", "--teacher", str(left[0])))
    assert (status, printed) == (2, "")
    assert "the teacher 'colours' knows these classes already: it can teach them as it is" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "3"], "--max_steps has no meaning for adapt: use --adapt_epochs"),
        (["--learning_rate", "0.1"], "--learning_rate has no meaning for adapt: use --adapt_learning_rate"),
        (["--adapt_teacher", "no"], "invalid choice: 'no' (choose from 'lora', 'head')"),
        (["--student", "x"], "there is no option --student"),
        (["--adapt_rank", "0"], "adapt_rank=0: expected at least 1"),
    ],
)
def test_options_without_a_meaning_are_refused(inputs, tmp_path, words, message):
    status, _, said = run("adapt", given(inputs, tmp_path / "out", *words))
    assert status == 2
    assert message in said
    assert not (tmp_path / "out").exists()


def test_without_a_dataset_there_is_nothing_to_adapt_to():
    status, _, said = run("adapt", [])
    assert status == 2
    assert "adapt needs --dataset: the images of the classes that the teacher is to know" in said
