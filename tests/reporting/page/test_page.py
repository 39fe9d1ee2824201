"""The page of a run: it says what the card says, shows what is there, and holds nothing that is not the run's."""

import copy
import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest

from reporting.page.samples import full_report, write_explanations, write_run
from reporting.samples import CLASSES, make_report, make_result, parsed
from reporting.test_class_names import LINES, MARKUP, PLACES, UNICODE, report_with
from reporting.test_markdown import cells
from subdistill_hf.hub.clean import check_clean
from subdistill_hf.reporting.explained import EXPLANATIONS_FOLDER, Explanations
from subdistill_hf.reporting.model_card import render_card
from subdistill_hf.reporting.page.headline import cost_shares
from subdistill_hf.reporting.page.page import PAGE_FILE, render_page, renew_page, write_page
from subdistill_hf.reporting.page.pictures import Pictures
from subdistill_hf.reporting.page.sections import SECTIONS
from subdistill_hf.reporting.report import ReportError, RunReport
from subdistill_hf.reporting.reported_answers import THUMBNAILS_FOLDER

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A page: its elements, each with its attributes and text, in their order; it must be well formed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(str(html))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "in": [one["tag"] for one in self._open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            one for one in self.elements if one["tag"] == tag and all(one.get(k) == v for k, v in attributes.items())
        ]

    @property
    def text(self):
        return " ".join(self.all("body")[0]["text"].replace("\u00a0", " ").split())


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path)


@pytest.fixture
def explained(folder):
    write_explanations(folder)
    return folder


def headings_in_order(made):
    levels = [int(one["tag"][1]) for one in made.elements if re.fullmatch("h[1-6]", one["tag"])]
    steps = all(after <= before + 1 for before, after in itertools.pairwise(levels))
    return steps and levels[0] == 1 and levels.count(1) == 1


def section(html, name):
    return re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)[0]


def test_each_figure_of_the_card_is_on_the_page():
    """All results, classes, subspaces, facts and sentences of the card stand on the page in the same words."""
    report = parsed(full_report())
    made = Page(render_page(report))
    card = render_card(report).text
    tables = [block for block in card.split("\n\n") if block.startswith("| ") and "| Step |" not in block]
    assert len(tables) == 5  # results, classes, files for devices, subspaces, options
    shown = {" ".join(one["text"].replace("\u00a0", " ").split()) for one in made.all("td") + made.all("th")}
    for table in tables:
        for row in cells(table):
            assert set(row) <= shown
    sentences = ["SubDistill classifies 95.6 ± 0.9 % of the 500 images", "262 times smaller than the teacher"]
    sentences += [
        "3.4 ± 1.0 points below the teacher",
        "A guess is right in 20.0 % of cases.",
        "It knows nothing else.",
    ]
    plain = re.sub(r"[*`\n]+", lambda found: " " if "\n" in found[0] else "", card)
    for sentence in sentences:
        assert sentence in plain
        assert sentence in made.text
    said = card[: card.index("## Limitations")].splitlines()
    facts = [line[2:].replace("`", "") for line in said if line.startswith("- ")]
    assert len(facts) > 12
    for fact in facts:
        assert fact in made.text


def test_the_headlines_are_cells_of_the_table():
    made = Page(render_page(parsed(full_report())))
    values = [one["text"].replace("\u00a0", " ") for one in made.all("strong") if "dd" in one["in"]]
    assert values == ["95.6 ± 0.9 %", "95.8 %", "2.1 %", "42,913", "4.32 MFLOPs", "1.52 ms", "179.3 kB"]
    table = [one["text"].replace("\u00a0", " ") for one in made.all("td")]
    for value in ("95.6 ± 0.9 %", "95.8 %", "42,913", "4.32 MFLOPs"):
        assert value in table


def test_what_the_student_takes_is_a_share_of_what_the_teacher_takes():
    parameters, work, time = cost_shares(parsed(full_report()))
    assert parameters.share == pytest.approx(42_913 / 11_223_140)
    assert work.share == pytest.approx(4.318 / 1113)
    assert time.share == pytest.approx(1.52 / 20.4)
    assert (time.student, time.teacher) == ("1.52 ms", "20.4 ms")
    cost = Page(section(render_page(parsed(full_report())), "cost"))
    assert [one["text"].replace("\u00a0", " ") for one in cost.all("b")] == ["0.4 %", "0.4 %", "7.5 %"]


def test_the_page_has_landmarks_headings_in_order_and_sections():
    made = Page(render_page(parsed(full_report())))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(made.all(landmark)) == 1
    assert headings_in_order(made)
    names = [section.name for section in SECTIONS]
    assert [one["id"] for one in made.all("section")] == names
    assert [one["href"] for one in made.all("a") if "nav" in one["in"]] == [f"#{name}" for name in names]
    assert [one["text"] for one in made.all("h2")] == [section.title for section in SECTIONS]
    identifiers = [one["id"] for one in made.elements if "id" in one]
    assert len(set(identifiers)) == len(identifiers)
    assert [one["text"] for one in made.all("p", **{"class": "absent"})] == [
        "Not in this report. The student was not explained: subdistill explain makes heat maps."
    ]


def test_all_pictures_have_a_text_and_all_figures_their_data(folder):
    made = Page(write_page(folder).read_text(encoding="utf-8"))
    drawings = [one for one in made.all("svg") if one.get("aria-hidden") != "true"]
    assert len(drawings) == 4 + 1 + 2 * 4  # curves, calibration, and two for each pair of layers
    assert len(made.all("figure")) == len(drawings)
    assert all(one.get("role") == "img" for one in drawings)
    titles = [one["text"] for one in made.all("title") if one["in"][-1] == "svg"]
    assert len(titles) == len(drawings)
    assert all(titles)
    assert sum(one["text"].strip() == "Data of this figure" for one in made.all("summary")) == len(drawings)
    (picture,) = made.all("img")
    assert picture["alt"] == "Test image 123, of the class club"
    assert picture["src"].startswith("data:image/webp;base64,")
    assert "image 125" in made.text  # which has no picture
    assert len(made.all("caption")) == len(made.all("table"))


def test_the_page_asks_nobody_for_anything(folder):
    html = write_page(folder).read_text(encoding="utf-8")
    made = Page(html)
    assert len(html.encode()) < 2_000_000
    for element in made.elements:
        assert element.get("src", "data:").startswith("data:")
        if element["tag"] == "link":
            assert element["href"] == "data:,"
        if element["tag"] == "a":
            assert element["href"].startswith(("#", "https://huggingface.co/"))
    assert "url(" not in html
    assert "@import" not in html
    policy = next(one["content"] for one in made.all("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize("names", [PLACES, MARKUP, LINES, UNICODE])
@pytest.mark.parametrize("marked", [False, True])
def test_names_of_classes_are_data(names, marked):
    report = report_with(names, marked)
    answers = parsed(full_report()).wrong_answers
    made = Page(render_page(dataclasses.replace(report, wrong_answers=answers)))
    plain = Page(render_page(dataclasses.replace(report_with(CLASSES, marked), wrong_answers=answers)))
    assert [one["tag"] for one in made.elements] == [one["tag"] for one in plain.elements]
    assert len(made.all("script")) == 1
    for name in names:
        shown = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
        assert shown in made.text


def test_a_name_stays_within_the_text_of_a_picture(folder):
    report = full_report()
    report["classes"][0] = '" onload="x <script>alert(1)</script>'
    (folder / "report.json").unlink()
    parsed(report).save(folder)
    (picture,) = Page(write_page(folder).read_text(encoding="utf-8")).all("img")
    assert picture["alt"] == 'Test image 123, of the class " onload="x <script>alert(1)</script>'
    assert "onload" not in picture


def test_no_path_of_this_machine_is_on_the_page(folder):
    report = full_report()
    report["teacher"]["name"] = "/home/jane/teachers/big"
    report["dataset"]["name"] = "/home/jane/data/cards"
    report["student"]["recipe"] = "/home/jane/student"
    report["hyperparameters"]["resume_from_checkpoint"] = "/home/jane/run/checkpoint-3"
    report["command"] = "subdistill distill --dataset /home/jane/data/cards --output_dir /home/jane/out"
    parsed(report).save(folder)
    html = write_page(folder).read_text(encoding="utf-8")
    assert "jane" not in html
    assert str(folder) not in html
    assert "subdistill distill --dataset cards --output_dir out" in html
    check_clean({PAGE_FILE: html.encode()}, folder)


def test_an_older_report_says_what_it_lacks():
    report = make_report()
    for name in ("subspaces", "histories", "hyperparameters", "versions"):
        del report[name]
    for result in report["results"]:
        del result["confusion"]
    html = render_page(parsed(report))
    for name, reason in {
        "training": "holds no log of a training",
        "confusion": "made by an earlier version",
        "classes": "made by an earlier version",
        "calibration": "made by an earlier version",
        "device": "subdistill export makes files",
        "subspaces": "made by an earlier version",
    }.items():
        assert reason in section(html, name)
    report["results"] = [make_result("kd", report["results"][0].get("confusion", [[1] * 5] * 5))]
    report["published"] = "kd"
    html = render_page(parsed(report))
    assert "Logit distillation (KD) compares nothing in subspaces." in section(html, "subspaces")
    assert "42,913" in section(html, "cost")


def test_a_run_without_labels_speaks_of_agreement():
    report = full_report()
    report["dataset"]["labels_by_teacher"], report["exports"] = True, []
    html = render_page(parsed(report))
    made = Page(html)
    assert "No image had a label." in made.text
    assert made.all("dt")[0]["text"] == "Agreement with the teacher"
    assert "Accuracy" not in {one["text"] for one in made.all("th")}
    captions = [one["text"] for one in Page(section(html, "confusion")).all("caption")]
    assert captions[0] == "Rows: teacher's answer. Columns: answer of SubDistill."
    assert "Teacher" not in [one["text"] for one in Page(section(html, "calibration")).all("th")]


def test_a_report_in_which_almost_nothing_is_known_has_a_page():
    report = make_report()
    wanted = ("created", "dataset", "classes", "teacher", "student")
    report = {name: report[name] for name in wanted} | {"results": [{"method": "kd", "accuracy": 1.0}]}
    report["dataset"] = {"name": "a", "test_images": 3, "test_split": "test"}
    made = Page(render_page(parsed(report)))
    assert len(made.all("p", **{"class": "absent"})) == 7
    assert "100.0 %" in made.text


def test_images_of_other_classes_are_told():
    report = full_report()
    unknown = {
        "kind": "far",
        "score": "energy",
        "images": 40,
        "auroc": 0.91,
        "auroc_error": 0.02,
        "false_positives": 0.3,
    }
    for result in report["results"]:
        result["unknown"] = [unknown]
    kept = {"threshold": 0.5, "validation_images": 40, "known_kept": 0.95, "unknown_kept": {"far": 0.2}}
    report["rejection"] = {"score": "largest probability", **kept}
    text = Page(render_page(parsed(report))).text
    assert "0.910 ± 0.020" in text
    assert "It is reached by 95.0 % of the test images and 20.0 % of far unknown images." in text


def test_a_student_without_errors_is_told():
    report = dataclasses.replace(parsed(full_report()), wrong_answers=())
    assert "made no error" in section(render_page(report), "classes")


def test_many_classes_are_drawn():
    report = make_report()
    number = 60
    names = [f"class {index}" for index in range(number)]
    confusion = [[9 * (i == j) + (j == (i + 1) % number) for j in range(number)] for i in range(number)]
    report["classes"] = names
    report["dataset"] |= {"train_images_per_class": dict.fromkeys(names, 4), "test_images": 600}
    report["results"] = [
        {
            "method": "subdistill",
            "accuracy": 0.9,
            "per_class_accuracy": dict.fromkeys(names, 0.9),
            "confusion": confusion,
        }
    ]
    html = render_page(parsed(report))
    made = Page(html)
    (drawing,) = made.all("svg", **{"class": "matrix"})
    assert drawing["role"] == "img"
    assert len([one for one in made.all("rect") if one["class"] != "frame"]) == 2 * number
    assert "60 classes" in made.all("h1")[0]["text"]
    assert len(html) < 300_000


def test_a_loss_that_is_no_number_leaves_a_gap():
    report = make_report()
    report["histories"] = {
        "kd": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 2.0}]
    }
    assert "nan" in section(render_page(parsed(report)), "training")
    report["histories"] = {"kd": [{"step": 1, "loss": float("nan")}]}
    render_page(parsed(report))


def test_a_report_without_a_student_is_refused():
    report = copy.deepcopy(make_report())
    report["results"] = report["results"][:1]
    with pytest.raises(ReportError, match="at least one student"):
        render_page(parsed(report))


def test_pictures_that_are_none_of_ours_are_left_out(folder):
    place = folder / THUMBNAILS_FOLDER / "123.webp"
    place.write_bytes(bytes(200_000))
    assert "<img" not in write_page(folder).read_text(encoding="utf-8")
    assert RunReport.load(folder).wrong_answers[0].thumbnail == place.name


# Explanations


def test_heat_maps_stand_side_by_side_with_what_was_found(explained):
    html = write_page(explained).read_text(encoding="utf-8")
    shown = Page(section(html, "explanations"))
    assert len(shown.all("div", **{"class": "step"})) == 2
    assert [one["alt"] for one in shown.all("img")][:3] == [
        "test image 0",
        "Heat map of the teacher, which answers club",
        "Heat map of the student, which answers spade; its cosine to the teacher's is 0.50",
    ]
    for text in ("Different answers.", "0.50 (0.25 to 0.75)", "Ceiling", "Pixel flipping", "area 0.55"):
        assert text in Page(html).text
    assert len(shown.all("svg", role="img")) == 1
    subspaces = Page(section(html, "subspaces"))
    assert [one["alt"] for one in subspaces.all("img")] == ["test image 3, club; framed: row 1, column 2"]
    assert "Accuracy against K" in section(html, "subspaces")
    assert headings_in_order(Page(html))


@pytest.mark.parametrize(
    ("again", "told", "not_told"),
    [
        (
            "mirrored images",
            "may be closer to its teacher than the teacher is to itself",
            "No student can be expected",
        ),
        ("another seed", "No student can be expected to be closer", "in the mirror"),
    ],
)
def test_the_ceiling_is_said_to_be_one_where_it_is(explained, again, told, not_told):
    found = Explanations.load(explained)
    dataclasses.replace(found, agreement=dataclasses.replace(found.agreement, ceiling_from=again)).save(
        explained / "explanations"
    )
    shown = section(write_page(explained).read_text(encoding="utf-8"), "explanations")
    assert told in shown
    assert not_told not in shown


def test_the_page_is_renewed_where_there_is_one(folder, capsys):
    renew_page(folder)
    assert not (folder / PAGE_FILE).exists()
    write_page(folder)
    write_explanations(folder)
    renew_page(folder)
    assert "Heat map of the student" in (folder / PAGE_FILE).read_text(encoding="utf-8")
    (folder / "report.json").write_text("{")
    renew_page(folder)
    assert "note: report.html not drawn: ReportError" in capsys.readouterr().err


def test_explanations_of_another_version_are_told(folder):
    place = folder / EXPLANATIONS_FOLDER
    place.mkdir()
    (place / "explanations.json").write_text('{"created": 1}')
    html = write_page(folder).read_text(encoding="utf-8")
    assert "cannot be read: subdistill explain writes it again" in section(html, "explanations")
    assert str(folder) not in html


def test_names_of_explained_images_are_data_without_folders(explained):
    found = Explanations.load(explained)
    image = dataclasses.replace(found.images[0], name="/home/jane/<b>.png", target="<script>x</script>")
    dataclasses.replace(found, images=(image,)).save(explained / EXPLANATIONS_FOLDER)
    html = write_page(explained).read_text(encoding="utf-8")
    made = Page(html)
    assert len(made.all("script")) == 1
    assert "jane" not in html
    assert [one["alt"] for one in made.all("img") if one["alt"].endswith("png")] == ["<b>.png"]


def test_pictures_are_shown_as_far_as_there_is_room(explained):
    one = Pictures(explained)
    address = one.address(EXPLANATIONS_FOLDER, "000.png", 200)
    assert one.address(EXPLANATIONS_FOLDER, "000.png", 200) == address
    assert one.address(EXPLANATIONS_FOLDER, "none.png", 200) is None
    assert one.address(EXPLANATIONS_FOLDER, "../report.json", 200) is None
    assert one.address(".", "report.json", 200) is None
    small = Pictures(explained, len(address))
    assert small.address(EXPLANATIONS_FOLDER, "000.png", 200) == address
    assert small.address(EXPLANATIONS_FOLDER, "000-teacher.png", 200) is None
    assert small.left_out == 1


def test_the_page_tells_of_pictures_that_it_has_no_room_for(explained, monkeypatch):
    monkeypatch.setattr(Pictures.__init__, "__defaults__", (0,))
    made = Page(write_page(explained).read_text(encoding="utf-8"))
    assert made.all("img") == []
    assert "5 pictures were left out" in made.all("footer")[0]["text"]
    assert "The folder has no pictures of heat maps." in made.text
