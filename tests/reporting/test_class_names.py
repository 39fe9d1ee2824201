"""Names of classes are data: card and metadata show them as they are, and nothing of the card breaks on them."""

import copy
import functools
import random

import pytest
from huggingface_hub import metadata_load

from reporting.samples import CLASSES, make_report, parsed
from reporting.test_markdown import PARSER, cells, expected, random_name
from subdistill_hf.reporting.model_card import render_card

MARK = {"name": "plus", "share": 0.5, "train_images": 200, "validation_images": 50}
PLACES = ["/a/airfield", "/b/bazaar/indoor", "/m/market/indoor", "/home/me/x", "~/y"]
YAML = ["yes", "010", "null", "a: b", "- c"]
MARKUP = ["<script>alert(1)</script>", "**bold** _it_ [x](y)", "a | b", "```", "# head"]
FORMULAS = ["Ba$$in", "$0_$100", "$100_$200", "$x_1$", "\\(x\\)"]
LINES = ["two\nlines", "\n---\n", "a\r\nb", "tab\there", "\u2028"]
UNICODE = ["猫", "🐱", "👩\u200d🔬", "مرحبا", "\ud800"]


def report_with(names, marked=False):
    """The report of a run whose classes have other names."""
    report = copy.deepcopy(make_report())
    other = dict(zip(CLASSES, names, strict=True))
    report["classes"] = list(names)
    report["dataset"]["train_images_per_class"] = {other[name]: 400 for name in CLASSES}
    if marked:
        report["dataset"]["mark"] = MARK | {"classes": list(names[:2])}
    for result in report["results"]:
        result["per_class_accuracy"] = {other[name]: share for name, share in result["per_class_accuracy"].items()}
        if marked:
            result |= {"clean_accuracy": 0.9, "mark_followed": 0.5, "followed_without_mark": 0.0}
    return parsed(report)


def structure(markdown):
    """The kinds of all blocks and of what stands in them, without the texts."""
    return [
        (token.type, token.level, [child.type for child in token.children or () if not child.type.startswith("text")])
        for token in PARSER.parse(markdown)
    ]


def table_of_classes(text):
    (lines,) = [block for block in text.split("\n\n") if block.startswith("| Class |")]
    return cells(lines)


@functools.cache
def structure_of_any_card(marked):
    return structure(render_card(report_with(CLASSES, marked)).text)


def check(names, folder, marked=False):
    """The card's metadata, its list of classes and their table hold the names; its structure is that of any card."""
    card = render_card(report_with(names, marked))
    card.save(folder / "README.md")
    (entry,) = metadata_load(folder / "README.md")["model-index"]
    suffix = "; every image marked: plus" if marked else ""
    assert entry["results"][0]["dataset"]["name"] == f"glyphs-100 ({', '.join(names)}{suffix})"
    header, *rows = table_of_classes(card.text)
    assert header == ["Class", "Training images", "Test images", "Accuracy", "Most often taken for"]
    assert [row[0] for row in rows] == [expected(name) for name in names]
    assert all(row[1:3] == ["400", "100"] for row in rows)
    assert structure(card.text) == structure_of_any_card(marked)


@pytest.mark.parametrize("names", [PLACES, YAML, MARKUP, FORMULAS, LINES, UNICODE])
@pytest.mark.parametrize("marked", [False, True])
def test_names_are_no_paths_yaml_markup_or_formulas(names, marked, tmp_path):
    check(names, tmp_path, marked)


def test_no_name_breaks_a_card(tmp_path):
    rng = random.Random(0)
    for _ in range(60):
        names = list(dict.fromkeys(random_name(rng) * rng.choice((1, 1, 1, 40)) for _ in range(40)))[: len(CLASSES)]
        check(names, tmp_path, marked=rng.random() < 0.5)


def test_a_command_with_any_name_of_a_class_is_shown(tmp_path):
    report = make_report()
    report["command"] = "subdistill distill --classes /a/airfield 'b\udcff```' --teacher '/home/Jane Doe/teacher'"
    render_card(parsed(report)).save(tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    command = "subdistill distill --classes /a/airfield 'b\\udcff```' --teacher teacher"
    assert f"````bash\n{command}\n````\n" in text


def test_what_the_model_answers_is_shown_as_it_was_printed():
    report = make_report()
    report["usage"]["output"] = "/a/airfield: 0.983\n```: 0.017"
    assert "````text\n/a/airfield: 0.983\n```: 0.017\n````\n" in render_card(parsed(report)).text
