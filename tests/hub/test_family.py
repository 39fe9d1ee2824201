"""A family goes to the Hub: a repository for each finished expert, and one collection of all."""

import json
import shlex

import pytest

from hub.test_publish import PROGRAM, STUDENT, write_student
from loopback_hub import Repo
from subdistill_hf.errors import PushError
from subdistill_hf.hub import family, publish

EXPERTS = {"dice": ["superclass:dice"], "my-two": ["a", "b"], "unfinished": ["c", "d"]}


def write_family(folder):
    """Two finished experts, and one that was cut short."""
    for seed, name in enumerate(EXPERTS):
        write_student(folder / name, seed)
        path = folder / name / "report.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        report["usage"] = None if name == "unfinished" else {"code": "code", "output": "output"}
        path.write_text(json.dumps(report), encoding="utf-8")
    content = {"format": 1, "options": {}, "experts": EXPERTS}
    (folder / "family.json").write_text(json.dumps(content), encoding="utf-8")


def push(hub, *runs):
    outcomes, _ = hub.answer(PROGRAM, json.dumps([["push", *shlex.split(run)] for run in runs]))
    return outcomes


def test_a_family_is_a_repository_an_expert_and_a_collection(hub):
    write_family(hub.folder / "my family")
    (hub.folder / "none").mkdir()
    (hub.folder / "none" / "family.json").write_text('{"experts": {"a": ["b"]}}', encoding="utf-8")
    hub.fail("POST /api/models/user/short-my-two/commit", 403)
    first, again, other, failing, empty = push(
        hub, "'my family'", "'my family'", "'my family' --repo short --private", "'my family' --repo short", "none"
    )

    assert [first[0], again[0]] == [0, 0]
    assert set(hub.files("user/my-family-dice")) == STUDENT
    assert set(hub.files("user/my-family-my-two")) == STUDENT
    assert not any("unfinished" in name for _, name in hub.repos)
    collection = next(one for slug, one in hub.collections.items() if slug.startswith("user/my-family-"))
    assert [item["id"] for item in collection["items"]] == ["user/my-family-dice", "user/my-family-my-two"]
    assert collection["description"].startswith("2 experts for classes of uoft-cs/cifar100, from google/vit")
    assert first[1].splitlines()[-1] == f"{hub.url}/collections/{collection['slug']}"
    assert again[1].splitlines()[-1] == first[1].splitlines()[-1]

    status, _, said = other
    assert status == 1
    assert "1 of 2 experts were not pushed" in said
    assert "the token has no right" in said
    assert hub.repos["model", "user/short-dice"].private
    short = next(one for slug, one in hub.collections.items() if slug.startswith("user/short-"))
    assert short["private"]
    assert failing[0] == 0
    assert [item["id"] for item in short["items"]] == ["user/short-dice", "user/short-my-two"]

    assert empty[0] == 1
    assert "no finished expert" in empty[2]


def test_a_collection_is_private_where_a_repository_of_it_is(hub):
    """An organisation may make new repositories private, though nobody asked for it."""
    write_family(hub.folder / "family")
    hub.repos["model", "user/hidden-dice"] = Repo("model", "user/hidden-dice", private=True)
    outcomes = push(hub, "family --repo hidden", "family --repo shown", "family --repo shown --private")
    assert [status for status, _, _ in outcomes] == [0, 0, 1]
    private = {slug.partition("/")[2].partition("-")[0]: one["private"] for slug, one in hub.collections.items()}
    assert private == {"hidden": True, "shown": False}


def test_a_public_collection_is_refused_where_private_was_asked_for(hub):
    write_family(hub.folder / "family")
    first, second = push(hub, "family --repo mine", "family --repo mine")
    for name in ("dice", "my-two"):
        hub.repos["model", f"user/mine-{name}"].private = True
    [[status, _, said]] = push(hub, "family --repo mine --private")
    assert [first[0], second[0], status] == [0, 0, 1]
    assert "not collected in 'mine': it exists and is public, and private was asked for" in said


def test_an_interruption_stops_the_push_of_a_family(tmp_path, monkeypatch):
    """One Ctrl-C is enough, also in the middle of an expert; the command line tells it from a failure by its cause."""
    write_family(tmp_path)
    begun = []

    def commit(destination, *given):
        begun.append(destination.repo)
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "commit", commit)
    monkeypatch.setattr(family, "open_repository", lambda destination: None)
    monkeypatch.setattr(family, "sign_in", lambda name, *given: publish.Destination(f"user/{name}"))
    with pytest.raises(PushError, match=r"^the push was interrupted: 0 of 2 experts were pushed") as error:
        family.push_family(tmp_path, "fam")
    assert begun == ["user/fam-dice"]
    assert isinstance(error.value.__cause__.__cause__, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my family", "my-family"), ("Familie_Ä", "Familie_A"), ("a" * 97, "a" * 96), ("v1.git", "v1")],
)
def test_a_family_is_called_after_its_folder_as_the_hub_takes_it(tmp_path, folder, name):
    assert family.name_of_family(tmp_path / folder) == name
