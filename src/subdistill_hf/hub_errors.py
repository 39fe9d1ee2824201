"""What went wrong with the Hub, in words that say what to do."""

from __future__ import annotations

from typing import Final

from huggingface_hub import constants, errors
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

# The base of all that the HTTP library raises: httpx or httpx2, whichever the client uses.
HTTPError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

HUB_ERRORS: Final[tuple[type[Exception], ...]] = (HTTPError, OSError, ValueError, RuntimeError)
"""What the client raises: refusals and lost connections; no token, a full disk; names and metadata not valid; and what
it wraps around the failure of one file."""

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


def explain(error: BaseException) -> str:
    """Say what went wrong and what to do about it.

    Args:
        error: what the client raised, see `HUB_ERRORS`.

    Returns:
        One sentence without a full stop; it holds the status and the words of the server, if there were any.
    """
    endpoint = constants.ENDPOINT
    if isinstance(error, LocalTokenNotFoundError):
        return f"nobody is logged in to {endpoint}: {LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to reach the Hub"
    if isinstance(error, GatedRepoError):
        repo = getattr(error, "repo_id", None) or "REPOSITORY"
        return f"{repo} is gated: ask for access on {endpoint}/{repo}, then {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = _STATUS.get(status) or "the Hub has a fault of its own: try again later"
        said = error.server_message or error.response.headers.get("X-Error-Message") or error.response.reason_phrase
        return f"{advice.format(endpoint=endpoint)} (HTTP {status}: {said})"
    if isinstance(error, HTTPError):
        kind = type(error).__name__
        what = "did not answer in time" if "Timeout" in kind else "was not reached, or the connection was lost"
        return f"{endpoint} {what} ({kind}{f': {error}' if str(error) else ''})"
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HUB_ERRORS):
        return f"{text.rstrip('.')}: {explain(error.__cause__)}"
    return text
