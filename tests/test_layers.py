"""Choosing the layer pairs: over model families built from their configurations, by name, and by expression."""

import itertools
from functools import cache

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from subdistill_hf.activations import LayerError, record, to_features
from subdistill_hf.layers import (
    LayerPair,
    LayerShape,
    describe_layers,
    layer_table,
    pair_layers,
    parse_layers,
    stage_outputs,
)

TRANSFORMER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}


def vit(blocks, image_size=32):
    config = ViTConfig(num_hidden_layers=blocks, image_size=image_size, patch_size=8, **TRANSFORMER)
    return ViTForImageClassification(config)


def resnet(stages=4):
    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8, 12, 16][:stages],
        depths=[1, 1, 2, 1][:stages],
        layer_type="basic",
        num_labels=3,
    )
    return ResNetForImageClassification(config)


def timm_model(architecture, **model_args):
    return TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture=architecture, num_labels=3, model_args=model_args)
    )


def swin():
    config = SwinConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 2], window_size=4, image_size=64, patch_size=2
    )
    return SwinForImageClassification(config)


# name: how to build it, input size, the layers at which it splits naturally
FAMILIES = {
    "vit of 6": (
        lambda: vit(6),
        (32, 32),
        {f"vit.layers.{block}": "16 x 4x4 + 1 tokens" for block in (1, 2, 4, 5)},
    ),
    "vit of 12, wide image": (
        lambda: vit(12, (16, 32)),
        (16, 32),
        {f"vit.layers.{block}": "16 x 2x4 + 1 tokens" for block in (2, 5, 8, 11)},
    ),
    "vit of 2": (
        lambda: vit(2),
        (32, 32),
        {f"vit.layers.{block}": "16 x 4x4 + 1 tokens" for block in (0, 1)},
    ),
    "deit": (
        lambda: DeiTForImageClassification(
            DeiTConfig(num_hidden_layers=5, image_size=32, patch_size=8, **TRANSFORMER)
        ),
        (32, 32),
        {f"deit.layers.{block}": "16 x 4x4 + 2 tokens" for block in (1, 2, 3, 4)},
    ),
    "dinov2 with registers": (
        lambda: Dinov2WithRegistersForImageClassification(
            Dinov2WithRegistersConfig(
                hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8
            )
        ),
        (32, 32),
        {f"dinov2_with_registers.encoder.layer.{block}": "16 x 4x4 + 5 tokens" for block in range(4)},
    ),
    "swin": (
        swin,
        (64, 64),
        {
            "swin.encoder.layers.0": "16 x 16x16",
            "swin.encoder.layers.1": "32 x 8x8",
            "swin.encoder.layers.3": "64 x 4x4",
        },
    ),
    "convnext": (
        lambda: ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], patch_size=2, num_labels=3)
        ),
        (32, 32),
        {
            f"convnext.encoder.stages.{stage}": shape
            for stage, shape in enumerate(["8 x 16x16", "12 x 8x8", "16 x 4x4", "20 x 2x2"])
        },
    ),
    "resnet": (
        resnet,
        (64, 64),
        {
            f"resnet.encoder.stages.{stage}": shape
            for stage, shape in enumerate(["4 x 16x16", "8 x 8x8", "12 x 4x4", "16 x 2x2"])
        },
    ),
    "resnet of 2 stages": (
        lambda: resnet(2),
        (64, 64),
        {"resnet.encoder.stages.0": "4 x 16x16", "resnet.encoder.stages.1": "8 x 8x8"},
    ),
    "mobilenetv2": (
        lambda: MobileNetV2ForImageClassification(
            MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=3)
        ),
        (64, 64),
        {
            "mobilenet_v2.layer.1": "8 x 16x16",
            "mobilenet_v2.layer.4": "8 x 8x8",
            "mobilenet_v2.layer.11": "24 x 4x4",
            "mobilenet_v2.layer.15": "80 x 2x2",
        },
    ),
    "timm resnet10t": (
        lambda: timm_model("resnet10t", channels=(8, 12, 16, 24)),
        (64, 64),
        {
            f"timm_model.layer{stage}": shape
            for stage, shape in enumerate(["8 x 16x16", "12 x 8x8", "16 x 4x4", "24 x 2x2"], 1)
        },
    ),
    "timm mobilenetv4": (
        lambda: timm_model("mobilenetv4_conv_small_050"),
        (64, 96),
        {
            f"timm_model.blocks.{stage}": shape  # not blocks.4, which widens for the head
            for stage, shape in enumerate(["16 x 16x24", "32 x 8x12", "48 x 4x6", "64 x 2x3"])
        },
    ),
    "timm vit_tiny": (
        lambda: timm_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=8),
        (64, 64),
        {f"timm_model.blocks.{block}": "24 x 4x4 + 1 tokens" for block in (1, 3, 5, 7)},
    ),
    "timm swin": (
        lambda: timm_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12, depths=(1, 1, 1, 1)
        ),
        (64, 64),
        {
            f"timm_model.layers.{stage}": shape
            for stage, shape in enumerate(["12 x 16x16", "24 x 8x8", "48 x 4x4", "96 x 2x2"])
        },
    ),
}


@cache
def family(name):
    """The model, a function that runs it on an example, and the example's size."""
    make, size, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = make().eval()
    example = torch.randn(1, 3, *size)
    return model, lambda: model(pixel_values=example), size


def pairs_of(teacher_name, student_name, layers=("auto",), pairs=4):
    teacher, teacher_forward, teacher_size = family(teacher_name)
    student, student_forward, student_size = family(student_name)
    return pair_layers(teacher, student, layers, teacher_forward, student_forward, teacher_size, student_size, pairs)


def named(pairs):
    return [pair.teacher.name for pair in pairs], [pair.student.name for pair in pairs]


def execution_order(name, layers):
    """The layers in the order in which they return."""
    model, forward, _ = family(name)
    order = []
    with torch.no_grad(), record(model, layers, transform=lambda layer, output: order.append(layer)):
        forward()
    return order


# The natural places of a model


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_splits_at_its_stages_or_at_equal_depths(name):
    model, forward, size = family(name)
    names = stage_outputs(model, forward, size)
    shapes = describe_layers(model, names, forward, size)
    assert {shape.name: str(shape) for shape in shapes} == FAMILIES[name][2]
    assert execution_order(name, names) == names


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_those_of_the_recorded_features(name):
    model, forward, size = family(name)
    names = list(FAMILIES[name][2])
    shapes = describe_layers(model, names, forward, size)
    with torch.no_grad(), record(model, names) as recorder:
        forward()
    for shape in shapes:
        features = to_features(recorder.outputs[shape.name], shape.name, size, shape.channels_last)
        assert (shape.width, shape.grid, shape.prefix) == (features.values.shape[1], features.grid, features.prefix)
        assert shape.channels_last == (name == "timm swin")


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_fewer_stages_end_at_the_same_layer(name, stages):
    model, forward, size = family(name)
    names = stage_outputs(model, forward, size, stages)
    expected = list(FAMILIES[name][2])
    assert len(names) == min(stages, len(expected))
    assert names[-1] == expected[-1]
    assert execution_order(name, names) == names


def test_a_plain_chain_of_modules_splits_by_resolution():
    def stage(width, wider):
        return [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.ReLU()]

    model = nn.Sequential(*stage(3, 4), *stage(4, 6), *stage(6, 8))
    pixels = torch.randn(1, 3, 32, 32)
    assert stage_outputs(model, lambda: model(pixels), (32, 32)) == ["1", "3", "5"]


def test_a_model_without_blocks_is_refused_with_the_remedy():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = nn.Conv2d(3, 4, 3)

        def forward(self, pixels):
            return self.only(pixels)

    model = Flat()
    with pytest.raises(LayerError, match=r"no chain of blocks was found in Flat: .*teacher\.layer=student\.layer"):
        stage_outputs(model, lambda: model(torch.zeros(1, 3, 8, 8)), (8, 8))


# Automatic pairs

CONVOLUTIONAL = ["convnext", "resnet", "mobilenetv2", "timm resnet10t", "timm mobilenetv4", "timm swin"]
TOKENS = ["vit of 6", "vit of 12, wide image", "deit", "dinov2 with registers", "timm vit_tiny"]


@pytest.mark.parametrize(("teacher", "student"), list(itertools.product(FAMILIES, FAMILIES)))
def test_automatic_pairs_of_any_two_families_go_from_shallow_to_deep(teacher, student):
    pairs = pairs_of(teacher, student)
    teacher_names, student_names = named(pairs)
    assert 2 <= len(pairs) <= 4 or (len(pairs) == 1 and teacher == "vit of 2")  # without its last block
    assert execution_order(teacher, teacher_names) == teacher_names
    assert execution_order(student, student_names) == student_names
    for before, after in itertools.pairwise(pairs):
        for side in ("teacher", "student"):
            assert getattr(before, side).grid >= getattr(after, side).grid
    for pair in pairs:
        assert pair.dimensions == min(pair.teacher.width, pair.student.width)
        assert pair.drops_prefix == (pair.teacher.prefix != pair.student.prefix)
    assert student_names[-1] == list(FAMILIES[student][2])[-1]


@pytest.mark.parametrize(("teacher", "student"), list(itertools.permutations(CONVOLUTIONAL, 2)))
def test_stages_are_paired_in_order(teacher, student):
    assert named(pairs_of(teacher, student)) == (list(FAMILIES[teacher][2]), list(FAMILIES[student][2]))
    assert not any(pair.drops_prefix for pair in pairs_of(teacher, student))


@pytest.mark.parametrize("teacher", TOKENS)
@pytest.mark.parametrize("student", ["resnet", "swin", "timm mobilenetv4"])
def test_a_transformer_teaches_a_convolutional_student_up_to_its_last_block_but_one(teacher, student):
    pairs = pairs_of(teacher, student)
    assert all(pair.drops_prefix for pair in pairs)
    last = list(FAMILIES[teacher][2])[-1]
    container, _, number = last.rpartition(".")
    assert pairs[-1].teacher.name == f"{container}.{int(number) - 1}"  # after the last, patches have no context


def test_a_transformer_teaches_one_of_its_kind_up_to_its_last_block():
    teacher_names, student_names = named(pairs_of("vit of 6", "timm vit_tiny"))
    assert teacher_names == [f"vit.layers.{block}" for block in (1, 2, 4, 5)]
    assert student_names == [f"timm_model.blocks.{block}" for block in (1, 3, 5, 7)]
    assert named(pairs_of("deit", "vit of 6"))[0][-1] == "deit.layers.3"  # another number of prefix tokens


@pytest.mark.parametrize(
    ("teacher", "student", "teacher_names", "student_names"),
    [
        ("resnet", "resnet of 2 stages", [2, 3], [0, 1]),
        ("resnet of 2 stages", "resnet", [0, 1], [2, 3]),
        ("convnext", "vit of 2", [2, 3], [0, 1]),
        ("swin", "resnet", [0, 1, 3], [1, 2, 3]),
        ("resnet", "swin", [1, 2, 3], [0, 1, 3]),
        ("vit of 6", "vit of 2", [2, 5], [0, 1]),
        ("vit of 2", "resnet", [0], [3]),
        ("vit of 6", "resnet", [1, 2, 3, 4], [0, 1, 2, 3]),
        ("vit of 12, wide image", "resnet", [2, 5, 8, 10], [0, 1, 2, 3]),
        ("dinov2 with registers", "resnet", [0, 1, 2], [1, 2, 3]),
    ],
)
def test_the_side_with_fewer_stages_decides(teacher, student, teacher_names, student_names):
    found = named(pairs_of(teacher, student))
    numbers = [[int(name.rpartition(".")[2]) for name in side] for side in found]
    assert numbers == [teacher_names, student_names]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_pairs_can_be_lowered(count):
    assert named(pairs_of("resnet", "convnext", pairs=count)) == (
        [f"resnet.encoder.stages.{stage}" for stage in range(4 - count, 4)],
        [f"convnext.encoder.stages.{stage}" for stage in range(4 - count, 4)],
    )


def test_pairing_leaves_modes_and_hooks_as_they_were():
    teacher, _, _ = family("resnet")
    teacher.train()
    teacher.resnet.embedder.eval()
    before = {name: module.training for name, module in teacher.named_modules()}
    statistics = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    pairs_of("resnet", "convnext")
    assert {name: module.training for name, module in teacher.named_modules()} == before
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in teacher.named_buffers())
    assert not any(module._forward_hooks for module in teacher.modules())
    teacher.eval()


# Named pairs


def test_layers_are_paired_by_name_in_the_given_order():
    entries = [
        "resnet.encoder.stages.3 = convnext.encoder.stages.2",  # blanks do not matter
        "resnet.encoder.stages.0=convnext.encoder.stages.2",  # a student layer may be used twice
        "resnet.encoder.stages.2.layers.0=convnext.encoder.stages.3",
    ]
    pairs = pairs_of("resnet", "convnext", entries)
    assert [str(pair) for pair in pairs] == [entry.replace(" ", "") for entry in entries]
    assert [pair.dimensions for pair in pairs] == [16, 4, 12]


def test_expressions_pair_their_matches_in_the_models_order():
    entries = [r"vit\.layers\.[135]=deit\.layers\.(0|2|4)", "vit.layers.4=deit.layers.3"]
    assert named(pairs_of("vit of 6", "deit", entries)) == (
        [f"vit.layers.{block}" for block in (1, 3, 5, 4)],
        [f"deit.layers.{block}" for block in (0, 2, 4, 3)],
    )


def test_a_named_last_block_stays():
    (pair,) = pairs_of("vit of 6", "resnet", ["vit.layers.5=resnet.encoder.stages.3"])
    assert pair.teacher.name == "vit.layers.5"
    assert pair.drops_prefix


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("resnet.encoder.stages.1", "not of the form 'teacher_layer=student_layer'"),
        ("=convnext.encoder.stages.1", "not of the form"),
        ("resnet.encoder.stages.1= ", "not of the form"),
        ("auto", "not of the form"),
        ("resnet.encoder.stage.1=convnext.encoder.stages.1", r"nearest names: .*resnet\.encoder\.stages\.1"),
        ("resnet.encoder.stages.1=convnext.encoder.stages.7", r"nearest names: .*convnext\.encoder\.stages"),
        (
            r"resnet\.encoder\.stages\.\d=convnext\.encoder\.stages\.[12]",
            r"matches 4 teacher layers \(.*stages\.3\) and 2 student layers \(.*\): expected as many on each side",
        ),
        ("resnet.encoder.stages.0=convnext.encoder.stages.1", r"'resnet\.encoder\.stages\.0' is in two pairs"),
        ("resnet.encoder.(=convnext.encoder.stages.1", "not a regular expression"),
    ],
)
def test_a_malformed_entry_is_refused_and_says_why(entry, message):
    teacher, student = family("resnet")[0], family("convnext")[0]
    with pytest.raises(LayerError, match=message):
        parse_layers(teacher, student, ["resnet.encoder.stages.0=convnext.encoder.stages.0", entry])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("classifier.1", r"'classifier\.1' gives a torch\.float32 tensor of shape \(1, 3\)"),
        ("resnet.encoder.stages", r"'resnet\.encoder\.stages' did not run"),  # a list, never called
    ],
)
def test_a_layer_that_gives_no_hidden_state_is_refused(layer, message):
    with pytest.raises(LayerError, match=message):
        pairs_of("resnet", "convnext", [f"{layer}=convnext.encoder.stages.1"])


# Descriptions


def test_layers_that_are_overwritten_later_are_marked():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU())
    shapes = describe_layers(model, ["0", "2"], lambda: model(torch.randn(1, 3, 8, 8)), (8, 8))
    assert [shape.modified_in_place for shape in shapes] == [True, False]


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@pytest.mark.parametrize("width", [3, 5, 40])
def test_channels_last_outputs_are_recognised(size, width):
    class Permuted(nn.Conv2d):
        def forward(self, pixels):
            return super().forward(pixels).permute(0, 2, 3, 1)

    model = nn.ModuleDict({"first": nn.Conv2d(3, width, 4, 4), "last": Permuted(3, width, 4, 4)})
    pixels = torch.randn(1, 3, *size)

    def forward():
        for module in model.values():
            module(pixels)

    shapes = describe_layers(model, ["first", "last"], forward, size)
    assert [shape.channels_last for shape in shapes] == [False, True]
    assert {(shape.width, shape.grid) for shape in shapes} == {(width, (size[0] // 4, size[1] // 4))}


def test_the_table_shows_every_name_shape_and_subspace():
    pairs = pairs_of("vit of 6", "timm mobilenetv4")
    lines = layer_table(pairs).splitlines()
    assert len(lines) == 2 + len(pairs)
    for pair, line in zip(pairs, lines[2:], strict=True):
        for shape in (pair.teacher, pair.student):
            assert f"{shape.name}  " in line
            assert str(shape) in line
        assert line.endswith(f"{pair.dimensions} of {pair.teacher.width}")
    starts = {line.index(str(pair.student)) for pair, line in zip(pairs, lines[2:], strict=True)}
    assert len(starts) == 1  # columns are aligned


def test_the_table_of_hand_made_pairs():
    pairs = [
        LayerPair(LayerShape("layer1", 64, (8, 8), 0), LayerShape("blocks.0", 16, (4, 4), 0)),
        LayerPair(LayerShape("layer2", 128, (4, 4), 1), LayerShape("blocks.10", 160, (2, 2), 0)),
    ]
    assert layer_table(pairs).splitlines() == [
        "teacher layer  output                student layer  output     subspace",
        "-------------  --------------------  -------------  ---------  ----------",
        "layer1         64 x 8x8              blocks.0       16 x 4x4   16 of 64",
        "layer2         128 x 4x4 + 1 tokens  blocks.10      160 x 2x2  128 of 128",
    ]
