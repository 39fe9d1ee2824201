"""`subdistill push` and `--push_to_hub` against a Hub on loopback: what arrives, and what each failure leaves."""

import json
import shlex
import shutil
from hashlib import sha256

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from helpers import NAMES, processor, resnet, save_teacher, write_image_folder
from loopback_hub import LoopbackHub, Repo
from programs import QUICK_REPORTS
from subdistill_hf.cli.distill import make_parser
from subdistill_hf.hub.files import EXPORT_FILE, weights_identity
from subdistill_hf.hub.publish import PushError, push_folder
from subdistill_hf.hub.snippet import hub_code, local_code
from subdistill_hf.models.adapters import save_adapter

SECRETS = ("report.json", "alignments.safetensors", "runs/kd/checkpoint-1/optimizer.pt", "runs/kd/model.safetensors")
STUDENT = {"README.md", "config.json", "confusion.png", "example.png", "model.safetensors", "preprocessor_config.json"}

PROGRAM = """
import contextlib, io, json, sys
from subdistill_hf.cli import main

outcomes = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    outcomes.append([status, out.getvalue(), err.getvalue()])
print(json.dumps([outcomes, "torch" in sys.modules]))
"""
LOAD = """
import json, sys
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo = sys.argv[1]
model = AutoModelForImageClassification.from_pretrained(repo).eval()
images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = model(images).logits.tolist()
classify = pipeline("image-classification", model=repo)
answers = {answer["label"]: answer["score"] for answer in classify(hf_hub_download(repo, "example.png"))}
from pathlib import Path
exec(Path(hf_hub_download(repo, "README.md")).read_text().split("```python\\n")[1].split("```")[0])
print(json.dumps({"logits": logits, "answers": answers, "ours": [m for m in sys.modules if m.startswith("subdist")]}))
"""

LOGITS = """
import json, sys
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    print(json.dumps(model(torch.ones(1, 3, 32, 32)).logits.tolist()))
"""


def write_student(folder, seed=0):
    """What a run leaves: a student with its card, and things beside it that are nobody's business."""
    model = resnet(widths=(8, 8, 12), seed=seed)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    for name in ("example.png", "confusion.png"):
        Image.effect_noise((32, 32), 40).convert("RGB").save(folder / name)
    card = f"---\ntags:\n- subdistill\n---\n# Card\n\n```python\n{local_code()}\n```\n\n![Confusion](confusion.png)\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    for name in SECRETS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"secret")
    report = {
        "teacher": {"name": "google/vit-base-patch16-224"},
        "student": {"recipe": "timm/mobilenetv4_conv_small.e2400_r224_in1k"},
        "dataset": {"name": "uoft-cs/cifar100"},
        "classes": list(NAMES),
        "subtask": ["superclass:fish"],
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return model.eval()


def state_of(folder):
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def push(hub, *runs, fresh=False, **environment):
    """Status, output and errors of each `subdistill push` with these arguments; all in one program."""
    commands = json.dumps([["push", *map(str, run)] for run in runs])
    outcomes, with_torch = hub.answer(PROGRAM, commands, fresh=fresh, **environment)
    assert not (fresh and with_torch)
    return outcomes


# What arrives


def test_a_push_makes_the_repository_and_a_fresh_process_gives_the_same_answers(hub):
    model = write_student(hub.folder / "student")
    before = state_of(hub.folder / "student")
    name = "user/vit-base-patch16-224-mobilenetv4_conv_small-fish"
    [[status, printed, said]] = push(hub, ["student"], fresh=True)
    assert (status, said) == (0, "")
    assert "pushing 6 files" in printed
    assert f"{hub.url}/{name}/commit/" in printed
    assert state_of(hub.folder / "student") == before

    files = hub.files(name)
    assert set(files) == STUDENT
    for one in STUDENT - {"README.md"}:
        assert files[one] == (hub.folder / "student" / one).read_bytes()
    card = files["README.md"].decode()
    assert hub_code(name) in card
    assert local_code() not in card
    assert [commit.title for commit in hub.commits(name)] == ["initial commit", "Student, processor and card"]
    assert not hub.repos["model", name].private

    done = hub.run(LOAD, name, fresh=True)
    assert done.returncode == 0, done.stderr
    *snippet, last = done.stdout.splitlines()
    loaded = json.loads(last)
    assert loaded["ours"] == []
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert loaded["logits"] == model(images).logits.tolist()
    assert snippet == [f"{label}: {score:.3f}" for label, score in loaded["answers"].items()]
    assert set(loaded["answers"]) == set(NAMES)


def test_name_visibility_and_branch_are_as_asked_for(hub):
    write_student(hub.folder / "student")
    runs = [
        ["student", "--repo", "mine", "--private", "--revision", "try"],
        ["student", "--repo", "user/public"],
        ["student", "--repo", "user/public"],
        ["student", "--repo", "user/public", "--private"],
    ]
    outcomes = push(hub, *runs)
    assert [status for status, _, _ in outcomes] == [0, 0, 0, 1]
    assert hub.repos["model", "user/mine"].private
    assert set(hub.files("user/mine")) == set()
    assert set(hub.files("user/mine", revision="try")) == STUDENT
    assert hub_code("user/mine", "try") in hub.files("user/mine", revision="try")["README.md"].decode()
    assert 'revision="try"' in hub_code("user/mine", "try")
    assert len(hub.commits("user/public")) == 2  # the second push changed nothing
    assert "exists and is public, and private was asked for" in outcomes[3][2]
    assert not hub.repos["model", "user/public"].private


def test_a_card_that_its_user_rewrote_is_pushed_as_it_is(hub):
    write_student(hub.folder / "student")
    card = b"---\nlicense: mit\n---\n# Mine\n"
    (hub.folder / "student" / "README.md").write_bytes(card)
    assert push(hub, ["student", "--repo", "mine"])[0][0] == 0
    assert hub.files("user/mine")["README.md"] == card


def load_from_the_hub(hub, name):
    """The logits of the student that plain transformers loads from a repository."""
    return hub.answer(LOGITS, name, HF_HOME=str(hub.folder / "an_empty_cache"))


def test_a_merged_student_takes_the_place_of_an_adapter(hub):
    """Beside the old adapter's files, transformers would load the old adapter."""
    base = resnet(widths=(8, 8, 12), seed=5)
    base.save_pretrained(hub.folder / "base")
    hub.put("user/base", hub.folder / "base")
    write_student(hub.folder / "adapter")
    (hub.folder / "adapter" / "model.safetensors").unlink()
    settings = LoraConfig(target_modules=["classifier.1"], r=2, base_model_name_or_path="user/base")
    adapter = get_peft_model(base, settings)
    adapter.peft_config["default"].base_model_name_or_path = "user/base"
    save_adapter(adapter, hub.folder / "adapter")
    merged = write_student(hub.folder / "merged", seed=1)
    with torch.no_grad():
        expected = merged(torch.ones(1, 3, 32, 32)).logits.tolist()

    assert push(hub, ["adapter", "--repo", "r"])[0][0] == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files("user/r").keys()
    hub.put("user/r", {"LICENSE": b"of the user", "notes.png": b"of the user"})
    assert push(hub, ["merged", "--repo", "r"])[0][0] == 0
    assert set(hub.files("user/r")) == STUDENT | {"LICENSE", "notes.png"}
    assert ".gitattributes" in hub.commits("user/r")[-1].files
    assert load_from_the_hub(hub, "user/r") == expected
    assert push(hub, ["adapter", "--repo", "r"])[0][0] == 0
    assert "model.safetensors" not in hub.files("user/r")


def export(folder, *names):
    """Files for devices of the student's weights, which nothing runs."""
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    (folder / "onnx").mkdir()
    for name in names:
        (folder / "onnx" / name).write_bytes(f"{name} of {weights_identity(folder)}".encode())
    (folder / "onnx" / EXPORT_FILE).write_text(json.dumps({"weights": weights_identity(folder)}), encoding="utf-8")


def test_no_file_for_devices_of_an_earlier_student_stays(hub):
    student, both = hub.folder / "student", ("model.onnx", "model_quantized.onnx")
    exported = []
    for seed, names in enumerate((both, both[:1], ())):
        write_student(student, seed)
        export(student, *names)
        if not names:
            shutil.rmtree(student / "onnx")
        assert push(hub, ["student", "--repo", "r"])[0][0] == 0
        exported.append({name for name in hub.files("user/r") if name.startswith("onnx/")})
    assert exported == [
        {f"onnx/{name}" for name in (*both, EXPORT_FILE)},
        {"onnx/model.onnx", "onnx/export.json"},
        set(),
    ]
    assert [len(commit.files) for commit in hub.commits("user/r")] == [1, 10, 9, 7]  # one commit each
    write_student(student, 3)
    (student / "README.md").write_text("# Mine, without pictures", encoding="utf-8")
    assert push(hub, ["student", "--repo", "r"])[0][0] == 0
    assert set(hub.files("user/r")) == STUDENT - {"confusion.png"}


CHECKPOINTS = """
import json, sys
from pathlib import Path
from subdistill_hf.hub.publish import Destination, push_checkpoint

made = [push_checkpoint(Path(name), Destination("user/r"), name, whole="last-checkpoint") for name in sys.argv[1:]]
print(json.dumps([push.result().commit_message for push in made]))
"""


def test_the_last_checkpoint_on_the_hub_is_one_checkpoint(hub):
    """Both pushes are in the background: the second one sees what the first has left."""
    hub.put("user/r", {"README.md": b"# Mine", "confusion.png": b"of the card"})
    files = {
        "first": ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt"],
        "second": ["model.safetensors", "config.json"],
    }
    for name, names in files.items():
        (hub.folder / name).mkdir()
        for one in names:
            (hub.folder / name / one).write_text('{"base_model_name_or_path": "user/base"}', encoding="utf-8")
    assert hub.answer(CHECKPOINTS, *files) == list(files)
    second = {*files["second"], *(f"last-checkpoint/{one}" for one in files["second"])}
    assert set(hub.files("user/r")) == second | {"README.md", "confusion.png"}


# What fails


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"HF_TOKEN": None}, ["nobody is logged in", "hf auth login"]),
        ({"HF_TOKEN": "hf_wrong"}, ["does not accept the token", "HTTP 401"]),
        ({"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set"]),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ["http://127.0.0.1:9 was not reached"]),
    ],
)
def test_who_is_not_signed_in_is_told_so(hub, environment, parts):
    write_student(hub.folder / "student")
    before = state_of(hub.folder / "student")
    [[status, printed, said]] = push(hub, ["student", "--private"], **environment)
    assert (status, printed) == (1, "")
    assert said.count("\n") == 1
    assert said.startswith("error: student was not pushed: ")
    assert said.endswith("to try again: subdistill push student --private\n")
    for part in parts:
        assert part in said
    assert state_of(hub.folder / "student") == before
    assert hub.repos == {}


FAULTS = {
    "create-403": ("POST /api/repos/create", 403, "HTTP 403"),
    "check-403": ("auth-check/write", 403, "HTTP 403"),
    "preupload-401": ("preupload", 401, "HTTP 401"),
    "preupload-404": ("preupload", 404, "no such repository"),
    "batch-403": ("lfs/objects/batch", 403, "HTTP 403"),
    "storage-403": ("PUT /storage/{sha}", 403, "Error while uploading 'model.safetensors' to the Hub: the token"),
    "commit-429": ("commit", 429, "wait a few minutes"),
    "commit-500": ("commit", 500, "a fault of its own"),
    "commit-cut": ("commit", "cut", "the connection was lost"),
}


def test_a_push_that_fails_leaves_both_sides_whole_and_the_next_one_succeeds(hub):
    """Each fault hits the first push to a repository of its own; the command of the message pushes again."""
    for seed, (name, (match, fault, _)) in enumerate(FAULTS.items()):
        write_student(hub.folder / name, seed)
        sha = sha256((hub.folder / name / "model.safetensors").read_bytes()).hexdigest()
        place = match.format(sha=sha) if match.startswith("P") else f"user/{name}.*{match}"
        if fault == "cut":
            hub.cut(place)
        else:
            hub.fail(place, fault)
    before = state_of(hub.folder)
    outcomes = push(hub, *([name, "--repo", f"user/{name}"] for name in FAULTS))
    for (name, (_, _, part)), (status, _, said) in zip(FAULTS.items(), outcomes, strict=True):
        assert status == 1, name
        assert f"error: {name} was not pushed to user/{name}: " in said
        assert part in said, name
        assert said.count("\n") == 1
        assert name == "create-403" or hub.files(f"user/{name}") == {}
    assert ("model", "user/create-403") not in hub.repos
    again = [shlex.split(said.partition("to try again: ")[2])[2:] for _, _, said in outcomes]
    assert again == [[name, "--repo", f"user/{name}"] for name in FAULTS]
    assert [status for status, _, _ in push(hub, *again)] == [0] * len(FAULTS)
    for name in FAULTS:
        assert set(hub.files(f"user/{name}")) == STUDENT
    assert {name: digest for name, digest in state_of(hub.folder).items() if name in before} == before


def test_a_hub_that_takes_connections_and_never_answers_is_given_up(hub):
    """The client itself would wait for ever; nothing else is asked for while it waits."""
    hub.slow("GET /api/models/user/private", seconds=3600)
    hub.slow("POST /api/models/user/commit/commit", seconds=3600)
    write_student(hub.folder / "student")
    before = state_of(hub.folder / "student")
    runs = [["push", "student", "--repo", "private", "--private"], ["push", "student", "--repo", "commit"]]
    sooner = "import subdistill_hf.hub.client\nsubdistill_hf.hub.client.LONGEST_WAIT = 3\n"
    outcomes, _ = hub.answer(sooner + PROGRAM, json.dumps(runs), HF_HUB_DOWNLOAD_TIMEOUT="3")
    for status, _, said in outcomes:
        assert status == 1
        assert "did not answer in time (ReadTimeout" in said
        assert "to try again: subdistill push student" in said
    assert state_of(hub.folder / "student") == before
    assert hub.files("user/commit") == hub.files("user/private") == {}


def test_somebody_elses_repository_cannot_be_written(hub):
    write_student(hub.folder / "student")
    hub.repos["model", "other/thing"] = Repo("model", "other/thing")
    outcomes = push(hub, ["student", "--repo", "other/thing"], ["student", "--repo", "other/new"])
    for status, _, said in outcomes:
        assert status == 1
        assert "the token has no right to do this" in said
    assert ("model", "other/new") not in hub.repos
    assert hub.files("other/thing") == {}


def test_folders_that_cannot_be_pushed_are_refused_and_nothing_is_uploaded(hub):
    write_student(hub.folder / "student")
    (hub.folder / "empty").mkdir()
    (hub.folder / "student" / "README.md").write_text(f"made in {hub.folder / 'student'}", encoding="utf-8")
    outcomes = push(hub, ["empty"], ["nowhere"], ["student"])
    for (status, _, said), part in zip(
        outcomes, ("holds no student", "holds no student", "README.md holds a path of this machine"), strict=True
    ):
        assert status == 1
        assert part in said
    assert all(hub.files(name) == {} for _, name in hub.repos)


def test_a_card_whose_metadata_do_not_parse_is_refused(hub):
    write_student(hub.folder / "student")
    (hub.folder / "student" / "README.md").write_text("---\ntags: [a\n---\n", encoding="utf-8")
    [[status, _, said]] = push(hub, ["student", "--repo", "mine"])
    assert status == 1
    assert "Invalid metadata in README.md" in said
    assert hub.files("user/mine") == {}


def test_an_interrupted_push_says_how_to_try_again(monkeypatch, tmp_path):
    write_student(tmp_path)
    monkeypatch.setattr("subdistill_hf.hub.publish.sign_in", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(PushError, match=r"was not pushed to mine: interrupted.* subdistill push .* --repo mine$"):
        push_folder(tmp_path, "mine")


@pytest.mark.parametrize("content", ["{}", "[1]", "null", '{"teacher": "mine", "classes": []}', "no JSON", None])
def test_a_report_of_another_program_names_no_repository(monkeypatch, tmp_path, content):
    folder = tmp_path / "my birds"
    write_student(folder)
    if content is None:
        (folder / "report.json").unlink()
    else:
        (folder / "report.json").write_text(content, encoding="utf-8")
    asked = []
    monkeypatch.setattr("subdistill_hf.hub.publish.sign_in", lambda name, *given: asked.append(name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push_folder(folder)
    assert asked == ["my-birds"]


def test_in_python_a_push_raises(tmp_path):
    with pytest.raises(PushError, match="holds no student"):
        push_folder(tmp_path)


# The command line's own run


def arguments(**changed):
    options = {
        "teacher": "teacher",
        "dataset": "images",
        "classes": " ".join(NAMES),
        "student": "resnet:widths=8-8-8,image=32",
        "max_steps": 2,
        "output_dir": "out",
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        "push_to_hub": "true",
    } | changed
    return ["distill", *(word for name, value in options.items() for word in [f"--{name}", *str(value).split()])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A Hub, and what four runs said: two that may not push, one whose last push fails at first, and one with a token
    in a file."""
    with LoopbackHub(tmp_path_factory.mktemp("runs")) as running:
        save_teacher(running.folder / "teacher")
        write_image_folder(running.folder / "images")
        running.fail("POST .*validate-yaml", 500)  # only the last push has a card
        given = [
            arguments(output_dir="unknown", hub_token="hf_wrong"),
            arguments(output_dir="forbidden", hub_token=running.token, hub_model_id="other/thing"),
            arguments(
                teacher=running.folder / "teacher",  # a path of this machine, which the card must not tell
                hub_token=running.token,
                hub_strategy="every_save",
                hub_always_push="true",
            ),
            [
                *arguments(output_dir="unclean", hub_token=running.token, hub_model_id="unclean", max_steps=1),
                "--overwrite",
            ],
        ]
        (running.folder / "unclean").mkdir()  # of an earlier run, with a file that somebody put there
        (running.folder / "unclean" / "report.json").write_text("{}", encoding="utf-8")
        (running.folder / "unclean" / "processor_config.json").write_text(
            json.dumps({"token": running.token, "home": str(running.folder)}), encoding="utf-8"
        )
        running.outcomes, _ = running.answer(QUICK_REPORTS + PROGRAM, json.dumps(given), HF_TOKEN=None)
        yield running
    assert not running.errors, "\n".join(running.errors)


@pytest.mark.parametrize(
    ("run", "folder", "parts"),
    [
        (0, "unknown", ["push_to_hub: the Hub does not accept the token", "Nothing was trained"]),
        (1, "forbidden", ["other/thing cannot be written: the token has no right to do this"]),
    ],
)
def test_nobody_trains_for_an_hour_to_learn_that_the_hub_cannot_be_written(runs, run, folder, parts):
    status, printed, said = runs.outcomes[run]
    assert status == 1
    for part in parts:
        assert part in said
    assert "trained in" not in printed
    assert not (runs.folder / folder).exists()


def test_a_run_pushes_its_student_at_its_end_and_says_how_to_try_again(runs):
    """Checkpoints go up while it trains, because they were asked for."""
    status, printed, said = runs.outcomes[2]
    name = "user/teacher-resnet-3-classes-of-images"
    assert status == 1, said
    assert "SubDistill " in printed
    assert f"error: out was not pushed to {name}: the Hub has a fault of its own" in said
    assert set(runs.files(name)) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    kept = state_of(runs.folder / "out")
    [[status, _, said]] = push(runs, shlex.split(said.partition("to try again: ")[2])[2:])
    assert status == 0, said
    assert state_of(runs.folder / "out") == kept
    titles = [commit.title for commit in runs.commits(name)]
    assert titles == ["initial commit", *(f"Training in progress, step {step}" for step in (1, 2)), titles[-1]]
    assert titles[-1] == "Student, processor and card"
    assert set(runs.files(name)) == STUDENT | {"contact_sheet.png", "subspaces.png", "training_curves.png"}
    card = runs.files(name)["README.md"]
    for text in (card, (runs.folder / "out" / "report.json").read_bytes()):
        assert runs.token.encode() not in text
    assert str(runs.folder).encode() not in card
    assert b"subdistill distill --teacher teacher" in card


def test_a_run_with_a_token_in_a_file_sends_nothing_and_keeps_its_folder(runs):
    status, printed, said = runs.outcomes[3]
    assert status == 1
    assert "SubDistill " in printed
    assert "unclean was not pushed to user/unclean: unclean/processor_config.json holds an access token" in said
    assert said.rstrip().endswith("to try again: subdistill push unclean --repo user/unclean")
    assert runs.files("user/unclean") == {}
    assert {"model.safetensors", "README.md", "report.json"} <= state_of(runs.folder / "unclean").keys()
    (runs.folder / "unclean" / "processor_config.json").unlink()
    [[status, _, said]] = push(runs, ["unclean", "--repo", "unclean"])
    assert status == 0, said
    sent = runs.files("user/unclean")
    assert "model.safetensors" in sent
    assert not any(runs.token.encode() in content for content in sent.values())


def test_without_being_asked_a_run_pushes_only_what_is_finished(tmp_path):
    parser = make_parser(all_arguments=True)
    _, training = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--push_to_hub"])
    assert training.push_to_hub
    assert training.hub_strategy == "end"
