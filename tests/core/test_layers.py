"""What layers return, and where models of many families split naturally."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.xcit import Xcit
from torch import nn

from families import FAMILIES, example, numbered, transformer
from subdistill_hf.core.activations import LayerError, to_features
from subdistill_hf.core.hooks import record
from subdistill_hf.core.layers import LayerShape, block_chain, choose_stages, describe_layers, stage_outputs
from subdistill_hf.models.heads import new_classifier


def execution_order(name, layers):
    """The layers in the order in which they return."""
    model, forward, _ = example(name)
    order = []
    with torch.no_grad(), record(model, layers, transform=lambda layer, output: order.append(layer)):
        forward()
    return order


def stages_of_chain(*modules, size=32):
    model = nn.Sequential(*modules)
    pixels = torch.randn(1, 3, size, size)
    return stage_outputs(model, lambda: model(pixels), (size, size))


# The natural places of a model


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_splits_at_its_stages_or_at_equal_depths(name):
    model, forward, size = example(name)
    names = stage_outputs(model, forward, size)
    shapes = describe_layers(model, names, forward, size)
    assert {shape.name: str(shape) for shape in shapes} == FAMILIES[name].stages
    assert shapes == choose_stages(block_chain(model, forward, size))
    assert execution_order(name, names) == names


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_those_of_the_recorded_features(name):
    model, forward, size = example(name)
    names = list(FAMILIES[name].stages)
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
    model, forward, size = example(name)
    names = stage_outputs(model, forward, size, stages)
    expected = list(FAMILIES[name].stages)
    assert len(names) == min(stages, len(expected))
    assert names[-1] == expected[-1]
    assert execution_order(name, names) == names


@pytest.mark.parametrize(
    ("grids", "stages", "expected"),
    [
        ((8, 8, 8, 4, 4, 4), 4, [1, 2, 4, 5]),  # shrunk once: at equal depths
        ((8, 8, 8, 4, 4, 4), 3, [1, 3, 5]),
        ((8, 8, 8, 4, 4, 4), 2, [2, 5]),
        ((8, 8, 4, 4, 4, 2), 4, [1, 4, 5]),  # shrunk in stages: where each ends
        ((8, 8, 4, 4, 4, 2), 2, [4, 5]),
        ((4, 4, 4, 4, 4, 4), 4, [1, 2, 4, 5]),
    ],
)
def test_a_chain_of_three_resolutions_splits_by_them_and_one_of_fewer_at_equal_depths(grids, stages, expected):
    chain = [LayerShape(str(place), 16, (side, side), 0) for place, side in enumerate(grids)]
    assert choose_stages(chain, stages) == [chain[place] for place in expected]


def convolution(width, wider, stride=2):
    return nn.Conv2d(width, wider, 3, stride=stride, padding=1)


def test_a_plain_chain_of_modules_splits_by_resolution():
    def stage(width, wider):
        return [convolution(width, wider), nn.ReLU()]

    assert stages_of_chain(*stage(3, 4), *stage(4, 6), *stage(6, 8)) == ["1", "3", "5"]


def test_a_map_that_is_only_pooled_is_no_stage():
    def stage(width, wider):
        return [convolution(width, wider, stride=1), nn.ReLU(), nn.MaxPool2d(2)]

    assert stages_of_chain(*stage(3, 4), *stage(4, 6), *stage(6, 8)) == ["1", "4", "7"]


class Shrinking(nn.Module):
    """A stage that ends by shrinking its map, as Swin's."""

    def __init__(self, width, shrinks=True):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(convolution(width, width, 1)) for _ in range(2)])
        self.shrink = convolution(width, 2 * width) if shrinks else nn.Identity()

    def forward(self, values):
        for block in self.blocks:
            values = block(values)
        return self.shrink(values)


def test_a_stage_that_ends_by_shrinking_stands_for_its_last_block_before():
    names = stages_of_chain(nn.Sequential(convolution(3, 4)), Shrinking(4), Shrinking(8), Shrinking(16, shrinks=False))
    assert names == ["1.blocks.1", "2.blocks.1", "3"]


@pytest.mark.parametrize(("stride", "expected"), [(1, "2"), (2, "3")])
def test_a_last_block_that_widens_is_the_head_unless_it_also_shrinks(stride, expected):
    names = stages_of_chain(
        *(nn.Sequential(convolution(*widths)) for widths in [(3, 4), (4, 8), (8, 16)]),
        nn.Sequential(convolution(16, 64, stride)),
    )
    assert names[-1] == expected


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


def test_a_model_whose_blocks_have_no_grid_is_refused_with_the_reason():
    class Tokens(nn.Sequential):
        def forward(self, pixels):
            return super().forward(pixels.flatten(2))

    model = Tokens(nn.Sequential(nn.Linear(64, 8)), nn.Sequential(nn.Linear(8, 8)))
    expected = (
        r"no chain of blocks was found in Tokens: cannot place 35 tokens of layer '0' on a grid for an input of "
        r"8x8 pixels: .*\. Name the layer pairs, as in .*teacher\.layer=student\.layer"
    )
    with pytest.raises(LayerError, match=expected):
        stage_outputs(model, lambda: model(torch.zeros(1, 35, 8, 8)), (8, 8))


PYRAMID = {"hidden_sizes": [4, 8, 12, 16], "depths": [2, 1, 2, 2], "num_labels": 3}


@pytest.mark.parametrize(
    ("class_name", "configuration", "stages"),
    [
        ("PoolFormerForImageClassification", {}, numbered("poolformer.encoder.block.", ("0.1", "1.0", "2.1", "3.1"))),
        (
            "PvtForImageClassification",
            {"image_size": 64, "num_attention_heads": [1, 2, 2, 2]},
            numbered("pvt.encoder.block.", ("0.1", "1.0", "2.1", "3.1")),
        ),
        (
            "PvtV2ForImageClassification",  # a stage returns a tuple in a tuple
            {"image_size": 64, "num_attention_heads": [1, 2, 2, 2]},
            numbered("pvt_v2.encoder.layers."),
        ),
    ],
)
def test_blocks_in_lists_of_lists_are_compared_and_not_the_embeddings_beside_them(class_name, configuration, stages):
    model = new_classifier(class_name, **PYRAMID, **configuration)
    pixels = torch.randn(1, 3, 64, 64)
    chosen = choose_stages(block_chain(model, lambda: model(pixel_values=pixels), (64, 64)))
    assert [shape.name for shape in chosen] == stages
    assert [shape.grid for shape in chosen] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_the_convolutions_that_make_the_tokens_of_a_transformer_are_no_stages():
    model = Xcit(img_size=64, patch_size=16, embed_dim=16, depth=3, num_heads=2, cls_attn_layers=1, num_classes=3)
    pixels = torch.randn(1, 3, 64, 64)
    chain = block_chain(model, lambda: model(pixels), (64, 64))
    assert [shape.name for shape in chain] == ["blocks.0", "blocks.1", "blocks.2", "cls_attn_blocks.0"]
    assert {shape.grid for shape in chain} == {(4, 4)}


class Windows(nn.Module):
    """A stage whose block sees the windows of an image beside each other, as in NesT (`axis` 1) or TNT (`axis` 0)."""

    def __init__(self, width, wider, axis):
        super().__init__()
        self.shrink = convolution(width, wider)
        self.block = nn.ModuleList([nn.Sequential(nn.Linear(wider, wider))])
        self.axis = axis

    def forward(self, values):
        maps = self.shrink(values)
        images, width, height, columns = maps.shape
        windows = maps.unflatten(2, (2, height // 2)).unflatten(4, (2, columns // 2)).permute(0, 2, 4, 3, 5, 1)
        windows = windows.reshape(images, 4, -1, width)
        windows = self.block[0](windows if self.axis == 1 else windows.flatten(0, 1))
        windows = windows.reshape(images, 2, 2, height // 2, columns // 2, width).permute(0, 5, 1, 3, 2, 4)
        return windows.reshape(images, width, height, columns)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_windows_of_a_stage_are_no_map_of_the_image(axis):
    assert stages_of_chain(Windows(3, 6, axis), Windows(6, 12, axis), Windows(12, 20, axis)) == ["0", "1", "2"]


def window_model():
    """Two blocks that return the windows of all images, one after the other."""
    windows = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Unflatten(2, (4, 16)))
    turned = nn.Sequential(nn.Linear(16, 16))
    return nn.ModuleDict({"windows": windows, "blocks": nn.ModuleList([turned, nn.Sequential(nn.Linear(16, 16))])})


@pytest.mark.parametrize("images", [1, 2])
def test_layers_whose_first_dimension_is_not_the_images_are_refused(images):
    model = window_model()

    def forward():
        values = model["windows"](torch.zeros(images, 3, 32, 32)).permute(0, 2, 3, 1).flatten(0, 1)  # (4 B, 16, 8)
        for block in model["blocks"]:
            values = block(values.transpose(1, 2)).transpose(1, 2)
        return values.reshape(images, -1)

    found = rf"layer 'blocks\.0' gives a tensor of shape \({4 * images}, 8, 16\) .*logits of {images} images"
    with pytest.raises(LayerError, match=rf"no chain of blocks was found in ModuleDict: {found}"):
        block_chain(model, forward, (32, 32))
    with pytest.raises(LayerError, match=found):
        describe_layers(model, ["blocks.0"], forward, (32, 32))


@pytest.mark.parametrize(("size", "patch", "grid"), [(28, 3, 9), (84, 10, 8), (100, 12, 8)])
def test_a_vision_transformer_may_cut_off_the_remainder_of_an_image(size, patch, grid):
    model = new_classifier(
        "ViTForImageClassification",
        **transformer(4, image_size=size, patch_size=patch),
    )
    pixels = torch.zeros(1, 3, size, size)
    chain = block_chain(model, lambda: model(pixel_values=pixels), (size, size))
    assert {str(shape) for shape in chain} == {f"16 x {grid}x{grid} + 1 tokens"}
    assert len(chain) == 4


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


@pytest.mark.parametrize("declared", [None, "NHWC"])
@pytest.mark.parametrize(
    ("size", "grid"), [((32, 36), (4, 5)), ((33, 47), (5, 6)), ((40, 200), (5, 25)), ((9, 9), (2, 2))]
)
def test_maps_that_are_padded_to_whole_cells_are_recognised(size, grid, declared):
    class Padded(nn.Module):
        output_fmt = declared

        def __init__(self, last):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 48, 3, 8, 1), last

        def forward(self, pixels):
            return self.conv(pixels).permute(0, 2, 3, 1) if self.last else self.conv(pixels)

    model = nn.ModuleDict({"first": Padded(False), "last": Padded(True)})
    shapes = describe_layers(
        model, ["first", "last"], lambda: [module(torch.randn(1, 3, *size)) for module in model.values()], size
    )
    assert [shape.channels_last for shape in shapes] == [False, True]
    assert {(shape.width, shape.grid) for shape in shapes} == {(48, grid)}


def test_the_stages_of_a_swin_on_an_image_that_is_not_square():
    size = (32, 36)
    model = SwinTransformer(
        img_size=size, patch_size=2, depths=(1, 1, 1), window_size=4, embed_dim=12, num_heads=(1, 2, 2), num_classes=3
    )
    pixels = torch.randn(1, 3, *size)
    shapes = describe_layers(model, ["patch_embed.proj", "layers.1", "layers.2"], lambda: model(pixels), size)
    assert [str(shape) for shape in shapes] == ["12 x 16x18", "24 x 8x9", "48 x 4x5"]
    chosen = choose_stages(block_chain(model, lambda: model(pixels), size))
    assert {(shape.width, shape.grid) for shape in chosen} == {(12, (16, 18)), (24, (8, 9)), (48, (4, 5))}


def test_maps_that_are_no_grid_of_the_image_have_their_channels_first():
    model = nn.Sequential(nn.Conv2d(3, 24, 3, (4, 1), 1))  # as of a line of text
    (shape,) = describe_layers(model, ["0"], lambda: model(torch.randn(1, 3, 32, 128)), (32, 128))
    assert str(shape) == "24 x 8x128"


def test_the_nearest_module_says_the_side_of_the_channels():
    class Blocks(nn.Sequential):
        output_fmt = "NHWC"

    class Turned(nn.Sequential):
        output_fmt = "NCHW"

    model = nn.Sequential(Blocks(nn.Conv2d(3, 8, 4, 4), Turned(nn.Conv2d(8, 8, 1))), nn.Conv2d(8, 8, 1))
    shapes = describe_layers(model, ["0.0", "0.1", "0.1.0", "1"], lambda: model(torch.randn(1, 3, 32, 32)), (32, 32))
    assert [shape.channels_last for shape in shapes] == [True, False, False, False]


@pytest.mark.parametrize("declared", [None, "NHWC"])
def test_where_the_shape_does_not_tell_the_side_of_the_channels_the_model_does(declared):
    class Blocks(nn.Sequential):
        output_fmt = declared

    model = Blocks(nn.Conv2d(3, 8, 4, 4))
    (shape,) = describe_layers(model, ["0"], lambda: model(torch.randn(1, 3, 32, 32)), (32, 32))
    assert shape.channels_last == (declared == "NHWC")
    assert (shape.width, shape.grid) == (8, (8, 8))
