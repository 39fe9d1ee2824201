"""A teacher given as a PEFT adapter, in a folder or on the Hub, is one plain model with the adapter's classes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import CLASS_IDS, NAMES, processor, save_teacher, teacher_resnet, vit, weights_of
from loopback_hub import LoopbackHub
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.subtask import Subtask, match_teacher
from subdistill_hf.models.adapters import lora_targets, merged, replace_head, save_adapter, with_adapter
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.heads import of_unknown
from subdistill_hf.models.loading import load_teacher

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=pixels()).logits


def write_adapter(folder, model, base, names=NAMES, **record):
    """An adapter with a new head on `model`, changed at random; its merged model."""
    torch.manual_seed(5)
    replace_head(model, names)
    adapted = with_adapter(model, lora_targets(model, lambda: model(pixel_values=pixels())), 4, str(base))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_adapter(adapted, folder)
    if record:
        (folder / "adaptation.json").write_text(json.dumps(record), encoding="utf-8")
    return merged(adapted)


def edit_weights(folder, edit):
    weights = load_file(folder / WEIGHTS)
    save_file(edit(weights), folder / WEIGHTS, metadata={"format": "pt"})


def without_head(weights):
    return {name: tensor for name, tensor in weights.items() if "classifier" not in name}


def test_what_an_adapter_says_of_unknown_images_is_not_its_bases(tmp_path):
    base = teacher_resnet()
    base.config.update({"unknown_threshold": 0.5})
    save_teacher(tmp_path / "base", base)
    write_adapter(tmp_path / "adapter", base, tmp_path / "base", id2label=dict(enumerate(NAMES)))
    for said in ({}, {"other_class": True}):
        (tmp_path / "adapter" / "config.json").write_text(json.dumps(said), encoding="utf-8")
        assert of_unknown(load_teacher(str(tmp_path / "adapter")).model.config) == said


def test_whether_classes_exclude_each_other_is_what_the_head_was_trained_for(tmp_path):
    several, one = "multi_label_classification", "single_label_classification"
    base = teacher_resnet()
    base.config.problem_type = several
    save_teacher(tmp_path / "base", base)
    write_adapter(tmp_path / "fitted", base, tmp_path / "base", id2label=dict(enumerate(NAMES)))
    shutil.copytree(tmp_path / "fitted", tmp_path / "other")
    (tmp_path / "other" / "adaptation.json").unlink()
    assert load_teacher(str(tmp_path / "fitted")).model.config.problem_type == one
    assert load_teacher(str(tmp_path / "other")).model.config.problem_type == several  # nothing says otherwise
    for said in (one, several):
        (tmp_path / "other" / "config.json").write_text(json.dumps({"problem_type": said}), encoding="utf-8")
        assert load_teacher(str(tmp_path / "other")).model.config.problem_type == said


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base of 100 classes, and an adapter of three with another order."""
    folder = tmp_path_factory.mktemp("adapters")
    save_teacher(folder / "base", size=40, mean=0.25)
    model = write_adapter(
        folder / "adapter", teacher_resnet(), folder / "base", id2label=dict(enumerate(reversed(NAMES)))
    )
    return folder, model


@pytest.fixture
def copied(places, tmp_path):
    return shutil.copytree(places[0] / "adapter", tmp_path / "adapter")


def test_an_adapters_folder_gives_the_merged_model_with_its_classes(places):
    folder, expected = places
    teacher = load_teacher(str(folder / "adapter"))
    assert type(teacher.model) is type(expected)
    assert teacher.model.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(logits(teacher.model), logits(expected), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())
    assert teacher.labels == dict(enumerate(reversed(NAMES)))
    assert match_teacher(Subtask(NAMES, CLASS_IDS), teacher.labels, CLASS_NAMES).teacher_ids == (2, 1, 0)
    assert (teacher.name, teacher.hub_id, teacher.base.name) == ("adapter", None, "base")


def test_the_processor_is_the_bases_unless_the_adapter_has_its_own(places, copied):
    folder, _ = places
    assert load_teacher(str(folder / "adapter")).processor.size["height"] == 40
    processor(48).save_pretrained(copied)
    assert load_teacher(str(copied)).processor.size["height"] == 48


def test_the_base_may_be_an_embedded_teacher(tmp_path):
    base = load_teacher("glyphs-resnet").model
    expected = write_adapter(tmp_path, base, "glyphs-resnet")
    teacher = load_teacher(str(tmp_path))
    assert (teacher.base.name, teacher.license) == ("glyphs-resnet", "apache-2.0")
    torch.testing.assert_close(logits(teacher.model), logits(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("file", "content", "labels"),
    [
        (None, None, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ("config.json", {"id2label": {"2": "c", "0": "a", "1": "b"}}, {0: "a", 1: "b", 2: "c"}),
    ],
    ids=["nothing", "config.json"],
)
def test_without_a_record_labels_come_from_a_configuration_or_are_numbered(copied, file, content, labels):
    (copied / "adaptation.json").unlink()
    if file:
        (copied / file).write_text(json.dumps(content), encoding="utf-8")
    assert load_teacher(str(copied)).labels == labels


def test_an_adapter_of_the_body_keeps_the_bases_trained_head_and_classes(places, copied):
    config = json.loads((copied / "adapter_config.json").read_text(encoding="utf-8"))
    (copied / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None}), encoding="utf-8")
    edit_weights(copied, without_head)
    (copied / "adaptation.json").unlink()
    teacher = load_teacher(str(copied))
    assert teacher.labels == dict(enumerate(CLASS_NAMES))
    ours, base = weights_of(teacher.model), weights_of(teacher_resnet())
    for name, value in base.items():
        same = "classifier" in name or "normalization" in name or "embedder" in name
        assert torch.equal(ours[name], value) == same, name


# Refused


def no_head(folder):
    edit_weights(folder, without_head)


def half_a_body(folder):
    edit_weights(folder, lambda weights: {name: value for name, value in weights.items() if "stages.3" not in name})


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def setting(**changed):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            no_head,
            "for 3 classes .* no head, and that of its base model has 100 outputs. Save ad",
        ),
        (half_a_body, "does not fit ResNetForImageClassification: 6 weights are missing"),
        (cut, "cannot be loaded"),
        (no_weights, "cannot be loaded"),
        (setting(base_model_name_or_path=None), "names no base model"),
        (setting(base_model_name_or_path="/nowhere/at/all"), "cannot be loaded"),
        (setting(target_modules=["nothing"]), "cannot be loaded"),
    ],
    ids=["no head", "half", "cut", "no weights", "no base", "base gone", "targets"],
)
def test_an_adapter_that_is_not_whole_is_refused(copied, damage, message):
    damage(copied)
    with pytest.raises(ModelError, match=message):
        load_teacher(str(copied))


def test_an_adapter_without_a_head_on_a_base_without_a_head_is_refused(places, copied, tmp_path):
    base = shutil.copytree(places[0] / "base", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file(without_head(weights), base / "model.safetensors", metadata={"format": "pt"})
    setting(base_model_name_or_path=str(base), modules_to_save=None)(copied)
    (copied / "adaptation.json").unlink()
    edit_weights(copied, without_head)
    with pytest.raises(ModelError, match=r"no trained weights for classifier.1.bias, classifier.1.weight in the base"):
        load_teacher(str(copied))


def test_a_teacher_without_a_head_is_taken_when_it_will_be_adapted(places, tmp_path):
    base = shutil.copytree(places[0] / "base", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file(without_head(weights), base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no trained weights for classifier.1.bias.* as --adapt_teacher lora does"):
        load_teacher(str(base))
    assert load_teacher(str(base), adaptable=True).without_head
    weights = {name: value for name, value in without_head(weights).items() if "stages.2" not in name}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no trained weights for resnet.encoder.stages.2"):
        load_teacher(str(base), adaptable=True)


# The Hub

LOAD = """
import json
import torch
from subdistill_hf.models.loading import load_teacher

teacher = load_teacher("org/adapter")
with torch.no_grad():
    logits = teacher.model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).logits
print(json.dumps([logits.tolist(), teacher.labels, teacher.name, teacher.hub_id, teacher.revision,
                  teacher.base.name, teacher.base.hub_id, teacher.base.revision, teacher.processor.size["height"]]))
"""


def test_an_adapter_on_the_hub_is_read_with_its_base_and_both_commits_are_recorded(tmp_path):
    folder = tmp_path / "files"
    base = vit(CLASS_NAMES)
    base.save_pretrained(folder / "base")
    processor().save_pretrained(folder / "base")
    expected = write_adapter(folder / "adapter", base, "org/base", id2label=dict(enumerate(NAMES)))
    with LoopbackHub(tmp_path) as hub:
        hub.put("org/base", folder / "base")
        hub.put("org/adapter", folder / "adapter")
        (hub_logits, labels, *names, size) = hub.answer(LOAD)
        torch.testing.assert_close(torch.tensor(hub_logits), logits(expected), rtol=0, atol=1e-6)
        assert labels == {str(output): name for output, name in enumerate(NAMES)}
        commits = [hub.commits(repository)[-1].oid for repository in ("org/adapter", "org/base")]
        assert names == ["org/adapter", "org/adapter", commits[0], "org/base", "org/base", commits[1]]
        assert size == 32


def test_the_names_of_a_base_are_read_in_the_order_of_its_outputs(tmp_path):
    """A configuration may list them as texts: 0, 1, 10, 11, 2."""
    names = [f"class {output}" for output in range(12)]
    base = save_teacher(tmp_path / "base", teacher_resnet(names))
    described = json.loads((base / "config.json").read_text(encoding="utf-8"))
    described["id2label"] = {output: described["id2label"][output] for output in sorted(described["id2label"])}
    (base / "config.json").write_text(json.dumps(described), encoding="utf-8")
    write_adapter(tmp_path / "adapter", teacher_resnet(names), base, names)
    assert load_teacher(str(base)).labels == dict(enumerate(names))
    assert load_teacher(str(tmp_path / "adapter")).labels == dict(enumerate(names))
