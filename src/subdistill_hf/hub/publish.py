"""Push a student's folder to the Hub: sign in, make or check the repository, upload in one commit."""

from __future__ import annotations

import itertools
import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, create_commit, run_as_future

from subdistill_hf.errors import PushError, SubDistillError
from subdistill_hf.formatting import file_size, slug
from subdistill_hf.hub.clean import UncleanError, check_clean
from subdistill_hf.hub.client import limit_waiting, longest_wait
from subdistill_hf.hub.errors import HUB_ERRORS, explain
from subdistill_hf.hub.files import CARD_FILE, checkpoint_files, stale_files, student_files, why_no_student
from subdistill_hf.hub.names import LONGEST_NAME, check_repository, repository_name, shortened
from subdistill_hf.hub.snippet import ANSWERS, hub_code, local_code

logger = logging.getLogger(__name__)

SPACE_ENDING: Final = "-space"


@dataclass(frozen=True)
class Destination:
    """A repository that a student is pushed to.

    Attributes:
        repo: its id, `user/name`.
        private: whether to make it private; what is usual for the account with `None`.
        revision: the branch, made if need be; the main one with `None`.
        token: that of the login or of HF_TOKEN with `None`.
        kind: of repository: a model, or a Space of static files.
    """

    repo: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    kind: Literal["model", "space"] = "model"


def sign_in(
    repo: str, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> Destination:
    """Find out who pushes, before anything long is done.

    Args:
        repo: the repository's name or `user/name`.
        private: see `Destination`.
        revision: see `Destination`.
        token: see `Destination`.

    Returns:
        The destination, with its owner: the account, unless `repo` names another.

    Raises:
        PushError: for a name that the Hub does not take, without a token or with one that is not accepted, or without
            a Hub.
    """
    try:
        check_repository(repo)
    except SubDistillError as error:
        raise PushError(str(error)) from error
    limit_waiting()
    try:
        account = HfApi(token=token).whoami(cache=True)["name"]
    except HUB_ERRORS as error:
        raise PushError(explain(error)) from error
    if "/" not in repo:
        longest = LONGEST_NAME - len(account) - 1
        repo = f"{account}/{repo if len(repo) <= longest else shortened(repo, longest)}"
    return Destination(repo, private, revision, token)


def open_repository(destination: Destination) -> None:
    """Make the repository unless it is there, and check that it can be written.

    Raises:
        PushError: when it can not, or when it is public and should be private.
    """
    limit_waiting()
    api = HfApi(token=destination.token)
    try:
        static = "static" if destination.kind == "space" else None
        api.create_repo(
            destination.repo, private=destination.private, exist_ok=True, repo_type=destination.kind, space_sdk=static
        )
        api.auth_check(destination.repo, write=True, repo_type=destination.kind)
        info = api.repo_info(destination.repo, repo_type=destination.kind, timeout=longest_wait())
        public = destination.private and not info.private
        if destination.revision is not None and not public:
            api.create_branch(destination.repo, branch=destination.revision, exist_ok=True, repo_type=destination.kind)
    except HUB_ERRORS as error:
        raise PushError(f"{destination.repo} cannot be written: {explain(error)}") from error
    if public:
        raise PushError(
            f"{destination.repo} exists and is public, and private was asked for: make it private in its settings, "
            "or give another name"
        )


def upload(folder: Path, destination: Destination) -> str:
    """Upload a student in one commit, which is whole or not at all.

    The code of the card that reads the folder is replaced by code that reads the repository.

    Args:
        folder: the student's folder; nothing is written to it.
        destination: an open repository.

    Returns:
        The address of the commit.

    Raises:
        PushError: when anything fails; it holds the command that tries again.
    """
    limit_waiting()
    with _retryable(folder, destination.repo, destination.private, destination.revision):
        files = student_files(folder)
        if CARD_FILE in files:
            card = files[CARD_FILE].decode("utf-8")
            for adapter, threshold in itertools.product((False, True), ANSWERS):
                ours = hub_code(destination.repo, destination.revision, adapter, threshold)
                card = card.replace(local_code(adapter, threshold), ours)
            files[CARD_FILE] = card.encode()
        print(f"pushing {len(files)} files, {file_size(sum(map(len, files.values())))}, to {destination.repo}")
        pushed = commit(destination, files, folder, "Student, processor and card")
    return str(pushed.commit_url)


def commit(
    destination: Destination,
    files: Mapping[str, bytes | Path],
    folder: str | Path,
    message: str,
    in_background: bool = False,
    replaced: str | None = None,
) -> Any:
    """Commit files to a repository that is there: the one way of this package's files to the Hub.

    The same commit deletes what an earlier push has left, see `stale_files`.

    Args:
        destination: the repository.
        files: name in the repository to content, or to the file that holds it.
        folder: where they come from.
        message: of the commit.
        in_background: return at once.
        replaced: a folder in the repository that is to hold these files, and nothing else.

    Returns:
        huggingface_hub's description of the commit, or a `Future` of it.

    Raises:
        UncleanError: for files with something that must not be published, see `check_clean`.
    """
    check_clean(files, folder)
    limit_waiting()
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]

    def send() -> Any:
        there = HfApi(token=destination.token).list_repo_files(
            destination.repo, revision=destination.revision, repo_type=destination.kind
        )
        stale = stale_files(there, files, replaced)
        return create_commit(
            destination.repo,
            [*additions, *(CommitOperationDelete(name, is_folder=False) for name in stale)],
            commit_message=message,
            commit_description=f"Removed, as of an earlier push: {', '.join(stale)}" if stale else "",
            token=destination.token,
            revision=destination.revision,
            repo_type=destination.kind,
        )

    # huggingface_hub does one thing in the background after the other, so `send` sees what the last push has left
    return run_as_future(send) if in_background else send()


def push_checkpoint(folder: Path, destination: Destination, message: str, whole: str | None = None) -> Future[Any]:
    """Commit the student of a trainer's checkpoint in the background; an error is logged, since nobody waits for it.

    Args:
        folder: the checkpoint's folder.
        destination: the repository.
        message: of the commit.
        whole: where in the repository the whole checkpoint is put as well, to resume from; nowhere with `None`.
    """
    files: dict[str, bytes | Path] = dict(student_files(folder))
    if whole is not None:
        files |= {f"{whole}/{name}": content for name, content in checkpoint_files(folder).items()}
    push: Future[Any] = Future()
    try:
        push = commit(destination, files, folder, message, in_background=True, replaced=whole)
    except UncleanError as error:
        push.set_exception(error)
    push.add_done_callback(_log_failure)
    return push


def _log_failure(push: Future[Any]) -> None:
    error = push.exception()
    if isinstance(error, UncleanError):
        logger.error(f"A checkpoint was not pushed: {error}")
    elif error is not None:
        logger.error(f"A checkpoint, whole in its folder, was not pushed; trainer.push_to_hub() tries again. {error}")


def push_folder(
    folder: str | Path, repo: str | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """Push the student of a folder that `distill` or a trainer wrote.

    Args:
        folder: the folder.
        repo: the repository's name or `user/name`; by default of teacher, student and classes.
        private: see `Destination`.
        revision: see `Destination`.

    Returns:
        The address of the commit.

    Raises:
        PushError: when anything fails; nothing of the folder was changed.
    """
    folder = Path(folder)
    if (why := why_no_student(folder)) is not None:
        raise PushError(why)
    with _retryable(folder, repo, private, revision):
        destination = sign_in(repo or _name_of(folder), private, revision)
        open_repository(destination)
    return upload(folder, destination)


def push_page(
    page: Path,
    student: str | Path,
    repo: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    runtime: str | None = None,
) -> str:
    """Push the page of a student as a static Space.

    Args:
        page: folder of the page, with all that it needs.
        student: folder of the student.
        repo: the Space's name or `user/name`; by default that of the student's repository, with `-space`.
        private: see `Destination`.
        revision: see `Destination`.
        runtime: the folder of onnxruntime-web that was given for the page, for the command that tries again.

    Returns:
        The address of the commit.

    Raises:
        PushError: when anything fails; nothing of the student's folder was changed.
    """
    student = Path(student)
    with _retryable(student, repo, private, revision, "--space", *(["--runtime", runtime] if runtime else [])):
        name = repo or f"{shortened(_name_of(student), LONGEST_NAME - len(SPACE_ENDING))}{SPACE_ENDING}"
        destination = replace(sign_in(name, private, revision), kind="space")
        open_repository(destination)
        paths = sorted(path for path in page.rglob("*") if path.is_file())
        files = {path.relative_to(page).as_posix(): path for path in paths}
        size = file_size(sum(path.stat().st_size for path in paths))
        print(f"pushing {len(files)} files, {size}, to the Space {destination.repo}")
        return str(commit(destination, files, student, "The page of a student").commit_url)


def _name_of(folder: Path) -> str:
    """A repository's name from the report of a run, or else the folder's: other programs write `report.json`, too."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        classes = report.get("subtask") or report["classes"]
        made_of = report["teacher"]["name"], report["student"]["recipe"], report["dataset"]["name"]
    except (FileNotFoundError, json.JSONDecodeError, LookupError, TypeError, AttributeError):
        return shortened(slug(folder.resolve().name))
    return repository_name(*made_of, classes)


@contextmanager
def _retryable(
    folder: Path, repo: str | None, private: bool | None, revision: str | None, *more: str
) -> Iterator[None]:
    """Say of any failure, or of an interruption, that the folder is whole, and what to run."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise _not_pushed(folder, repo, private, revision, "interrupted", *more) from interruption
    except HUB_ERRORS as error:
        reason = str(error) if isinstance(error, SubDistillError) else explain(error)
        raise _not_pushed(folder, repo, private, revision, reason, *more) from error


def _not_pushed(
    folder: Path, repo: str | None, private: bool | None, revision: str | None, reason: str, *more: str
) -> PushError:
    words = ["subdistill", "push", str(folder), *more, *(["--repo", repo] if repo else [])]
    words += [*(["--private"] if private else []), *(["--revision", revision] if revision else [])]
    return PushError(
        f"{folder} was not pushed{f' to {repo}' if repo else ''}: {reason}. The folder is as it was; to try again: "
        f"{shlex.join(words)}"
    )
