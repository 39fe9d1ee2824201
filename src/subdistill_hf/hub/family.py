"""Push a family of experts to the Hub: a repository for each, and a collection of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from huggingface_hub import HfApi

from subdistill_hf.errors import PushError, comes_of_an_interruption
from subdistill_hf.formatting import slug
from subdistill_hf.hub.client import limit_waiting, longest_wait
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
    family = sign_in(name or name_of_family(folder), private, revision, token)
    owner, _, title = family.repo.partition("/")
    repos = {expert: f"{owner}/{shortened(f'{title}-{expert}', LONGEST_NAME - len(owner) - 1)}" for expert in finished}
    if len(set(repos.values())) < len(repos):
        raise PushError(
            f"the names of the repositories would be too long to differ: give a shorter one than {title!r}"
        )
    failed: dict[str, str] = {}
    for expert, repo in repos.items():
        destination = Destination(repo, private, revision, token)
        try:
            open_repository(destination)
            print(upload(folder / expert, destination))
        except PushError as error:
            if comes_of_an_interruption(error):
                done = list(repos).index(expert) - len(failed)
                raise PushError(
                    f"the push was interrupted: {done} of {len(repos)} experts were pushed, and none is collected. "
                    "Push again: those that are there are not sent again"
                ) from error
            failed[expert] = str(error)
    pushed = {expert: repo for expert, repo in repos.items() if expert not in failed}
    address = _collect(title, owner, pushed, _description(folder, finished), private, token) if pushed else ""
    if failed:
        told = "\n".join(f"  {expert}: {reason}" for expert, reason in failed.items())
        raise PushError(f"{len(failed)} of {len(repos)} experts were not pushed:\n{told}")
    return address


def name_of_family(folder: str | Path) -> str:
    """The name that a family is pushed under by default: that of its folder, as the Hub takes it."""
    return shortened(slug(Path(folder).resolve().name))


def is_family(folder: str | Path) -> bool:
    """Whether a folder holds a family."""
    return (Path(folder) / FAMILY_FILE).is_file()


def finished_experts(folder: Path) -> list[str]:
    """The names of the experts of a family whose folders are whole: `usage` is written after all else."""
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

    Unless something else was asked for, it is private if one of the repositories is: an account, or an organisation,
    may make new repositories private, and the collection names them, with teacher and dataset.

    Returns:
        Its address.

    Raises:
        PushError: when it cannot be made, or is public and should be private.
    """
    limit_waiting()
    api = HfApi(token=token)
    try:
        hidden = private
        if hidden is None:
            hidden = any(api.repo_info(repo, timeout=longest_wait()).private for repo in repos.values())
        collection = api.create_collection(
            title[:LONGEST_TITLE], namespace=owner, description=description, private=hidden, exists_ok=True
        )
        if private and not collection.private:
            raise PushError("it exists and is public, and private was asked for: make it private in its settings")
        there = {item.item_id for item in collection.items}
        for expert, repo in repos.items():
            if repo not in there:
                api.add_collection_item(collection.slug, repo, "model", note=expert, exists_ok=True)
    except HUB_ERRORS as error:
        reason = str(error) if isinstance(error, PushError) else explain(error)
        raise PushError(f"the experts were pushed, but not collected in {title!r}: {reason}. Push again") from error
    return str(collection.url)
