"""What must not be published is found in every text that is sent: tokens, local paths, bases that nobody else has."""

import json
from pathlib import Path

import pytest

from subdistill_hf.hub.clean import UncleanError, check_clean, check_kept_card


@pytest.mark.parametrize("name", ["README.md", "config.json", "modeling_mine.py"])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token = hf_" + "abcDEF0123" * 3, "an access token"),
        ("read from {folder}/model.safetensors", "a path of this machine"),
        ("read from {folder}", "a path of this machine"),
        ("read from {home}/data", "a path of this machine"),
        ("HF_TOKEN was 'my own secret'", "an access token"),
    ],
)
def test_texts_with_tokens_or_paths_of_this_machine_are_refused(tmp_path, monkeypatch, name, text, what):
    monkeypatch.setenv("HF_TOKEN", "my own secret")
    content = text.format(folder=tmp_path, home=Path.home()).encode()
    with pytest.raises(UncleanError, match=f"{name} holds {what}.*: take it out"):
        check_clean({"fine.md": b"nothing", name: content}, tmp_path)


def test_an_adapter_needs_a_base_that_others_have(tmp_path):
    (tmp_path / "base").mkdir()
    local, remote = (json.dumps({"base_model_name_or_path": base}).encode() for base in (f"{tmp_path}/base", "a/b"))
    with pytest.raises(
        UncleanError, match=r"a folder of this machine, .*base, which nobody else has: save the student"
    ):
        check_clean({"adapter_config.json": local}, tmp_path)
    check_clean({"adapter_config.json": remote}, tmp_path)


def test_the_base_of_an_adapter_in_a_checkpoint_is_looked_at(tmp_path):
    given = {"last-checkpoint/adapter_config.json": json.dumps({"base_model_name_or_path": str(tmp_path)}).encode()}
    with pytest.raises(UncleanError, match="is for a model in a folder of this machine"):
        check_clean(given, tmp_path / "student")


def test_only_long_values_with_a_digit_that_are_no_files_are_secrets_of_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token-of-2026.txt"
    file.touch()
    values = {"SHORT_TOKEN": "resnet50", "GIT_PASSWORD_STORE": "kept in the key ring", "SSO_TOKEN_FILE": str(file)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    check_clean({"README.md": b"a resnet50, kept in the key ring"}, tmp_path / "student")
    with pytest.raises(UncleanError, match="holds a path of this machine"):
        check_clean({"README.md": f"in {file}".encode()}, tmp_path / "student")


@pytest.mark.parametrize(
    ("variable", "value", "secret"),
    [
        ("SOME_API_KEY", "the-secret-0f-the-environment", True),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI7K7MDENG/bPxRfiCYEXAMPLEKEY", True),
        ("TOKENIZER_CHECKPOINT", "google/vit-base-patch16-224", False),
        ("TOKENIZER_CACHE", "the-cache-0f-the-environment", False),
        ("TEACHER_OF_TOKENS", "google/vit-base-patch16-224", False),
    ],
)
def test_the_variable_is_named_that_a_secret_is_of(tmp_path, monkeypatch, variable, value, secret):
    """A variable with the id of a model is none of a secret, whatever it is called."""
    monkeypatch.setenv(variable, value)
    files = {"README.md": f"distilled from {value}".encode()}
    if not secret:
        check_clean(files, tmp_path)
        return
    with pytest.raises(UncleanError, match=f"environment variable {variable}: take it out, or unset") as caught:
        check_clean(files, tmp_path)
    assert value not in str(caught.value)


@pytest.mark.parametrize("place", ["home", "cache"])
def test_the_folders_of_this_machine_are_known_whatever_their_shape(tmp_path, monkeypatch, place):
    monkeypatch.setattr(Path, "home", lambda: Path("/work7/home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "/work7/cache")
    with pytest.raises(UncleanError, match=f"holds a path of this machine, /work7/{place}: take it out"):
        check_clean({"README.md": f"from /work7/{place}/x".encode()}, tmp_path)
    check_clean({"README.md": b"from /work7/other/x"}, tmp_path)


def test_what_only_looks_like_a_secret_is_fine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my own secret")
    monkeypatch.chdir("/")
    texts = ["hf_hub_download", f"{tmp_path}-other", "/usr/share/x", "from the model of user/name"]
    check_clean({"README.md": "\n".join(texts).encode(), "model.safetensors": b"my own secret"}, tmp_path)


TOKENS = [
    "hf_" + "abcDEF0123" * 3,
    "api_org_" + "abcDEF0123" * 3,
    "ghp_" + "abcDEF0123" * 4,
    "github_pat_" + "abcDEF0123" * 4,
    "sk-" + "abcDEF0123" * 4,
    "AKIA" + "ABCDEF0123456789",
    "xoxb-1234567890-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "-----BEGIN RSA PRIVATE KEY-----",
    "https://jane:secret@example.org/data",
    "s3://jane:secret/x@bucket",
    "the-secret-0f-the-environment",
]
PATHS = [
    "/home/jane/data/pets",
    "/home/Jane Doe/my data/pets",
    "/Users/Jane Doe/data",
    "/home/jane",
    "C:\\Users\\Jane Doe\\Documents\\pets",
    "c:/Users/jane/pets",
    "D:\\data\\pets",
    "D:/data/pets",
    "\\\\server\\share of Jane\\pets",
    "file:///mnt/data/pets",
    "file://server/data/pets",
]
FILES = [
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "metadata.yaml",
    "log.txt",
    "last-checkpoint/state.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("secret", TOKENS, ids=lambda secret: secret[:9])
def test_tokens_of_every_known_shape_are_found(tmp_path, monkeypatch, name, secret):
    monkeypatch.setenv("SOME_API_KEY", "the-secret-0f-the-environment")
    for text in (secret, f"key: {secret}\n", json.dumps({"key": secret})):
        with pytest.raises(UncleanError, match=f"{name} holds an access token.*: take it out") as caught:
            check_clean({name: text.encode()}, tmp_path)
        assert secret not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("path", PATHS)
def test_local_paths_of_every_machine_are_found(tmp_path, name, path):
    for text in (
        path,
        f"The images are in {path} on a disk.",
        f"`{path}`",
        f"path: '{path}'",
        json.dumps({"a": [path]}),
    ):
        with pytest.raises(UncleanError, match=f"{name} holds a path of this machine, .*: take it out"):
            check_clean({name: text.encode()}, tmp_path)


def test_folders_that_are_on_this_machine_are_found_with_blanks_in_their_names(tmp_path):
    (tmp_path / "my data" / "pets").mkdir(parents=True)
    (tmp_path / "student").mkdir()
    for path in (tmp_path / "my data" / "pets", tmp_path / "my data"):
        with pytest.raises(UncleanError, match="holds a path of this machine, "):
            check_clean({"README.md": f"Trained on {path}, all of it.".encode()}, tmp_path / "student")


@pytest.mark.parametrize(
    "text",
    [
        "See https://example.org/home/jane and https://huggingface.co/docs/hub/models.",
        "and/or, 1/2, a/b/c, ./data/pets, data/home/x, ~/.cache/huggingface",
        "/usr/bin/env python, /etc/hosts, /dev/null, /no/such/folder",
        r"$f: X \to Y$, $F:\mathbb{R}\to\mathbb{R}$, \\ \hline, a \\ \alpha \beta",
        'split("\\\\s+\\\\d"), "\\\\n\\\\t", x[a:/2], {"C:": 1}',
        "sk-learn, hf_hub_download, eyJ, task-list, https://user@example.org/x",
    ],
)
def test_what_only_looks_like_a_path_or_token_may_go(tmp_path, text):
    check_clean({"README.md": text.encode(), "config.json": json.dumps({"a": text}).encode()}, tmp_path)


def test_names_of_classes_are_no_paths(tmp_path):
    names = {"0": "/home/inside", "1": "C:\\Users\\x", "2": "cat"}
    files = {
        "config.json": json.dumps({"id2label": names}).encode(),
        "README.md": b"Classes: /home/inside, C:\\Users\\x, cat.",
    }
    check_clean(files, tmp_path)
    with pytest.raises(UncleanError, match="/home/jane"):
        check_clean(files | {"a.md": b"/home/inside and /home/jane/x"}, tmp_path)
    of_page = {"student.json": json.dumps({"labels": list(names.values())}).encode()}
    check_clean(files | of_page | {"config.json": b"{}"}, tmp_path)


@pytest.mark.parametrize("name", ["/", "//", "\\", "/home", "/home/anna", "a/b", "home/anna", "C:\\Users\\x", "c/h"])
@pytest.mark.parametrize(
    "path", ["/home/anna/secret", "/home/anna.old/x", "C:\\Users\\xenia\\pets", "C:\\Users\\x\\pets"]
)
def test_a_path_stays_one_whatever_a_class_is_called(tmp_path, name, path):
    config = {"config.json": json.dumps({"id2label": {"0": name, "1": "b"}}).encode()}
    check_clean(config, tmp_path)
    for text in (f"--dataset {path}", f"classes {name} and {name}, in `{path}`", json.dumps([name, path])):
        with pytest.raises(UncleanError, match="holds a path of this machine, "):
            check_clean(config | {"README.md": text.encode()}, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[facebook/opt](https://huggingface.co/facebook/opt) is a model",
        "datasets: someone/opt\n",
        "./opt, ../opt, ~/opt, data-/opt, C:\\opt, someone/opt/large",
        "facebook/opt\0",
    ],
)
def test_a_short_folder_of_this_machine_is_no_part_of_a_longer_name(tmp_path, monkeypatch, text):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/opt"))
    check_clean({"README.md": text.encode()}, tmp_path)


@pytest.mark.parametrize(
    "text", ["in /opt", "/opt", "PATH=/bin:/opt", "(/opt)", '{"a": "/opt/x"}', "a\0\nA/opt/x", "\0/opt"]
)
def test_a_short_folder_of_this_machine_is_found(tmp_path, monkeypatch, text):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/opt"))
    with pytest.raises(UncleanError, match="holds a path of this machine, /opt: take it out"):
        check_clean({"README.md": text.encode()}, tmp_path)


def test_files_are_read_where_they_lie(tmp_path):
    (tmp_path / "a.json").write_text("hf_" + "a" * 30, encoding="utf-8")
    with pytest.raises(UncleanError, match="holds an access token"):
        check_clean({"last-checkpoint/a.json": tmp_path / "a.json"}, tmp_path)


def test_a_card_that_a_push_would_keep_is_looked_at(tmp_path):
    check_kept_card(tmp_path)
    (tmp_path / "README.md").write_text("fine", encoding="utf-8")
    check_kept_card(tmp_path)
    (tmp_path / "README.md").write_text("in /home/jane/x", encoding="utf-8")
    with pytest.raises(UncleanError, match=r"README.md holds a path of this machine, /home/jane"):
        check_kept_card(tmp_path)
