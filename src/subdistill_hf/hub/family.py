"""Push a family of experts to the Hub: a repository for each, and a collection of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from huggingface_hub import HfApi

from subdistill_hf.errors import PushError
from subdistill_hf.formatting import slug
from subdistill_hf.hub.client import limit_waiting
from subdistill_hf.hub.errors import HUB_ERRORS, explain
from subdistill_hf.hub.names import LONGEST_NAME, shortened
from subdistill_hf.hub.publish import Destination, open_repository, sign_in, upload

FAMILY_FILE: Final = "family.json"
"""The file by which the folder of a family is known: its options, and the classes of each expert by name."""
LONGEST_TITLE: Final = 59
LONGEST_DESCRIPTION: Final = 150


def push_family(
    folder: str | Path,
    name: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Push all experts of a family that are finished, each to a repository of its own, and collect them.

    Pushed again, the same repositories and the same collection are used.

    Args:
        folder: the family's folder.
        name: of the family, or `user/name`: the repositories are `name-EXPERT`, the collection has this title; by
            default the folder's.
        private: see `Destination`.
        revision: see `Destination`.
        token: see `Destination`.

    Returns:
        The address of the collection.

    Raises:
        PushError: when anything fails; what was pushed before stays there.
    """
    folder = Path(folder)
    finished = finished_experts(folder)
    if not finished:
        raise PushError(f"{folder} holds no finished expert: run subdistill family to its end first")
    family = sign_in(name or shortened(slug(folder.resolve().name)), private, revision, token)
    owner, _, title = family.repo.partition("/")
    repos = {expert: f"{owner}/{shortened(f'{title}-{expert}', LONGEST_NAME - len(owner) - 1)}" for expert in finished}
    if len(set(repos.values())) < len(repos):
        raise PushError(
            f"the names of the repositories would be too long to differ: give a shorter one than {title!r}"
        )
    failed = {}
    for expert, repo in repos.items():
        destination = Destination(repo, private, revision, token)
        try:
            open_repository(destination)
            print(upload(folder / expert, destination))
        except PushError as error:
            failed[expert] = str(error)
    pushed = {expert: repo for expert, repo in repos.items() if expert not in failed}
    address = _collect(title, owner, pushed, _description(folder, finished), private, token) if pushed else ""
    if failed:
        told = "\n".join(f"  {expert}: {reason}" for expert, reason in failed.items())
        raise PushError(f"{len(failed)} of {len(repos)} experts were not pushed:\n{told}")
    return address


def is_family(folder: str | Path) -> bool:
    """Whether a folder holds a family."""
    return (Path(folder) / FAMILY_FILE).is_file()


def finished_experts(folder: Path) -> list[str]:
    """The names of the experts of a family whose students are there, whole."""
    names = json.loads((folder / FAMILY_FILE).read_text(encoding="utf-8"))["experts"]
    reports = {name: _report_of(folder / name) for name in names}
    return [name for name, report in reports.items() if report.get("usage") is not None]


def _report_of(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return report


def _description(folder: Path, experts: list[str]) -> str:
    report = _report_of(folder / experts[0])
    told = f"{len(experts)} experts for classes of {report['dataset']['name']}, from {report['teacher']['name']}"
    return told[:LONGEST_DESCRIPTION]


def _collect(
    title: str, owner: str, repos: dict[str, str], description: str, private: bool | None, token: str | None
) -> str:
    """Make the collection unless it is there, and add what it lacks.

    Returns:
        Its address.
    """
    limit_waiting()
    api = HfApi(token=token)
    try:
        collection = api.create_collection(
            title[:LONGEST_TITLE], namespace=owner, description=description, private=bool(private), exists_ok=True
        )
        there = {item.item_id for item in collection.items}
        for expert, repo in repos.items():
            if repo not in there:
                api.add_collection_item(collection.slug, repo, "model", note=expert, exists_ok=True)
    except HUB_ERRORS as error:
        raise PushError(f"the experts were pushed, but not collected: {explain(error)}. Push again") from error
    return str(collection.url)
