"""Nothing of this machine's folders stays in a command or a value, and nothing else is shortened."""

import shlex

import pytest

from subdistill_hf.reporting.local_paths import command_without_folders, file_name, without_folders


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/teachers/resnet", "resnet"),
        ("/home/Jane Doe/my teachers/big resnet/", "big resnet"),
        ("~/students/a", "a"),
        ("~jane/students/a", "a"),
        ("C:\\Users\\Jane Doe\\Documents\\my student", "my student"),
        ("D:/data/x y", "x y"),
        ("\\\\server\\share of Jane\\pictures", "pictures"),
        ("//server/share/pictures", "pictures"),
        ("file:///home/Jane Doe/x", "x"),
        ("/home/Jane Doe", "~"),
        ("/Users/jane/", "~"),
        ("C:\\Users\\Jane Doe", "~"),
        ("~", "~"),
        ("../../home/Jane Doe/pets", "pets"),
        ("..\\Jane\\pets", "pets"),
        ("file:/home/jane/pets", "pets"),
        ("file://server/Jane/pets", "pets"),
        ("\\\\?\\C:\\Users\\Jane\\pets", "pets"),
        ("/", "/"),
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("data/my pictures", "data/my pictures"),
        ("https://huggingface.co/google/vit", "https://huggingface.co/google/vit"),
        ("resnet:widths=16-24", "resnet:widths=16-24"),
    ],
)
def test_of_a_path_the_name_of_the_file_stays(path, name):
    assert file_name(path) == name
    assert without_folders(path) == name


def test_paths_with_blanks_are_found_in_texts_by_their_quotes():
    code = 'pipeline(model="/tmp/run 1/student")  # see https://huggingface.co/docs/hub/models or /usr/share/x'
    assert without_folders(code) == 'pipeline(model="student")  # see https://huggingface.co/docs/hub/models or x'
    values = {"folder": "/home/Jane Doe/x", "list": ("~/a b/c", 1), "kwargs": "{'log': 'C:\\Users\\Jane Doe\\l.txt'}"}
    assert without_folders(values) == {"folder": "x", "list": ["c", 1], "kwargs": "{'log': 'l.txt'}"}


def test_the_words_of_a_command_are_shortened_each_by_itself():
    command = (
        "subdistill distill --teacher='/home/Jane Doe/my teachers/resnet' --dataset '/mnt/a b/pictures' --layers a=b "
        "--student timm/resnet18 --output_dir '~/students/a' --logging-dir 'C:\\Users\\Jane Doe\\logs' -v 1/2"
    )
    assert command_without_folders(command) == (
        "subdistill distill --teacher=resnet --dataset pictures --layers a=b --student timm/resnet18 --output_dir a "
        "--logging-dir logs -v 1/2"
    )


def test_names_of_classes_in_a_command_are_no_paths():
    command = (
        "subdistill distill --classes /a/airfield '/b/bazaar/indoor stalls' --mark-classes=/m/market/indoor "
        "--output_dir /tmp/x/y"
    )
    assert command_without_folders(command) == command.replace("/tmp/x/y", "y")


@pytest.mark.parametrize("password", ["pw", "p/w+x=", "p:w", "p@w", "/home/me/x"])
def test_no_password_of_an_address_stays(password):
    place = f"s3://key:{password}@bucket/targets"
    for option in ("--teacher_cache_dir {}", "--teacher_cache_dir={}", '--deepspeed \'{{"a": "{}"}}\'', "{} 'x"):
        command = f"subdistill distill {option.format(place)}"
        assert command_without_folders(command) == command.replace(f"key:{password}@", "")
    assert without_folders({"a": [place, f"to {place}."]}) == {"a": ["s3://bucket/targets", "to s3://bucket/targets."]}


def test_a_text_that_is_no_command_of_a_shell_is_shortened_as_a_text():
    assert command_without_folders("don't write to /home/me/x") == "don't write to x"


HOMES = [
    "/home/jane",
    "/home/Jane Doe",
    "/Users/Jane Q Doe",
    "C:\\Users\\Jane Doe",
    "C:\\\\Users\\\\Jane Doe",
    "d:/Users/Jane Doe",
    "file:///home/Jane Doe",
    "file:///C:/Users/Jane Doe",
    "\\\\server\\Jane",
    "//server/Jane",
    "~jane",
]
TEXTS = [
    "{path}",
    "the student of {path}, which is there",
    "'{path}'",
    '"{path}": 3',
    "read {path}",
    "loss({path})",
    "see `{path}` and https://huggingface.co/docs",
    "{{'folder': '{path}', 'n': 1}}",
]


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("below", ["pets", "data/pets", "a/b c/../pets"])
def test_no_part_of_a_home_folder_stays_whatever_its_name_and_wherever_it_stands(home, below):
    path = f"{home}/{below}" if "/" in home else f"{home}\\{below}".replace("/", "\\")
    for text in TEXTS:
        if " c/" in below and text in (TEXTS[1], TEXTS[4], TEXTS[5]):
            continue  # where a path with blanks ends can be told by quotes alone
        short = without_folders(text.format(path=path))
        assert "jane" not in short.lower(), (text, short)
        assert "doe" not in short.lower(), (text, short)
        assert "pets" in short
    for option in ("--dataset={}", "--dataset {}", "--teacher_cache_dir={}", "--lr-scheduler-kwargs={}"):
        command = f"subdistill distill {option.format(shlex.quote(path))} --max_steps 3"
        assert command_without_folders(command) == f"subdistill distill {option.format('pets')} --max_steps 3"


@pytest.mark.parametrize("home", [home for home in HOMES if "server" not in home and "~" not in home])
def test_a_home_folder_itself_is_a_tilde(home):
    short = without_folders(f"read '{home}'")
    assert short == "read '~'"
    assert "jane" not in without_folders(f"read {home} now").lower()


def test_the_home_folder_of_this_machine_is_known_by_its_name(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/people/Jane Doe")
    monkeypatch.setenv("USERPROFILE", "/srv/people/Jane Doe")
    assert without_folders("read /srv/people/Jane Doe/x/y and write /srv/people/Jane Doe") == "read y and write ~"
