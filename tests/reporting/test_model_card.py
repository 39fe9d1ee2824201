"""The model card of a report: its text, its metadata and what it says when something is missing."""

import copy
import json
import warnings
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load

from reporting.samples import CLASSES, make_report, make_result, parsed
from subdistill_hf.formatting import binomial_error
from subdistill_hf.reporting import model_card
from subdistill_hf.reporting.card_tables import student_facts

EXPECTED = Path(__file__).parents[1] / "reference" / "expected_card.md"


@pytest.fixture
def report():
    return make_report()


def render_card(report, **options):
    return model_card.render_card(parsed(report), **options)


def standing(report):
    return model_card.standing(parsed(report))


def worsen(result, errors):
    """Turn `errors` of the correct answers of every class into errors."""
    confusion = copy.deepcopy(result["confusion"])
    for i, row in enumerate(confusion):
        row[i] -= errors
        row[(i + 1) % len(row)] += errors
    other = {key: result[key] for key in ("teacher_agreement", "latency_ms", "training_seconds")}
    return make_result(result["method"], confusion, **other)


def test_whole_card(report):
    plots = ("training_curves.png", "subspaces.png", "confusion.png", "contact_sheet.png")
    before = copy.deepcopy(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = render_card(report, plots=plots)
    assert str(card) == EXPECTED.read_text(encoding="utf-8")
    assert report == before
    assert str(render_card(json.loads(json.dumps(report)), plots=plots)) == str(card)


def test_metadata_round_trip(report, tmp_path):
    card = render_card(report)
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    assert loaded.text == card.text
    assert metadata_load(tmp_path / "README.md") == card.data.to_dict()
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert data.metrics == ["accuracy"]
    assert data.tags == ["subdistill", "knowledge-distillation", "image-classification"]
    assert data.license == "apache-2.0"
    assert data.model_name == "glyphs-resnet-subdistill-glyphs-100"
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_type) == ("image-classification", "glyphs-100")
    assert (result.dataset_split, result.metric_type, result.metric_value) == ("test", "accuracy", 0.956)
    # Neither the teacher nor the data is on the Hub.
    assert {"base_model", "base_model_relation", "datasets"}.isdisjoint(card.data.to_dict())
    assert render_card(report, name="suits").data.model_name == "suits"


def test_hub_ids(report):
    report["teacher"] |= {"name": "google/vit-base-patch16-224", "hub_id": "google/vit-base-patch16-224"}
    report["teacher"] |= {"revision": "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3"}
    report["dataset"] |= {"name": "cifar100", "hub_id": "uoft-cs/cifar100", "revision": "c" * 40}
    card = render_card(report)
    assert card.data.base_model == "google/vit-base-patch16-224"
    assert card.data.base_model_relation in {"adapter", "merge", "quantized", "finetune"}
    assert card.data.datasets == ["uoft-cs/cifar100"]
    assert card.data.eval_results[0].dataset_type == "uoft-cs/cifar100"
    assert card.data.eval_results[0].dataset_revision == "c" * 40
    assert f"- Revision: `{'c' * 40}`" in card.text
    assert card.data.model_name == "vit-base-patch16-224-subdistill-cifar100"
    teacher = "[google/vit-base-patch16-224](https://huggingface.co/google/vit-base-patch16-224)"
    assert f"distilled from the teacher {teacher}" in card.text
    assert "- Revision: `3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3`" in card.text
    assert "- Dataset: [uoft-cs/cifar100](https://huggingface.co/datasets/uoft-cs/cifar100)" in card.text


def test_unknown_license_warns_and_is_left_out(report):
    report["teacher"]["license"] = None
    with pytest.warns(UserWarning, match="license of the teacher 'glyphs-resnet' is unknown") as caught:
        card = render_card(report)
    assert caught[0].filename == __file__
    assert "license" not in card.data.to_dict()
    assert "License" not in card.text


def test_a_student_that_was_pretrained_names_both_its_origins(report):
    pretrained = {"recipe": "timm/resnet18.a1_in1k", "hub_id": "timm/resnet18.a1_in1k", "revision": "b" * 40}
    report["teacher"]["hub_id"] = "me/glyphs-resnet"
    report["student"] |= pretrained | {"license": "apache-2.0"}
    card = render_card(report)
    assert card.data.base_model == ["me/glyphs-resnet", "timm/resnet18.a1_in1k"]
    assert card.data.license == "apache-2.0"
    link = "[timm/resnet18.a1_in1k](https://huggingface.co/timm/resnet18.a1_in1k)"
    assert f"- It started from the weights of {link}, revision `{'b' * 40}`\n" in card.text
    for license_id, reason in (
        ("mit", r"different licenses \(apache-2.0, mit\)"),
        (None, "pretrained student 'timm/"),
    ):
        report["student"]["license"] = license_id
        with pytest.warns(UserWarning, match=reason):
            assert "license" not in render_card(report).data.to_dict()
    report["results"] = report["results"][:2]
    report["student"]["license"] = "mit"
    card = render_card(report)
    assert (card.data.base_model, card.data.license) == ("timm/resnet18.a1_in1k", "mit")


def test_learning_rates_are_told_where_they_differ():
    report = make_report()
    for result in report["results"]:
        result["learning_rate"] = None if result["method"] == "teacher" else 1e-3
    assert "Initial learning rate" not in student_facts(parsed(report))[-1]
    report["results"][-1]["learning_rate"] = 0.016
    assert student_facts(parsed(report))[-1].startswith("Initial learning rate: 0.001 for ")
    assert student_facts(parsed(report))[-1].endswith("; 0.016 for SubDistill")


def test_scratch_student_owes_the_teacher_nothing(report):
    report["teacher"]["hub_id"] = "me/glyphs-resnet"
    report["results"] = report["results"][:2]
    with pytest.warns(UserWarning, match="takes no license from the teacher"):
        card = render_card(report)
    assert {"base_model", "base_model_relation", "license"}.isdisjoint(card.data.to_dict())
    assert "knowledge-distillation" not in card.data.tags
    assert "trained on labels alone" in card.text
    assert "learned from its teacher" not in card.text
    assert "2601.05913" not in card.text


def test_a_test_that_is_no_split_of_the_dataset_is_said_to_be_held_out():
    report = make_report()
    report["dataset"] |= {"test_split": "held out of train", "official_test": False}
    text = str(render_card(report))
    assert "% of the 500 images of the share held out of train for want of an official test split correctly." in text
    assert "- Test images (share held out of train for want of an official test split): 500\n" in text


def test_only_subdistill_and_nothing_optional(report):
    report["results"] = [
        {
            key: value
            for key, value in report["results"][-1].items()
            if key not in {"latency_ms", "training_seconds", "operations", "training_kilowatt_hours"}
        }
        | {"teacher_agreement": None}
    ]
    report |= {"usage": None, "command": None, "hyperparameters": {}, "subspaces": [], "histories": {}}
    text = render_card(report, plots=(None,)).text
    assert "| Model | Parameters | Accuracy | Balanced accuracy |\n" in text
    assert "SubDistill classifies 95.6 ± 0.9 % of the 500 images of the `test` split correctly.\n" in text
    for absent in ["None", "## Usage", "## Subspaces", "Hyper-parameters", "Command", "ms", "It is ", "!["]:
        assert absent not in text.split("## Citation")[0]
    assert "\n\n\n" not in text


def test_other_methods(report):
    report["results"] = [result | {"method": "fitnet"} for result in report["results"][2:3]]
    card = render_card(report)
    assert "with the method FitNet." in card.text
    assert parsed(report).published_result.method == "fitnet"
    report["results"][0]["method"] = "kd"
    assert "distilled from the logits of the teacher `glyphs-resnet`" in render_card(report).text
    report["results"][0]["method"] = "teacher"
    with pytest.raises(ValueError, match="at least one student"):
        render_card(report)


def test_standing_when_subdistill_loses(report):
    report["results"][3] = worsen(report["results"][3], errors=12)
    sentences = standing(report)
    assert sentences[1].endswith(
        "3.4 ± 2.2 points below From scratch (labels only) and 8.2 ± 2.1 points below Logit distillation (KD)."
    )
    assert sentences[2] == "Within two standard errors, so not told apart by this test: From scratch (labels only)."
    assert sentences[3] == (
        "**In this run From scratch (labels only) and Logit distillation (KD) scored higher than the published "
        "student.**"
    )
    assert " ".join(sentences) in render_card(report).text


def test_standing_when_level(report):
    report["results"] = [report["results"][3], report["results"][3] | {"method": "kd"}]
    assert standing(report)[1:] == [
        "It is level with Logit distillation (KD).",
        "Within two standard errors, so not told apart by this test: Logit distillation (KD).",
    ]


def test_no_folder_of_this_machine(report):
    report["teacher"]["name"] = "/home/me/teachers/glyphs-resnet/"
    report["command"] = "subdistill train --teacher=/home/me/teachers/glyphs-resnet --output ~/students/a -v 1/2"
    report["hyperparameters"] = {"output_dir": "C:\\Users\\me\\student", "cache_dir": "/home/me/cache/x"}
    report["usage"]["code"] = 'pipeline(model="/tmp/run 1/student")  # see https://huggingface.co/docs/hub/models'
    card = str(render_card(report, plots=("/home/me/student/confusion.png", "/home/me/student/more_views.png")))
    for folder in ["/home", "/tmp", "Users", "~/", "me/"]:
        assert folder not in card
    assert "the teacher `glyphs-resnet` with" in card
    assert "--teacher=glyphs-resnet --output a -v 1/2" in card
    assert "| `output_dir` | `student` |" in card
    assert "https://huggingface.co/docs/hub/models" in card
    assert "![Confusion matrix](confusion.png)" in card
    assert "![More views](more_views.png)" in card


def test_numbers(report):
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    report["classes"] = ["a|b", *CLASSES[1:]]
    report["dataset"] |= {"test_images": 40_000}
    report["student"] |= {"parameters": 22_446_280, "size_bytes": 89_800_000}
    report["results"][3] |= {
        "accuracy": 0.9997,
        "latency_ms": {"median": 40.8, "low": 39.0, "high": 1234.5, "runs": 10},
        "training_seconds": 7325.0,
    }
    text = render_card(report).text
    assert "| a\\|b |" in text
    assert "99.97 ± 0.01 %" in text
    assert "22,446,280 parameters, 89.8 MB on disk; 2.0 times larger than the teacher" in text
    assert "40.8 ms an image; 2.0 times slower than the teacher (20.4 ms)" in text
    assert "**40.8 ms (39 to 1,234)**" in text
    assert "**2 h 2 min**" in text
