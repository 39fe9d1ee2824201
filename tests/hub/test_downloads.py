"""A teacher whose download fails: one message that says what to do, and a cache from which the next try goes on."""

from hashlib import sha256

import pytest

from helpers import resnet, save_teacher
from loopback_hub import ALWAYS, LoopbackHub

LOAD = """
import json, resource, signal
from subdistill_hf.errors import SubDistillError
from subdistill_hf.models.loading import load_teacher

def attempt(name):
    try:
        load_teacher(f"user/{name}")
    except SubDistillError as error:
        return str(error)
    return ""

told = {name: [attempt(name)] for name in ("missing", "gated", "refused", "broken", "cut")}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
told["full"] = [attempt("full")]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for name in told:
    told[name].append(attempt(name))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub from which a program tried to load six teachers, twice each."""
    with LoopbackHub(tmp_path_factory.mktemp("downloads")) as running:
        storage = {}
        for seed, name in enumerate(("gated", "refused", "broken", "cut", "full")):
            folder = save_teacher(tmp_path_factory.mktemp(name), resnet(widths=(8, 8, 12), seed=seed))
            running.put(f"user/{name}", folder)
            storage[name] = f"GET /storage/{sha256((folder / 'model.safetensors').read_bytes()).hexdigest()}"
        running.fail("user/gated/resolve", 403, times=ALWAYS)
        running.fail("user/refused/resolve", 401, times=ALWAYS)
        running.fail(storage["broken"], 500)
        running.cut(storage["cut"])
        running.fail(storage["cut"], 500)  # when the client goes on where it was cut
        running.told = running.answer(LOAD)
        yield running
    assert not running.errors, "\n".join(running.errors)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (
            "missing",
            "there is no such repository or branch, or the token may not see it (HTTP 404: Repository not found)",
        ),
        ("gated", "user/gated is gated: ask for access on "),
        ("refused", "the Hub does not accept the token: run `hf auth login`, or set HF_TOKEN (HTTP 401: Invalid"),
        ("broken", "the Hub has a fault of its own: try again later (HTTP 500: "),
        ("cut", "the Hub has a fault of its own: try again later (HTTP 500: "),
        ("full", "File too large"),
    ],
)
def test_a_failed_download_is_told_in_one_sentence_that_says_what_to_do(hub, name, part):
    first = hub.told[name][0]
    assert first.startswith(f"teacher 'user/{name}' cannot be loaded: ")
    assert part in first
    assert "\n" not in first


def test_the_next_try_succeeds_once_the_hub_does(hub):
    assert {name: bool(again) for name, (_, again) in hub.told.items()} == {
        "missing": True,
        "gated": True,
        "refused": True,
        "broken": False,
        "cut": False,
        "full": False,
    }


def test_every_whole_file_of_the_cache_is_the_hubs(hub):
    cache = hub.folder / "hf_home" / "hub"
    for name in ("broken", "cut", "full"):
        known = {blob.etag: blob.data for blob in hub.repos["model", f"user/{name}"].at("main").files.values()}
        whole = [
            path for path in (cache / f"models--user--{name}" / "blobs").iterdir() if path.suffix != ".incomplete"
        ]
        assert len(whole) == 3
        for path in whole:
            assert path.read_bytes() == known[path.name]
    for name in ("missing", "gated", "refused"):
        assert not list((cache / f"models--user--{name}").rglob("blobs/*"))
