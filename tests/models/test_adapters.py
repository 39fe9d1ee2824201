"""Adapters go where they can be merged again, come back as they were saved, and train under SubDistillTrainer."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import families
from helpers import (
    CLASS_IDS,
    NAMES,
    assert_equal_weights,
    convnext,
    processor,
    resnet,
    teacher_resnet,
    teacher_vit,
    trainer,
    views,
    vit,
    weights_of,
)
from subdistill_hf.core.hooks import record, resolve_layers
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import (
    base_of,
    head_modules,
    load_adapter,
    lora_targets,
    merged,
    replace_head,
    save_adapter,
    shift_logit,
    with_adapter,
)
from subdistill_hf.models.errors import AdapterError
from subdistill_hf.models.heads import labels_of, new_classifier, of_unknown


def swin(class_name="SwinForImageClassification"):
    torch.manual_seed(0)
    return new_classifier(
        class_name,
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        **labels_of(NAMES),
    )


def swin_v2():
    return swin("Swinv2ForImageClassification")


def timm_wrapped(architecture, **arguments):
    torch.manual_seed(0)
    configuration = {"architecture": architecture, "model_args": arguments}
    return new_classifier("TimmWrapperForImageClassification", **configuration, **labels_of(NAMES))


def timm_resnet():
    return timm_wrapped("test_resnet")


def timm_vit():
    return timm_wrapped("test_vit", img_size=32, patch_size=8, depth=2)


def timm_mobilenet():
    return timm_wrapped("test_efficientnet")


def timm_beit():
    return timm_wrapped("beit_base_patch16_224", img_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=1)


def two_headed():
    torch.manual_seed(0)
    return new_classifier(
        "DeiTForImageClassificationWithTeacher",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        **labels_of(NAMES),
    )


FAMILIES = [vit, resnet, convnext, swin, timm_resnet, timm_vit, timm_mobilenet]


def pixels(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=pixels()).logits


def targets_of(model, wanted=None):
    return lora_targets(model, lambda: model(pixel_values=pixels(1)), wanted)


def adapted(model, rank=4, changed=True):
    """A model with an adapter that, if `changed`, is no longer the zero that it starts as."""
    torch.manual_seed(5)
    model = with_adapter(model, targets_of(model), rank)
    if changed:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return model


# Which modules


@pytest.mark.parametrize(
    ("make", "inside", "outside"),
    [
        (
            vit,
            [f"attention.{name}_proj" for name in "qkvo"] + ["mlp.fc1", "mlp.fc2"],
            ["embeddings.patch_embeddings.projection", "classifier"],
        ),
        (resnet, ["layer.0.convolution", "shortcut.convolution"], ["embedder.embedder.convolution", "classifier.1"]),
        (convnext, ["pwconv1", "pwconv2"], ["dwconv", "downsampling_layer.1", "patch_embeddings"]),
        (swin, ["attention.q_proj", "mlp.fc2", "downsample.reduction"], ["patch_embeddings.projection"]),
        (timm_resnet, ["layer1.0.conv1", "layer4.0.downsample.1", "conv1.3"], ["conv1.0", "fc"]),
        (timm_vit, ["attn.qkv", "attn.proj", "mlp.fc1"], ["patch_embed.proj", "head"]),
        (timm_mobilenet, ["conv_pw", "conv_pwl"], ["conv_dw", "conv_stem", "classifier"]),
        (swin_v2, ["attention.self.query"], ["continuous_position_bias_mlp.0", "continuous_position_bias_mlp.2"]),
        (timm_beit, ["attn.proj", "mlp.fc1"], ["attn.qkv"]),  # whose weight is used without calling the module
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_low_rank_changes_go_to_linear_maps_and_plain_convolutions_of_the_body(make, inside, outside):
    model = make()
    chosen = targets_of(model)
    names = [name for name, _ in model.named_modules()]
    for ending in inside:
        assert any(name.endswith(f".{ending}") for name in chosen), ending
    for ending in outside:
        assert any(name.endswith(ending) for name in names), ending
        assert not any(name.endswith(f".{ending}") or name == ending for name in chosen), ending
    for name in chosen:
        assert getattr(model.get_submodule(name), "groups", 1) == 1


def test_target_modules_may_be_named_by_their_ends_or_by_regular_expressions():
    model = vit(layers=3)
    both = [f"vit.layers.{layer}.attention.{name}_proj" for layer in range(3) for name in "qv"]
    assert targets_of(model, ["q_proj", "v_proj"]) == [
        f"vit.layers.{layer}.attention.q_proj" for layer in range(3)
    ] + [f"vit.layers.{layer}.attention.v_proj" for layer in range(3)]
    assert targets_of(model, [r".*\.[qv]_proj"]) == both
    assert targets_of(model, ["vit.layers.1.mlp.fc1"]) == ["vit.layers.1.mlp.fc1"]
    assert targets_of(model, ["projection"]) == ["vit.embeddings.patch_embeddings.projection"]


@pytest.mark.parametrize(
    ("make", "wanted", "message"),
    [
        (vit, "query", "no module of ViTForImageClassification is named or matches 'query'; such as "),
        (vit, "classifier", r"'classifier' matches 1 modules \(Linear\) .* none of which can take LoRA"),
        (vit, "layernorm_before", r"\(LayerNorm\) of ViTForImageClassification, none of which can take LoRA"),
        (convnext, "dwconv", r"'dwconv' matches 3 modules \(Conv2d\) .* expected linear maps or ungrouped conv"),
        (vit, "fc[", r"'fc\[' is not a regular expression"),
    ],
)
def test_target_modules_that_cannot_be_are_refused(make, wanted, message):
    with pytest.raises(AdapterError, match=message):
        targets_of(make(), [wanted])


# Heads


@pytest.mark.parametrize("make", [*FAMILIES, two_headed], ids=lambda make: make.__name__)
def test_a_new_head_has_an_output_per_class_and_leaves_the_body_as_it_is(make):
    model = make()
    before = weights_of(model)
    heads = head_modules(model)
    assert len(heads) == (2 if make is two_headed else 1)
    for count in (3, 7):
        replace_head(model, [f"class {output}" for output in range(count)])
        assert logits(model).shape == (2, count)
        assert model.config.id2label == {output: f"class {output}" for output in range(count)}
    after = weights_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) != any(name.startswith(f"{head}.") for head in heads), name


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_new_head_has_nothing_of_what_was_said_of_the_old_ones_answers(problem):
    model = teacher_resnet()
    model.config.update({"problem_type": problem, "other_class": True, "unknown_threshold": 0.5})
    replace_head(model, NAMES)
    assert model.config.problem_type == "single_label_classification"
    assert of_unknown(model.config) == {}


def test_a_model_whose_head_is_no_linear_map_is_refused():
    class Odd(type(vit(layers=1))):
        def __init__(self, config):
            super().__init__(config)
            self.classifier = nn.Bilinear(1, 1, config.num_labels)

    with pytest.raises(AdapterError, match=r"Odd cannot get a new head: .* found classifier \(Bilinear\)"):
        head_modules(Odd(vit(layers=1).config))


# Save, read, merge


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_a_saved_adapter_is_read_by_peft_alone_and_merges_into_a_plain_model(make, tmp_path):
    model = adapted(make())
    expected = logits(model)
    assert float((expected - logits(make())).abs().max()) > 1e-3
    save_adapter(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    base = make()
    replace_head(base, NAMES)
    reread = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(reread), expected, rtol=0, atol=0)
    plain = merged(model)
    assert type(plain) is type(make())
    assert weights_of(plain).keys() == weights_of(make()).keys()
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_in_every_family_each_change_learns_and_merges_with_a_new_head(name):
    images = torch.randn(2, 3, *families.FAMILIES[name].size, generator=torch.Generator().manual_seed(1))
    model = families.with_batch_statistics(families.build(name), images)
    replace_head(model, ["a", "b", "c", "d"])
    model = with_adapter(model, lora_targets(model, lambda: model(pixel_values=images)), 2)
    model(pixel_values=images).logits.square().sum().backward()
    changes = {key: parameter for key, parameter in model.named_parameters() if "lora_B" in key}
    assert len(changes) >= 5
    for key, parameter in changes.items():
        assert float(parameter.grad.abs().sum()) > 0, key
    with torch.no_grad():
        for parameter in changes.values():
            parameter.copy_(0.1 * parameter.grad / parameter.grad.abs().max())
        expected = model(pixel_values=images).logits
        plain = merged(model)(pixel_values=images).logits
    assert expected.shape == (2, 4)
    torch.testing.assert_close(plain, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_without_targets_the_head_alone_is_trained(tmp_path):
    model = with_adapter(vit(), [], 8)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name.split(".")[-1] for name in trainable] == ["weight", "bias"]
    assert all(".classifier." in name for name in trainable)
    save_adapter(model, tmp_path)
    assert sorted(load_file(tmp_path / "adapter_model.safetensors")) == [
        "base_model.model.classifier.bias",
        "base_model.model.classifier.weight",
    ]
    torch.testing.assert_close(logits(PeftModel.from_pretrained(vit(), tmp_path)), logits(model), rtol=0, atol=0)


def test_a_card_beside_a_saved_adapter_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    save_adapter(adapted(vit()), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "other",
    [
        lambda: adapted(vit(layers=3)),
        lambda: adapted(vit(layers=5)),
        lambda: adapted(vit(), rank=2),
        lambda: adapted(resnet()),
    ],
    ids=["fewer layers", "more layers", "rank", "architecture"],
)
def test_an_adapter_of_another_model_is_refused(other, tmp_path):
    save_adapter(other(), tmp_path)
    with pytest.raises(AdapterError, match="does not fit ViTForImageClassification"):
        load_adapter(adapted(vit()), tmp_path)


# Under the trainer


def test_layers_of_a_model_with_an_adapter_have_the_names_of_the_plain_model():
    for make in FAMILIES:
        plain, model = make(), base_of(adapted(make()))
        for pattern in (r".*\d+", r".*(conv|attention|attn).*"):
            assert [name for name in resolve_layers(model, [pattern]) if "classifier" not in name] == [
                name for name in resolve_layers(plain, [pattern]) if "classifier" not in name
            ]


@pytest.mark.parametrize("layers", [["auto"], [r"resnet\.encoder\.stages\.[123]=vit\.layers\.[024]"]])
def test_pairs_are_those_of_the_plain_student(layers, tmp_path):
    plain, peft = vit(hidden=16, layers=5), adapted(vit(hidden=16, layers=5))
    pairs = [trainer(tmp_path, student, layers=layers).pairs for student in (plain, peft)]
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) >= 3


def with_adapter_run(folder, make=resnet, teacher=None, **options):
    options = {"max_steps": 6, "layer_weight": 1.0, "learning_rate": 1e-2} | options
    images = views(augmentation="pad_crop", flip=True, seed=5)
    return trainer(folder, adapted(make(), changed=False), teacher or teacher_resnet(), train=images, **options)


@pytest.mark.parametrize("make", [resnet, lambda: vit(hidden=16), convnext], ids=["resnet", "vit", "convnext"])
def test_only_the_adapter_and_the_rotations_learn(make, tmp_path):
    """Batch norms included: their statistics are not saved with an adapter."""
    run = with_adapter_run(tmp_path, make)
    before = weights_of(run.model)
    run.train()
    changed = {name for name, value in weights_of(run.model).items() if not torch.equal(value, before[name])}
    trainable = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert changed == trainable
    assert len(trainable) > 6
    assert run.distillation.orthogonality_error() < 1e-5
    parts = [value for entry in run.state.log_history for name, value in entry.items() if "loss_layer" in name]
    assert len(parts) == 6 * len(run.pairs)


def test_what_is_aligned_is_what_the_merged_student_computes(tmp_path):
    run = with_adapter_run(tmp_path)
    run.train()
    names = [pair.student.name for pair in run.pairs]
    run.model.eval()
    recorded = []
    with record(base_of(run.model), names) as recorder, torch.no_grad():
        run.model(pixel_values=pixels())
        recorded += [recorder.outputs[name] for name in names]
    plain = merged(run.model).eval()
    with record(plain, names) as recorder, torch.no_grad():
        plain(pixel_values=pixels())
    for name, expected in zip(names, recorded, strict=True):
        torch.testing.assert_close(recorder.outputs[name], expected, rtol=1e-4, atol=1e-5)
    assert len(names) == 4


def test_a_teacher_with_an_adapter_teaches_what_its_merged_model_teaches(tmp_path):
    def teacher():
        model = teacher_vit()
        return adapted(model, changed=False), model

    peft, _ = teacher()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    losses = []
    for model in (peft, None):
        model = merged(peft) if model is None else model
        run = trainer(tmp_path, teacher=model, max_steps=2, layer_weight=1.0)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_resumed_adapter_ends_where_an_uninterrupted_one_ends(tmp_path):
    whole = with_adapter_run(tmp_path / "whole", save_strategy="steps", save_steps=3)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert {path.name for path in checkpoint.glob("*model*")} == {"adapter_model.safetensors"}
    shutil.copytree(checkpoint, tmp_path / "resumed" / "checkpoint-3")
    resumed = with_adapter_run(tmp_path / "resumed", save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(weights_of(resumed.distillation), weights_of(whole.distillation))


def test_an_adapter_does_not_go_on_upon_another_frozen_model(tmp_path):
    run = with_adapter_run(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    other = with_adapter_run(tmp_path, lambda: resnet(seed=1), save_strategy="steps", save_steps=1)
    with pytest.raises(DistillationError, match="another choice of student"):
        other.train(resume_from_checkpoint=True)


def test_the_best_adapter_is_kept_and_can_be_trained_on(tmp_path):
    run = with_adapter_run(
        tmp_path,
        method="scratch",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the last, which learned most, is not the best
    )
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"
    fresh = adapted(resnet(), changed=False)
    load_adapter(fresh, best)
    assert_equal_weights(weights_of(run.model), weights_of(fresh))
    assert sum(parameter.requires_grad for parameter in run.model.parameters()) > 6
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, rel=1e-6)


def test_a_saved_student_is_its_adapter_and_processor(tmp_path):
    run = with_adapter_run(tmp_path, parts={"processing_class": processor()}, max_steps=1)
    run.train()
    run.save_model(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
    ]
    assert run.teacher.class_ids.tolist() == list(CLASS_IDS)


def adapted_resnet():
    model = resnet()
    return with_adapter(model, lora_targets(model, lambda: model(torch.zeros(1, 3, 32, 32))), 2)


@pytest.mark.parametrize("make", [resnet, convnext, vit, timm_resnet, timm_vit, two_headed, adapted_resnet])
@torch.no_grad()
def test_a_logit_is_shifted_for_good(make):
    model = make().eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = model(pixel_values=pixels).logits
    shift_logit(model, -1, -3.25)
    torch.testing.assert_close(model(pixel_values=pixels).logits, before + torch.tensor([0, 0, -3.25]))


def test_a_shifted_head_is_saved_with_the_adapter(tmp_path):
    model = adapted_resnet().eval()
    shift_logit(model, -1, 2.0)
    save_adapter(model, tmp_path)
    again = adapted_resnet().eval()
    load_adapter(again, tmp_path)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        torch.testing.assert_close(again(pixel_values=pixels).logits, expected)


def test_a_head_without_a_bias_cannot_be_shifted():
    model = resnet()
    model.classifier[1].bias = None
    with pytest.raises(AdapterError, match="has no bias"):
        shift_logit(model, -1, 1.0)
