"""Choosing the layer pairs: over model families built from their configurations, by name, and by expression."""

import itertools
from functools import cache

import pytest
import torch

from families import FAMILIES, FOUR_MAPS, TOKENS, example
from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.layers import LayerShape, block_chain
from subdistill_hf.core.pairing import LayerPair, layer_table, pair_chains, pair_layers, parse_layers


def pairs_of(teacher_name, student_name, layers=("auto",), pairs=4):
    teacher, teacher_forward, teacher_size = example(teacher_name)
    student, student_forward, student_size = example(student_name)
    return pair_layers(teacher, student, layers, teacher_forward, student_forward, teacher_size, student_size, pairs)


@cache
def chain(name):
    return block_chain(*example(name))


def named(pairs):
    return [pair.teacher.name for pair in pairs], [pair.student.name for pair in pairs]


# Automatic pairs


@pytest.mark.parametrize("teacher", FAMILIES)
@pytest.mark.parametrize("student", FAMILIES)
def test_automatic_pairs_of_any_two_families_go_from_shallow_to_deep(teacher, student):
    pairs = pair_chains(chain(teacher), chain(student))
    teacher_names, student_names = named(pairs)
    for before, after in itertools.pairwise(pairs):
        for side in ("teacher", "student"):
            assert getattr(before, side).grid >= getattr(after, side).grid
    order = [[shape.name for shape in chain(name)] for name in (teacher, student)]
    for side, names in zip(order, (teacher_names, student_names), strict=True):
        positions = [side.index(name) for name in names]
        assert positions == sorted(set(positions))
    for pair in pairs:
        assert pair.dimensions == min(pair.teacher.width, pair.student.width)
        assert pair.drops_prefix == (pair.teacher.prefix != pair.student.prefix)
    assert student_names[-1] == list(FAMILIES[student].stages)[-1]
    blocks_that_teach = len(chain(teacher)) - (teacher in TOKENS and pairs[-1].drops_prefix)
    assert len(pairs) == min(len(FAMILIES[teacher].stages), len(FAMILIES[student].stages), blocks_that_teach)


@pytest.mark.parametrize(("teacher", "student"), list(itertools.permutations(FOUR_MAPS, 2)))
def test_four_stages_are_paired_with_four_in_order(teacher, student):
    pairs = pair_chains(chain(teacher), chain(student))
    assert named(pairs) == (list(FAMILIES[teacher].stages), list(FAMILIES[student].stages))
    assert not any(pair.drops_prefix for pair in pairs)


@pytest.mark.parametrize(("teacher", "student"), [("swin", "timm mobilenetv4"), ("vit", "timm regnet")])
def test_models_are_paired_as_their_chains_are(teacher, student):
    assert pairs_of(teacher, student) == pair_chains(chain(teacher), chain(student))


@pytest.mark.parametrize("teacher", [name for name in TOKENS if name != "vit of 2"])
@pytest.mark.parametrize("student", ["resnet", "swin", "timm mobilenetv4"])
def test_a_transformer_teaches_a_convolutional_student_up_to_its_last_block_but_one(teacher, student):
    pairs = pair_chains(chain(teacher), chain(student))
    assert all(pair.drops_prefix for pair in pairs)
    last = list(FAMILIES[teacher].stages)[-1]
    container, _, number = last.rpartition(".")
    assert pairs[-1].teacher.name == f"{container}.{int(number) - 1}"  # after the last, patches have no context


def test_a_transformer_teaches_one_of_its_kind_up_to_its_last_block():
    teacher_names, student_names = named(pairs_of("vit", "timm vit"))
    assert teacher_names == [f"vit.layers.{block}" for block in (1, 2, 4, 5)]
    assert student_names == [f"timm_model.blocks.{block}" for block in (1, 3, 5, 7)]
    assert named(pairs_of("deit", "vit"))[0][-1] == "deit.layers.3"  # another number of prefix tokens


@pytest.mark.parametrize(
    ("teacher", "student", "teacher_names", "student_names"),
    [
        ("resnet", "resnet of 2", [2, 3], [0, 1]),
        ("resnet of 2", "resnet", [0, 1], [2, 3]),
        ("convnext", "vit of 2", [2, 3], [0, 1]),
        ("vit", "vit of 2", [2, 5], [0, 1]),
        ("vit of 2", "resnet", [0], [3]),
        ("vit", "resnet", [1, 2, 3, 4], [0, 1, 2, 3]),
        ("vit, wide image", "resnet", [2, 5, 8, 10], [0, 1, 2, 3]),
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
    teacher, _, _ = example("resnet")
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
    assert named(pairs_of("vit", "deit", entries)) == (
        [f"vit.layers.{block}" for block in (1, 3, 5, 4)],
        [f"deit.layers.{block}" for block in (0, 2, 4, 3)],
    )


def test_a_named_last_block_stays():
    (pair,) = pairs_of("vit", "resnet", ["vit.layers.5=resnet.encoder.stages.3"])
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
    teacher, student = example("resnet")[0], example("convnext")[0]
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


def test_the_table_shows_every_name_shape_and_subspace():
    pairs = pairs_of("vit", "timm mobilenetv4")
    lines = layer_table(pairs).splitlines()
    assert len(lines) == 2 + len(pairs)
    for pair, line in zip(pairs, lines[2:], strict=True):
        for shape in (pair.teacher, pair.student):
            assert f"{shape.name}  " in line
            assert str(shape) in line
        assert line.endswith(f"{pair.dimensions} of {pair.teacher.width}")
    starts = {line.index(str(pair.student)) for pair, line in zip(pairs, lines[2:], strict=True)}
    assert len(starts) == 1  # columns are aligned


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [((8, 8), (8, 8), None), ((8, 8), (4, 4), (4, 4)), ((4, 4), (8, 8), None), ((6, 2), (3, 4), (3, 2))],
)
def test_the_teachers_map_is_pooled_where_the_students_grid_is_smaller(teacher, student, expected):
    pair = LayerPair(LayerShape("theirs", 6, teacher, 0), LayerShape("ours", 4, student, 1))
    assert pair.pooled_grid == expected


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
    assert (
        layer_table(pairs, subspaces=False).splitlines()[2]
        == "layer1         64 x 8x8              blocks.0       16 x 4x4"
    )
