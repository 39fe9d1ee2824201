"""The loopback Hub, seen through the unmodified clients: round trips, and what each failure becomes."""

import os
import socket
import threading
import time
import urllib.error
import urllib.request

import huggingface_hub
import pytest

from helpers import version_of
from loopback_hub import ALWAYS, LoopbackHub

WATCHED = """
import json, sys

def attempt(code):
    try:
        exec(code)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""

print(json.dumps([attempt(code) for code in sys.argv[1:]]))
"""
DOWNLOAD = "from huggingface_hub import hf_hub_download; hf_hub_download('user/thing', 'model.safetensors')"
UPLOAD = "from huggingface_hub import upload_folder; upload_folder(repo_id='user/thing', folder_path='folder')"


def errors_of(hub, *codes, **env):
    """Class and text of the exception that ends each piece of code, empty if none does; all in one program."""
    return hub.answer(WATCHED, *codes, **env)


OK = ["", ""]


def write_folder(folder):
    """Files that go to git and to the large file storage."""
    files = {
        "README.md": b"---\ntags: [tiny]\npipeline_tag: image-classification\n---\n# Card\n",
        "empty.txt": b"",
        "notes/déjà vu #1.txt": "déjà vu".encode(),
        "model.safetensors": os.urandom(300_000),
    }
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return files


def downloaded(hub):
    """The files in the client's cache, by name; those of which a part is there as well."""
    cache = hub.folder / "hf_home" / "hub" / "models--user--thing"
    found = [path for part in ("blobs", "snapshots") for path in (cache / part).rglob("*")]
    return [path.name for path in found if path.is_file() and path.suffix != ".incomplete"]


def test_a_folder_makes_the_round_trip_byte_by_byte(hub):
    files = write_folder(hub.folder / "folder")
    answers = hub.answer(
        """
        import json
        from pathlib import Path
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download

        api = HfApi()
        before = api.repo_exists("user/thing")
        created = api.create_repo("thing").repo_id
        commit = api.upload_folder(repo_id="user/thing", folder_path="folder", commit_message="all of it").oid
        snapshot = Path(snapshot_download("user/thing"))
        same = [path.read_bytes() == (snapshot / path.relative_to("folder")).read_bytes()
                for path in Path("folder").rglob("*") if path.is_file()]
        one = hf_hub_download("user/thing", "model.safetensors", revision=commit, local_dir="elsewhere")
        answers = {
            "name": api.whoami()["name"],
            "before": before,
            "created": created,
            "same": same,
            "one": Path(one).read_bytes() == Path("folder/model.safetensors").read_bytes(),
            "commit": snapshot.name == commit == api.model_info("user/thing").sha,
            "listed": api.list_repo_files("user/thing"),
            "large": [info.lfs.size for info in api.get_paths_info("user/thing", ["model.safetensors", "notes"])
                      if hasattr(info, "lfs")],
            "task": api.model_info("user/thing").pipeline_tag,
            "found": [model.id for model in api.list_models(author="user")],
        }
        api.delete_repo("user/thing")
        print(json.dumps(answers | {"after": api.repo_exists("user/thing")}))
        """
    )
    assert answers == {
        "name": "user",
        "before": False,
        "created": "user/thing",
        "same": [True] * 4,
        "one": True,
        "commit": True,
        "listed": sorted([".gitattributes", *files]),
        "large": [300_000],
        "task": "image-classification",
        "found": ["user/thing"],
        "after": False,
    }
    assert len([request for request in hub.requests if request.startswith("PUT /storage/")]) == 1


def test_a_test_can_see_what_is_there(hub):
    files = write_folder(hub.folder / "folder")
    hub.put("user/thing", {"model.safetensors": b"old", "other.txt": b"stays"})
    assert errors_of(hub, UPLOAD, UPLOAD) == [OK, OK]
    assert hub.files("user/thing") == files | {"other.txt": b"stays"}
    titles = [commit.title for commit in hub.commits("user/thing")]
    assert titles == ["initial commit", "put", "Upload folder using huggingface_hub"]  # the second had nothing new
    assert hub.files("user/thing", revision=hub.commits("user/thing")[1].oid)["model.safetensors"] == b"old"


def test_what_is_cached_is_not_fetched_again(hub):
    hub.put("user/thing", write_folder(hub.folder / "folder"))
    card = DOWNLOAD.replace("model.safetensors", "README.md")
    assert errors_of(hub, DOWNLOAD, card, DOWNLOAD) == [OK] * 3
    assert [request.split()[0] for request in hub.requests] == ["HEAD", "GET", "HEAD", "GET", "HEAD"]

    hub.put("user/thing", {"empty.txt": b"changed"})  # a new commit, where the others are the same
    hub.requests.clear()
    assert errors_of(hub, DOWNLOAD, card) == [OK, OK]
    assert [request.split()[0] for request in hub.requests] == ["HEAD", "HEAD"]

    hub.put("user/thing", {"model.safetensors": b"new"})
    hub.requests.clear()
    assert errors_of(hub, DOWNLOAD) == [OK]
    assert [request.split()[0] for request in hub.requests] == ["HEAD", "GET"]


def test_a_branch_has_commits_of_its_own(hub):
    hub.put("user/thing", {"notes.txt": b"main"})
    read = hub.answer(
        """
        import json
        from pathlib import Path
        from huggingface_hub import create_branch, hf_hub_download, upload_file

        create_branch("user/thing", branch="try/this")
        upload_file(repo_id="user/thing", path_in_repo="notes.txt", path_or_fileobj=b"tried", revision="try/this")
        print(json.dumps([Path(hf_hub_download("user/thing", "notes.txt", revision=branch)).read_text()
                          for branch in ("main", "try/this")]))
        """
    )
    assert read == ["main", "tried"]


def test_a_private_repository_needs_the_token(hub):
    create = "from huggingface_hub import create_repo; create_repo('user/thing', private=True)"
    assert [error for error, _ in errors_of(hub, create, DOWNLOAD)] == ["", "RemoteEntryNotFoundError"]
    assert [error for error, _ in errors_of(hub, DOWNLOAD, HF_TOKEN=None)] == ["RepositoryNotFoundError"]


# The other clients


def test_transformers_pushes_and_loads_a_model(hub):
    hub.fail("user/gated/resolve", 403, times=ALWAYS)
    answers = hub.answer(
        """
        import json
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

        config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                           image_size=8, patch_size=4, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
        model = ViTForImageClassification(config).eval()
        model.push_to_hub("user/tiny")
        ViTImageProcessor(size={"height": 8, "width": 8}).push_to_hub("user/tiny")
        loaded, processor = (auto.from_pretrained("user/tiny")
                             for auto in (AutoModelForImageClassification, AutoImageProcessor))
        images = torch.rand(2, 3, 8, 8)
        with torch.no_grad():
            same = torch.equal(model(images).logits, loaded(images).logits)
        try:
            AutoModelForImageClassification.from_pretrained("user/gated")
        except OSError as error:
            gated = str(error)
        print(json.dumps({"same": same, "labels": loaded.config.label2id, "size": processor.size["height"],
                          "gated": gated}))
        """
    )
    assert "gated repo" in answers.pop("gated")
    assert answers == {"same": True, "labels": {"cat": 0, "dog": 1}, "size": 8}
    assert set(hub.files("user/tiny")) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_datasets_pushes_and_loads_images(hub):
    hub.fail("user/gated/resolve", 403, times=ALWAYS)
    answers = hub.answer(
        """
        import json
        import numpy as np
        from datasets import ClassLabel, Dataset, Features, Image, load_dataset

        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
        features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "cow"])})
        rows = Dataset.from_dict({"image": list(pixels), "label": [0, 1, 2] * 2}, features=features)
        rows.push_to_hub("user/images", split="train")
        rows.select(range(3)).push_to_hub("user/images", split="test")
        loaded = load_dataset("user/images")
        streamed = list(load_dataset("user/images", split="test", streaming=True))
        try:
            load_dataset("user/gated")
        except Exception as error:
            gated = [type(error).__name__, str(error)]
        print(json.dumps({
            "rows": {name: len(split) for name, split in loaded.items()},
            "features": loaded["train"].features == features,
            "same": all((np.asarray(image) == wanted).all()
                        for image, wanted in zip(loaded["train"]["image"], pixels, strict=True)),
            "streamed": [row["label"] for row in streamed],
            "gated": gated,
        }))
        """
    )
    assert answers == {
        "rows": {"train": 6, "test": 3},
        "features": True,
        "same": True,
        "streamed": [0, 1, 2],
        "gated": ["DatasetNotFoundError", answers["gated"][1]],
    }
    assert "gated dataset" in answers["gated"][1]
    shards = {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"}
    assert set(hub.files("user/images", "dataset")) == {"README.md"} | shards


# Failures


@pytest.mark.parametrize(
    ("match", "status", "error", "text"),
    [
        ("resolve", 401, "HfHubHTTPError", "401"),
        ("resolve", 403, "GatedRepoError", "Cannot access gated repo"),
        ("resolve", 404, "RepositoryNotFoundError", "Repository Not Found"),
        ("GET /storage/", 500, "HfHubHTTPError", "500"),
    ],
)
def test_a_refused_download_raises_and_leaves_nothing(hub, match, status, error, text):
    hub.put("user/thing", {"model.safetensors": b"weights"})
    hub.fail(match, status)
    [[name, message]] = errors_of(hub, DOWNLOAD)
    assert name == error
    assert text in message
    assert downloaded(hub) == []


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("'user/nothing', 'model.safetensors'", "RepositoryNotFoundError"),
        ("'user/thing', 'nothing.txt'", "RemoteEntryNotFoundError"),
        ("'user/thing', 'model.safetensors', revision='nothing'", "RevisionNotFoundError"),
    ],
)
def test_what_is_not_there_is_named(hub, asked, error):
    hub.put("user/thing", {"model.safetensors": b"weights"})
    code = f"from huggingface_hub import hf_hub_download; hf_hub_download({asked})"
    assert errors_of(hub, code)[0][0] == error


@pytest.mark.parametrize(
    ("match", "status", "errors", "text"),
    [
        ("preupload", 401, {"HfHubHTTPError"}, "401"),
        ("preupload", 403, {"HfHubHTTPError"}, "no right to write"),
        ("commit", 429, {"HfHubHTTPError"}, "429 Too Many Requests"),
        ("commit", 500, {"HfHubHTTPError"}, "500"),
        ("commit", "cut", {"ReadError", "WriteError", "RemoteProtocolError"}, ""),
    ],
)
def test_a_refused_upload_raises_and_changes_nothing(hub, match, status, errors, text):
    files = write_folder(hub.folder / "folder")
    hub.put("user/thing", {"model.safetensors": b"old"})
    if status == "cut":
        hub.cut(match)
    else:
        hub.fail(match, status)
    [name, message], second = errors_of(hub, UPLOAD, UPLOAD)
    assert name in errors
    assert text in message
    assert second == OK
    assert hub.files("user/thing") == files
    assert len(hub.commits("user/thing")) == 3  # the repository's own, the old file, and one of the two


def test_a_bad_token_is_told(hub):
    code = "from huggingface_hub import whoami; whoami()"
    [[_, message]] = errors_of(hub, code, HF_TOKEN="hf_wrong")
    assert "HF_TOKEN environment variable is invalid" in message
    hub.fail("whoami", 429)
    [_, message], second = errors_of(hub, code, code)
    assert "rate limit" in message
    assert second == OK


def test_a_download_outlives_what_passes(hub):
    """Four files, each with a fault of its own; they are fetched side by side."""
    files = {name: os.urandom(50_000) for name in ("later.bin", "broken.bin", "cut.bin", "slow.bin")}
    blobs = hub.put("user/thing", files).at("main").files
    hub.fail("HEAD .*later.bin", 429, times=2)
    hub.fail("HEAD .*broken.bin", 500, times=2)
    hub.cut(f"GET /storage/{blobs['cut.bin'].sha256}")
    if version_of(huggingface_hub) >= (2, 2):  # the first that tries again where an answer does not begin
        hub.slow(f"GET /storage/{blobs['slow.bin'].sha256}", seconds=30)
    code = (
        "from huggingface_hub import snapshot_download; from pathlib import Path\n"
        "for path in Path(snapshot_download('user/thing')).iterdir():\n"
        "    Path(path.name).write_bytes(path.read_bytes())"
    )
    started = time.monotonic()
    assert errors_of(hub, code, HF_HUB_DOWNLOAD_TIMEOUT="1") == [OK]
    assert time.monotonic() - started < 20
    assert all((hub.folder / name).read_bytes() == data for name, data in files.items())
    assert all(fault.times == 0 for fault in hub.faults)


def test_a_download_that_is_cut_goes_on_where_it_was(hub):
    data = os.urandom(21 * 1024 * 1024)  # the client writes 10 MiB at a time
    hub.put("user/thing", {"model.safetensors": data})
    hub.cut("GET /storage/")
    assert errors_of(hub, DOWNLOAD.replace("')", "', local_dir='here')")) == [OK]
    assert (hub.folder / "here" / "model.safetensors").read_bytes() == data
    assert hub.requests[-1].endswith(f"bytes={10 * 1024 * 1024}-")


def test_half_a_download_is_not_taken_for_a_whole_one(hub):
    hub.put("user/thing", {"model.safetensors": bytes(1000)})
    hub.cut("GET /storage/")
    hub.fail("GET /storage/", 500)
    assert errors_of(hub, DOWNLOAD)[0][0] == "HfHubHTTPError"
    assert downloaded(hub) == []


def test_an_answer_that_is_cut_raises(hub):
    hub.put("user/thing", {})
    hub.cut("GET /api/models/user/thing")
    code = "from huggingface_hub import model_info; model_info('user/thing')"
    assert errors_of(hub, code)[0][0] == "RemoteProtocolError"


def test_an_upload_outlives_what_passes(hub):
    files = write_folder(hub.folder / "folder")
    hub.put("user/thing", {})
    hub.fail("preupload", 429)
    hub.cut("PUT /storage/")
    hub.slow("commit", seconds=0.5)
    assert errors_of(hub, UPLOAD) == [OK]
    assert hub.files("user/thing") == files
    assert all(fault.times == 0 for fault in hub.faults)


# The server itself


def test_the_storage_serves_ranges_and_refuses_the_token(hub):
    """A client that sends the token there fails, as it would with the real one."""
    hub.put("user/thing", {"model.safetensors": b"weights"})
    request = urllib.request.Request(f"{hub.storage_url}/storage/{next(iter(hub.stored))}")
    request.add_header("Range", "bytes=2-4")
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, b"igh", "bytes 2-4/7")
    request.add_header("Authorization", f"Bearer {hub.token}")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_it_stops_at_once_and_leaves_no_thread(tmp_path):
    before = set(threading.enumerate())
    hub = LoopbackHub(tmp_path)
    hub.slow("GET /api/models", seconds=60)
    port = int(hub.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as waiting:
        waiting.sendall(b"GET /api/models HTTP/1.1\r\nHost: loopback\r\n\r\n")
        while not hub.requests:
            time.sleep(0.01)
        started = time.monotonic()
        hub.stop()
        assert waiting.recv(1) == b""
    assert time.monotonic() - started < 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() - started < 5, left
