"""Errors of the Hub in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

from huggingface_hub import constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

HTTPError = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""The base of all that the HTTP library raises, also without an answer; the client's version decides which library."""

HUB_ERRORS: Final[tuple[type[Exception], ...]] = (HTTPError, OSError, ValueError, RuntimeError)
"""The errors that the client raises: refusals and lost connections; no token, a full disk; names and metadata that are
not valid; and what it wraps around the failure of one file."""

_OF_THE_CLIENT: Final = (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled)

LOG_IN: Final = "run `hf auth login`, or set HF_TOKEN"

_STATUS: Final = {
    401: f"the Hub does not accept the token: {LOG_IN}",
    403: "the token has no right to do this: make one with the right to write at {endpoint}/settings/tokens",
    404: "there is no such repository or branch, or the token may not see it",
    408: "the Hub took too long to answer: try again later",
    409: "somebody else is changing the repository: try again",
    412: "somebody else changed the repository at the same time: try again",
    429: "the Hub asks for fewer requests: wait a few minutes",
}


def missing_place(text: str) -> str | None:
    """The message about a text that can only be a folder or file of this machine, and is none; `None` for an id."""
    if Path(text).exists() or not (
        text.startswith((".", "/", "~")) or text.endswith("/") or "\\" in text or text.count("/") > 1
    ):
        return None
    return f"there is no such folder or file{'; give the whole path in place of ~' if text.startswith('~') else ''}"


def explain(error: BaseException) -> str:
    """Say what went wrong and what to do about it.

    Args:
        error: what the client raised, see `HUB_ERRORS`; or what another library made of it, whose words may say less.

    Returns:
        One sentence without a full stop; it holds the status and the words of the server, if there were any.
    """
    wrapped = next((link for link in _chain(error) if isinstance(link, _OF_THE_CLIENT)), None)
    said = _said(wrapped or error)
    if isinstance(error, RuntimeError) and wrapped is not None:  # it names the file
        return f"{_text(error).rstrip('.')}: {said}"
    return said


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it, but for what its wrapping says better.

    A file that is not there is often only tried, and a bad request is bad in a way that the client knows of.
    """
    while error is not None:
        if isinstance(error, EntryNotFoundError | BadRequestError):
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())


def _repository_of(address: str) -> str:
    """The repository whose file is at an address: clients before version 2 name it for addresses of the API alone."""
    found = re.search(r"([^/]+/[^/]+)/resolve/", address)
    return found[1] if found else "REPOSITORY"


def _said(error: BaseException) -> str:
    """The same for one error."""
    endpoint = constants.ENDPOINT
    if isinstance(error, LocalTokenNotFoundError):
        return f"nobody is logged in to {endpoint}: {LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to reach the Hub"
    if isinstance(error, GatedRepoError):
        repo = getattr(error, "repo_id", None) or _repository_of(str(error.response.url))
        return f"{repo} is gated: ask for access on {endpoint}/{repo}, then {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        otherwise = "the Hub refuses this" if status < 500 else "the Hub has a fault of its own: try again later"
        advice = _STATUS.get(status, otherwise)
        said = error.server_message or error.response.headers.get("X-Error-Message") or error.response.reason_phrase
        return f"{advice.format(endpoint=endpoint)} (HTTP {status}: {said})"
    if isinstance(error, HTTPError):
        kind = type(error).__name__
        what = "did not answer in time" if "Timeout" in kind else "was not reached, or the connection was lost"
        return f"{endpoint} {what} ({kind}{f': {error}' if str(error) else ''})"
    return _text(error)
