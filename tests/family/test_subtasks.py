"""The subtasks of a family: words and files, all superclasses, names of folders."""

import pytest

from helpers import task_options, write_task
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASS_NAMES
from subdistill_hf.errors import SubDistillError
from subdistill_hf.family import subtasks
from subdistill_hf.family.subtasks import Expert, FamilyError, experts_of


@pytest.fixture
def in_file(tmp_path):
    def write(text):
        path = tmp_path / "subtasks.yaml"
        path.write_text(text, encoding="utf-8")
        return [str(path)]

    return write


def test_all_superclasses_of_a_dataset():
    experts = experts_of(TaskOptions(), ["superclass:all"])
    assert [expert.name for expert in experts] == list(SUPERCLASS_NAMES)
    assert experts[2].classes == (f"superclass:{SUPERCLASS_NAMES[2]}",)


def test_some_superclasses():
    assert experts_of(TaskOptions(), ["superclass:dice", "all"]) == [
        Expert("dice", ("superclass:dice",)),
        Expert("all", ("all",)),
    ]


def test_a_file_names_the_experts_or_lists_them(in_file):
    one, two = CLASS_NAMES[:2]
    named = experts_of(TaskOptions(), in_file(f"arrows & more: [{one}, {two}]\ndice: superclass:dice\n"))
    assert named == [Expert("arrows-more", (one, two)), Expert("dice", ("superclass:dice",))]
    listed = experts_of(TaskOptions(), in_file(f"- superclass:dice\n- [{one}, {two}]\n"))
    assert listed == [Expert("dice", ("superclass:dice",)), Expert(f"{one}-{two}", (one, two))]


def test_the_subtasks_of_the_paper(monkeypatch):
    monkeypatch.setattr(subtasks, "resolve_classes", lambda *given: None)
    found = experts_of(TaskOptions(), ["subtask:all"])
    assert [expert.classes for expert in found] == [(f"subtask:{name}",) for name in subtasks.IMAGENET_SUBTASKS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected subtasks, as a list or by their names"),
        ("[]", "expected at least one"),
        ("a: [x]\na: [y]\n", "is not YAML"),
        ("a: 'superclass:dice'\nA: 'superclass:arrows'\n", "would both be in a folder"),
        ("a: {b: c}", "expected classes"),
        ("a: [no_such_class, another]", "unknown class 'no_such_class'"),
        ("- superclass:dcie\n", "unknown superclass 'dcie'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(in_file, text, message):
    with pytest.raises(SubDistillError, match=message):
        experts_of(TaskOptions(), in_file(text))


def test_a_file_beside_other_subtasks_or_that_is_not_there(tmp_path):
    with pytest.raises(FamilyError, match="either one YAML file or subtasks"):
        experts_of(TaskOptions(), ["superclass:dice", "some.yaml"])
    with pytest.raises(FamilyError, match="cannot be read"):
        experts_of(TaskOptions(), [str(tmp_path / "none.yaml")])


def test_a_dataset_without_superclasses(tmp_path):
    with pytest.raises(FamilyError, match="this dataset has no superclasses"):
        experts_of(task_options(write_task(tmp_path)), ["superclass:all"])


def test_a_superclass_of_one_class_gets_no_expert(monkeypatch, capsys):
    known = {"pair": ["a", "b"], "alone": ["c"]}
    monkeypatch.setattr(subtasks, "classes_of_dataset", lambda options: (("a", "b", "c"), lambda: known))
    assert [expert.name for expert in experts_of(TaskOptions(), ["superclass:all"])] == ["pair"]
    assert "one class alone: alone" in capsys.readouterr().err
