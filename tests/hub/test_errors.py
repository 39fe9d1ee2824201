"""Failures of the Hub in words: each kind says what to do, and what the server said."""

import pytest
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import get_session

from subdistill_hf.hub.errors import HUB_ERRORS, HTTPError, explain, missing_place


def refusal(status, message=None, kind=HfHubHTTPError, path="/api/models/user/thing"):
    """An error as the client makes it from a response."""
    session = get_session()
    request = session.build_request("GET", f"http://127.0.0.1{path}")
    response_class = next(base for base in kind.__mro__ if base.__module__.startswith("httpx")).__module__
    library = __import__(response_class.partition(".")[0])
    headers = {"X-Error-Message": message} if message else {}
    return kind(
        "a long text\n\nwith a request id", response=library.Response(status, headers=headers, request=request)
    )


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (refusal(401, "Invalid credentials"), ["hf auth login", "HF_TOKEN", "(HTTP 401: Invalid credentials)"]),
        (refusal(403, "No right"), ["right to write", "/settings/tokens", "(HTTP 403: No right)"]),
        (refusal(404), ["no such repository or branch", "(HTTP 404: Not Found)"]),
        (refusal(412, "A commit has happened since"), ["changed the repository at the same time", "HTTP 412"]),
        (refusal(429, "Too many"), ["wait a few minutes", "(HTTP 429: Too many)"]),
        (refusal(400, "Bad name"), ["the Hub refuses this (HTTP 400: Bad name)"]),
        (refusal(500), ["a fault of its own", "(HTTP 500: Internal Server Error)"]),
        (refusal(403, kind=GatedRepoError), ["is gated: ask for access on"]),
        (
            refusal(403, kind=GatedRepoError, path="/user/thing/resolve/main/config.json"),
            ["user/thing is gated: ask for access on", "/user/thing, then"],
        ),
        (LocalTokenNotFoundError("Token is required to call ..."), ["nobody is logged in", "hf auth login"]),
        (OfflineModeIsEnabled("Cannot reach ..."), ["HF_HUB_OFFLINE is set"]),
        (
            OSError(28, "No space left on device", "model.safetensors"),
            ["No space left on device: 'model.safetensors'"],
        ),
        (HFValidationError("Repo id must be\nalphanumeric"), ["Repo id must be alphanumeric"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_failure_says_what_to_do(error, parts):
    assert isinstance(error, HUB_ERRORS)
    said = explain(error)
    assert "\n" not in said
    for part in parts:
        assert part in said


def wrapped(error, cause):
    cause.__cause__ = HTTPError("as the HTTP library has it")
    try:
        raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (wrapped(OSError("Can't load the model"), refusal(500, "Busy")), "the Hub has a fault of its own"),
        (
            wrapped(RuntimeError("Error while uploading 'a.b'."), refusal(429)),
            "uploading 'a.b': the Hub asks for fewer",
        ),
        (wrapped(ValueError("Invalid metadata"), refusal(400, "x", BadRequestError)), "Invalid metadata"),
        (
            wrapped(OSError("There is no weight file"), refusal(404, "x", RemoteEntryNotFoundError)),
            "There is no weight",
        ),
    ],
)
def test_what_other_libraries_wrap_is_found_unless_their_words_are_better(error, said):
    assert said in explain(error)


def test_a_lost_connection_is_told_from_one_that_is_slow():
    subclasses, kinds = [HTTPError], {}
    while subclasses:
        kind = subclasses.pop()
        kinds[kind.__name__] = kind
        subclasses += kind.__subclasses__()
    assert "did not answer in time (ReadTimeout: timed out)" in explain(kinds["ReadTimeout"]("timed out"))
    assert "was not reached, or the connection was lost (ReadError)" in explain(kinds["ReadError"](""))


def test_what_cannot_be_an_id_is_a_place_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for text in ("./here", "here/", str(tmp_path), "digits", "owner/name", "timm/resnet18.a1_in1k"):
        assert missing_place(text) is None
    for text in ("./gone", "/gone", "gone/", "a/b/c", "C:\\gone"):
        assert missing_place(text) == "there is no such folder or file"
    assert missing_place("~/gone") == "there is no such folder or file; give the whole path in place of ~"
