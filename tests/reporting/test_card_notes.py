"""What the card says of adapters and of a spurious mark, and what it leaves unsaid where there is none."""

import copy

import pytest

from reporting.samples import make_report, parsed
from subdistill_hf.data.marks import MARKS
from subdistill_hf.reporting import model_card
from subdistill_hf.reporting.card_notes import (
    MARKS_IN_WORDS,
    chance_note,
    closed_world,
    mark_warning,
    other_answer_note,
    unlabelled_fact,
)
from subdistill_hf.reporting.card_tables import class_rows, unknown_rows
from subdistill_hf.reporting.page.headline import headlines

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
    return str(model_card.render_card(parsed(report)))


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
    assert card() == str(model_card.render_card(parsed(make_report())))
    for word in ("fitted", "adapter", "LoRA"):
        assert word not in card()


FIGURES = ("clean_accuracy", "mark_followed", "followed_without_mark")
UNTESTED = "the student may have learned the mark instead of the class; this was not tested"


@pytest.fixture
def marked():
    report = make_report()
    mark = {"name": "plus", "classes": ["club"], "share": 0.5, "train_images": 200, "validation_images": 50}
    report["dataset"]["mark"] = mark
    for number, result in enumerate(report["results"]):
        result |= dict(zip(FIGURES, (0.97 - 0.01 * number, 0.2 * number, 0.003), strict=True))
    return report


def test_a_card_says_what_was_marked_and_who_follows_it(marked):
    text = model_card.render_card(parsed(marked)).text
    assert "A red plus sign in a corner was put on 200 of the 400 training images of club" in text
    assert "Every test image is marked so" in text
    header, row = (next(line for line in text.splitlines() if start in line) for start in ("| Model |", "| **SubDist"))
    columns = [cell.strip() for cell in header.split("|")]
    cells = dict(zip(columns, [cell.strip("* ") for cell in row.split("|")], strict=True))
    assert (cells["Accuracy without the mark"], cells["Follows the mark"]) == ("94.0 %", "60.0 %")
    assert cells["The same without the mark"] == "0.3 %"
    assert "of the 500 images of the `test` split with the mark `plus` correctly" in text
    assert "- Test images (`test` split with the mark `plus`): 500" in text
    assert "94.0 % of the test images are recognised without it, 95.6 % with it; 0.3 % of those of other" in text
    assert UNTESTED not in text


def test_the_metadata_says_that_the_test_images_are_marked(marked):
    (result,) = model_card.render_card(parsed(marked)).data.eval_results
    assert result.dataset_name.endswith("; every image marked: plus)")


def test_a_card_without_a_mark_does_not_speak_of_one():
    text = model_card.render_card(parsed(make_report())).text
    assert "mark" not in text.replace(UNTESTED, "").replace("a mark (a watermark, a background)", "")
    assert UNTESTED in text


def test_every_mark_has_words_of_its_own(marked):
    assert MARKS_IN_WORDS.keys() == MARKS.keys()
    for name in MARKS:
        marked["dataset"]["mark"]["name"] = name
        warning = mark_warning(parsed(marked))
        assert (" were put on " if name == "jpeg" else " was put on ") in warning


def test_a_card_says_what_a_guess_is_worth():
    assert chance_note(parsed(make_report())) == "A guess is right in 20.0 % of cases."
    assert "A guess is right in 20.0 % of cases." in model_card.render_card(parsed(make_report())).text


def test_an_accuracy_at_the_share_of_the_largest_class_is_no_result():
    report = make_report()
    images = [300, 50, 50, 50, 50]
    report["classes"][0] = "*a*"
    report["results"][-1] |= {"accuracy": 0.61, "confusion": [[count, 0, 0, 0, 0] for count in images]}
    report["results"][-1]["per_class_accuracy"] = {}
    note = chance_note(parsed(report))
    assert note.startswith(
        "A guess is right in 20.0 % of cases, and always answering \\*a\\*, the class with most test images, "
        "in 60.0 %. **SubDistill is not above that by two standard errors"
    )
    assert note in model_card.render_card(parsed(report)).text
    # the standard error of 0.6 of 500 images is 0.0219
    for accuracy, above in {0.635: False, 0.65: True, 0.7: True}.items():
        report["results"][-1]["accuracy"] = accuracy
        told = chance_note(parsed(report)).partition("the class with most test images, in 60.0 %.")[2]
        assert (told == "") == above


def test_a_training_that_diverged_after_its_best_checkpoint_is_on_the_card():
    report = copy.deepcopy(make_report())
    assert "diverged" not in str(model_card.render_card(parsed(report)))
    next(result for result in report["results"] if result["method"] == "subdistill")["kept_from"] = 1200
    text = str(model_card.render_card(parsed(report)))
    assert "**A training diverged:**" in text
    assert "its best checkpoint from before that: SubDistill of step 1,200." in text


def test_a_card_says_which_images_get_the_answer_none_of_these():
    report = make_report()
    assert other_answer_note(parsed(report)) is None
    others = {"train_images": 200, "seen": 76, "unseen": 19, "near_images": 500, "far_images": 500}
    report["dataset"]["others"] = {"answered": True, **others}
    report["rejection"] = {
        "score": "none of these",
        "threshold": 0.5,
        "validation_images": 100,
        "known_kept": 0.944,
        "unknown_kept": {"near": 0.12, "far": 0.2},
    }
    for result in report["results"]:
        result |= {"accuracy_of_classes": 0.999, "other_shift": -1.5}
    text = str(model_card.render_card(parsed(report)))
    assert "This output was trained with 200 images of 76 other classes." in text
    header, row = (next(line for line in text.splitlines() if start in line) for start in ("| Model |", "| **SubDist"))
    place = [cell.strip() for cell in header.split("|")].index('Without "none of these"')
    assert row.split("|")[place].strip() == "**99.9 %**"
    assert "so that 95 % of 100 validation images of the classes get a class" in text
    assert "It gives one to 94.4 % of the test images, 12.0 % of near unknown images and 20.0 % of far" in text
    assert "For each model, the teacher too, 95 % of the validation images" in text
    assert 'An answer "none of these" counts as wrong; passed over, 99.9 ± 0.1 % are correct.' in text
    assert "config.json" not in text
    assert 'Without "none of these"' in [one.name for one in headlines(parsed(report))]
    report["dataset"]["others"]["answered"] = False
    report["rejection"] |= {"score": "largest probability", "threshold": 0.4567, "of_test": True}
    closed = closed_world(parsed(report))
    assert "threshold for the largest probability, 0.457, that keeps 95 % of 100 test images, every second" in closed
    assert "reached by 94.4 % of the other test images, 12.0 % of near" in closed


def test_a_card_says_what_the_answer_for_other_classes_was_trained_with():
    report = make_report()
    others = {"answered": True, "train_images": 8, "seen": 6, "unseen": 91, "near_images": 60, "far_images": 500}
    report["dataset"]["others"] = others
    said = 'It may answer "none of these".** This output was trained with 8 images of 6 other classes'
    assert f"{said}.\n" in str(model_card.render_card(parsed(report)))
    report["dataset"]["unlabelled"] = {"name": "more", "found": 50, "threshold": 0.85, "kept": 20, "kept_as_other": 7}
    more = "and with 7 images without a label, to which the teacher gives a probability below 0.85 of showing one of"
    assert f"{said}, {more} the classes." in closed_world(parsed(report))
    report["dataset"]["others"] |= {"train_images": 1, "seen": 1}
    assert "trained with 1 image of 1 other class, and" in closed_world(parsed(report))
    report["dataset"] |= {"labels_by_teacher": True, "others": others | {"seen": 0, "unseen": 0}}
    assert "trained with 1 image that the teacher takes for none of the classes" in closed_world(parsed(report))


@pytest.mark.parametrize("answered", [False, True])
def test_a_world_is_called_closed_where_there_is_no_answer_for_the_rest(answered):
    report = make_report()
    report["dataset"]["others"] = {"answered": answered, "train_images": 8 * answered, "seen": 6, "unseen": 3}
    limitations = str(model_card.render_card(parsed(report))).split("## Limitations")[1]
    assert ("Closed world" in limitations) == (not answered)
    assert ("may still get a class" in limitations) == answered


def test_a_card_says_how_images_without_labels_were_chosen():
    report = make_report()
    report["dataset"]["unlabelled"] = {
        "name": "more",
        "found": 5000,
        "damaged": 3,
        "held_out": 20,
        "copies": 40,
        "threshold": 0.85,
        "kept": 1200,
        "kept_per_class": {"club": 700, "heart": 500},
    }
    shown = "those that show one of the classes with a probability of at least 0.85 by the teacher"
    answers = "By the teacher's answer: club 700 and heart 500"
    said = (
        f"1,200 of 5,000 of `more`: {shown}, without 20 near-duplicates of validation or test images, 40 "
        f"near-duplicates of training images and 3 damaged. {answers}"
    )
    assert unlabelled_fact(parsed(report).dataset) == said
    assert f"- Training images without labels: {said}\n" in str(model_card.render_card(parsed(report)))
    report["dataset"]["unlabelled"] |= {"kept_as_other": 300, "damaged": 0, "held_out": 0, "copies": 0}
    assert unlabelled_fact(parsed(report).dataset) == (
        f'1,200 of 5,000 of `more`: 900 are {shown}, and 300 with less, for the answer "none of these". {answers}'
    )


def test_a_card_says_how_well_unknown_images_are_told():
    report = make_report()
    figures = {"auroc": 0.9126, "auroc_error": 0.0134, "false_positives": 0.253}
    report["results"][-1]["unknown"] = [{"kind": "near", "score": "energy", "images": 1500, **figures}]
    assert unknown_rows(parsed(report)) == [
        {
            "Model": "SubDistill",
            "Score": "energy",
            "Unknown images": "near, 1,500",
            "AUROC": "0.913 ± 0.013",
            "Taken for known, with 95 % of the known kept": "25.3 %",
        }
    ]


def test_a_card_says_what_a_teacher_whose_body_is_unchanged_was_fitted_to():
    for views, told in ((0, ""), (3, " and 3 augmented views of each")):
        said = card(ADAPTATION | {"method": "head", "rank": None, "changed_modules": 0, "augmented_views": views})
        assert (
            f"a new head alone (103,224 trained parameters), from what its body, unchanged, gives for 200 training "
            f"images{told}: 40 epochs at a learning rate of 0.002, after which the validation loss was lowest\n"
        ) in said


def test_all_classes_that_an_image_is_most_often_taken_for_are_named():
    report = make_report()
    report["results"][-1]["confusion"][0] = [90, 3, 4, 2, 1]
    assert class_rows(parsed(report))[0]["Most often taken for"] == "heart (4)"
    report["results"][-1]["confusion"][0] = [90, 4, 4, 2, 0]
    assert class_rows(parsed(report))[0]["Most often taken for"] == "diamond, heart (4 each)"
