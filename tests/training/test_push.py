"""What SubDistillTrainer pushes: the student, its processor and card, and nothing else; and what a failed push leaves.

The trainings run in one program whose Hub is on loopback, and the student is loaded again in another.
"""

import json

import pytest

from loopback_hub import ALWAYS, LoopbackHub
from programs import WITHOUT_THIS_PACKAGE

STUDENT = {"config.json", "model.safetensors", "preprocessor_config.json"}
PUSHED = STUDENT | {"README.md"}
TRAIN = """
import json, os, sys
from pathlib import Path
import torch
from huggingface_hub import constants, get_session
import subdistill_hf.hub.client
from helpers import processor, trainer
from subdistill_hf.hub.publish import push_folder

outcomes = {}

def attempt(name, action):
    try:
        action()
    except Exception as error:
        outcomes[name] = [type(error).__name__, str(error)]

def prepare(name, **options):
    token = options.pop("hub_token", os.environ["HF_TOKEN"])
    return trainer(Path(name).absolute(), push_to_hub=True, hub_model_id=f"user/{name}", hub_token=token,
                   parts={"processing_class": processor()}, max_steps=2, **options)

run = prepare("end", hub_strategy="end")
run.train()
run.push_to_hub()
images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    outcomes["logits"] = run.model.eval()(images).logits.tolist()
outcomes["labels"] = list(run.model.config.id2label.values())

run = prepare("every_save", save_strategy="steps", save_steps=1, hub_always_push=True)
run.train()
run.push_to_hub()

run = prepare("checkpoint", save_strategy="steps", save_steps=2, hub_strategy="checkpoint",
              eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
run.train()

attempt("bad token", lambda: prepare("unborn", hub_token="hf_wrong"))

run = prepare("refused")
run.train()
attempt("first time", run.push_to_hub)
attempt("second time", run.push_to_hub)
attempt("third time", run.push_to_hub)

CARD = "# Mine\\n\\nTrained on /home/Jane Doe/pets with hf_" + "a" * 30

Path("kept").mkdir()
Path("kept", "README.md").write_text(CARD)
attempt("kept", lambda: prepare("kept"))

run = prepare("later", hub_strategy="end")
run.train()
Path("later", "README.md").write_text(CARD)
attempt("later", run.push_to_hub)
Path("later", "README.md").write_text(CARD.partition("hf_")[0])
attempt("later, without the token", run.push_to_hub)

for name, strategy in (("during", "every_save"), ("whole", "all_checkpoints")):
    run = prepare(name, save_strategy="steps", save_steps=1, hub_strategy=strategy, hub_always_push=True)
    run.model.config.trained_on = "C:\\\\Users\\\\Jane Doe\\\\pets"
    run.train()
    attempt(name, run.push_to_hub)

attempt("push_folder", lambda: push_folder("later", "user/later"))

subdistill_hf.hub.client.LONGEST_WAIT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 3
get_session().timeout = None
run = prepare("unanswered")
run.train()
attempt("unanswered", run.push_to_hub)

run = prepare("unheard", save_strategy="steps", save_steps=1, hub_always_push=True)
run.train()
print(json.dumps(outcomes))
"""
LOAD = """
import json, sys
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("user/end")
processor = AutoImageProcessor.from_pretrained("user/end")
images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = model.eval()(images).logits.tolist()
ours = [name for name in sys.modules if name.startswith("subdistill")]
print(json.dumps({"logits": logits, "labels": list(model.config.id2label.values()), "ours": ours,
                  "size": processor.size["height"]}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub to which the program pushed, or tried to."""
    with LoopbackHub(tmp_path_factory.mktemp("push")) as running:
        running.fail("user/refused/commit", 500)
        running.fail("user/refused/preupload", 401)
        running.slow("user/unanswered/commit", seconds=3600)
        running.fail("user/unheard/commit", 500, times=ALWAYS)
        running.done = running.run(TRAIN)
        assert running.done.returncode == 0, running.done.stderr
        running.outcomes = json.loads(running.done.stdout.splitlines()[-1])
        yield running
    assert not running.errors, "\n".join(running.errors)


def local(hub, name):
    """The files of an output folder, without those of checkpoints."""
    return {path.name: path.read_bytes() for path in (hub.folder / name).iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["end", "every_save", "refused"])
def test_the_student_on_the_hub_is_the_local_one(hub, name):
    assert set(hub.files(f"user/{name}")) == PUSHED
    assert hub.files(f"user/{name}") == local(hub, name)


def test_every_save_pushes_each_checkpoints_student(hub):
    _start, *saves, end = hub.commits("user/every_save")
    assert [commit.title for commit in saves] == ["Training in progress, step 1", "Training in progress, step 2"]
    assert end.title == "End of training"
    for commit, step in zip(saves, (1, 2), strict=True):
        files = hub.files("user/every_save", revision=commit.oid)
        folder = hub.folder / "every_save" / f"checkpoint-{step}"
        assert files == {name: (folder / name).read_bytes() for name in STUDENT}


@pytest.mark.parametrize("name", ["end", "every_save", "refused", "checkpoint"])
def test_no_commit_ever_held_more_than_the_student(hub, name):
    """Not even whole checkpoints, which are there to resume from, have pickled arguments."""
    for commit in hub.commits(f"user/{name}"):
        for path, data in hub.files(f"user/{name}", revision=commit.oid).items():
            assert path in PUSHED or path.startswith("last-checkpoint/"), path
            assert not path.endswith("training_args.bin")
            assert hub.token.encode() not in data, path
            assert str(hub.folder).encode() not in data, path


def test_a_whole_checkpoint_is_pushed_when_it_was_asked_for(hub):
    folder = hub.folder / "checkpoint" / "checkpoint-2"
    whole = {f"last-checkpoint/{path.name}": path.read_bytes() for path in folder.iterdir()}
    state = json.loads(whole.pop("last-checkpoint/trainer_state.json"))
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/alignments.safetensors"} < set(whole)
    pushed = hub.files("user/checkpoint")
    state_there = json.loads(pushed.pop("last-checkpoint/trainer_state.json"))
    assert pushed == whole | {name: (folder / name).read_bytes() for name in STUDENT}
    assert state["best_model_checkpoint"] == str(folder)
    assert state_there == state | {"best_model_checkpoint": "checkpoint-2"}


def test_a_process_without_this_package_gives_the_same_answers(hub):
    loaded = hub.answer(WITHOUT_THIS_PACKAGE + LOAD)
    assert loaded["ours"] == []
    assert loaded["logits"] == hub.outcomes["logits"]
    assert loaded["labels"] == hub.outcomes["labels"]
    assert loaded["size"] == 32


# Failures


def test_a_bad_token_is_refused_before_training(hub):
    assert "401" in hub.outcomes["bad token"][1]
    assert not (hub.folder / "unborn").exists()
    assert ("model", "user/unborn") not in hub.repos


def test_a_push_that_fails_raises_and_leaves_the_folder_whole(hub):
    assert hub.outcomes["first time"][0] == hub.outcomes["second time"][0] == "HfHubHTTPError"
    assert "401" in hub.outcomes["first time"][1]
    assert "500" in hub.outcomes["second time"][1]
    assert "third time" not in hub.outcomes
    assert len(hub.commits("user/refused")) == 2  # the first is the repository's own
    assert set(local(hub, "refused")) == PUSHED


def test_a_push_that_nobody_answers_ends(hub):
    assert hub.outcomes["unanswered"][0] == "ReadTimeout"
    assert set(local(hub, "unanswered")) == PUSHED


def test_a_push_that_fails_during_training_is_told_and_stops_nothing(hub):
    assert hub.files("user/unheard") == {}
    checkpoints = sorted(path.name for path in (hub.folder / "unheard").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-1", "checkpoint-2"]
    told = [line for line in hub.done.stderr.splitlines() if line.startswith("A checkpoint, whole in its folder")]
    assert len(told) == 2
    assert all("500" in line and "user/unheard" in line for line in told)


@pytest.mark.parametrize(
    ("way", "name", "held"),
    [
        ("kept", "kept/README.md", "an access token"),
        ("later", "later/README.md", "an access token"),
        ("later, without the token", "later/README.md", "a path of this machine, /home/Jane Doe"),
        ("push_folder", "later/README.md", "a path of this machine, /home/Jane Doe"),
        ("during", "during/config.json", "a path of this machine, C:"),
        ("whole", "whole/config.json", "a path of this machine, C:"),
    ],
)
def test_no_way_to_the_hub_takes_tokens_or_local_paths(hub, way, name, held):
    kind, message = hub.outcomes[way]
    assert kind == ("PushError" if way == "push_folder" else "UncleanError")
    assert f"{name} holds {held}" in message


def test_what_must_not_be_published_stays_here_during_the_training_too(hub):
    assert ("model", "user/kept") not in hub.repos
    for name in ("later", "during", "whole"):
        assert not hub.files(f"user/{name}")
    told = [line for line in hub.done.stderr.splitlines() if "checkpoint-1/config.json holds a path" in line]
    assert len(told) == 2
