"""A family goes to the Hub: a repository for each finished expert, and one collection of all."""

import json
import shlex

from hub.test_publish import PROGRAM, STUDENT, write_student

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
