"""What the card says of a teacher that was fitted first, and of a student that is an adapter."""

import copy

import pytest

from reporting.test_model_card import make_report
from subdistill_hf.reporting.model_card import render_card

ADAPTATION = {
    "method": "lora",
    "rank": 8,
    "changed_modules": 19,
    "trained_parameters": 103_224,
    "classes": 5,
    "train_images": 200,
    "validation_images": 50,
    "validation_accuracy": 0.98,
    "epochs": 40.0,
    "learning_rate": 0.002,
    "training_seconds": 12.5,
}


def card(adaptation=None, base=None, lora=None):
    report = copy.deepcopy(make_report())
    report["teacher"] |= {"adaptation": adaptation, "base": base}
    report["student"]["lora"] = lora
    return str(render_card(report))


def test_a_fitted_teacher_is_said_to_be_fitted_how_on_what_and_how_well():
    text = card(ADAPTATION)
    assert "distilled from the teacher `glyphs-resnet` (fitted to this dataset first) with" in text
    assert (
        "- It did not know these classes, so it was fitted to these classes before it taught: changes of rank 8 in 19 "
        "modules, and a new head (103,224 trained parameters), from 200 training images, 40 epochs at a learning rate "
        "of 0.002\n"
    ) in text
    tested = next(result for result in make_report()["results"] if result["method"] == "teacher")["accuracy"]
    assert (
        f"- Accuracy of the fitted teacher: 98.0 ± 2.0 % of its 50 validation images, {100 * tested:.1f} ± 0.4 % of "
        "the 500 test images of these classes\n"
    ) in text


def test_a_new_head_and_other_classes_are_named():
    text = card(ADAPTATION | {"method": "head", "rank": None, "changed_modules": 0, "classes": 100})
    assert "was fitted to 100 classes of the dataset, these among them, before it taught: a new head alone (" in text


@pytest.mark.parametrize("revision", [None, "0123abc"])
def test_an_adapter_names_its_base(revision):
    text = card(base={"name": "org/base", "hub_id": "org/base", "revision": revision})
    expected = "- It is a PEFT adapter of [org/base](https://huggingface.co/org/base)"
    assert expected + (", revision `0123abc`\n" if revision else "\n") in text


def test_a_student_through_lora_says_so_and_what_its_files_hold():
    lora = {"rank": 4, "trained_parameters": 1234, "saved": "merged"}
    expected = "; pretrained, and trained through changes of rank 4 and a new head (1,234 parameters; LoRA)"
    assert f"{expected}, merged into its weights\n" in card(lora=lora)
    assert f"{expected}; the files hold the adapter alone\n" in card(lora=lora | {"saved": "adapter"})


def test_a_run_without_adapters_says_nothing_of_them():
    assert card() == str(render_card(make_report()))
    for word in ("fitted", "adapter", "LoRA"):
        assert word not in card()
