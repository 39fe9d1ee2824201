"""Tiny image-text models with random weights, and a tokenizer of a few words."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AlignConfig,
    AlignModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    ViTImageProcessor,
)

WORDS = (
    "[PAD]",
    "[UNK]",
    "a",
    "photo",
    "of",
    "This",
    "is",
    "ripe",
    "unripe",
    "rotten",
    "tomato",
    ".",
    "red",
    "picture",
    "white",
    "chess",
    "king",
    "queen",
    "rook",
)
CLASSES = ("a ripe tomato", "an unripe tomato", "a rotten tomato")
TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tokenizer():
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def siglip2_tokenizer():
    """A token for each character: `AutoTokenizer` takes this class whatever was saved."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    signs = (*special, "\N{LOWER ONE EIGHTH BLOCK}", ".", *"abcdefghijklmnopqrstuvwxyz")
    return Siglip2Tokenizer(vocab={sign: place for place, sign in enumerate(signs)})


def clip():
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))


def siglip():
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    return model


def siglip2_naflex():
    """A SigLIP 2 that reads images of any shape, as patches."""
    vision = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 16}
    model = Siglip2Model(Siglip2Config(text_config=TEXT, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    return model


def align():
    vision = {
        "image_size": 32,
        "kernel_sizes": [3, 3],
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "width_coefficient": 0.1,
        "depth_coefficient": 1.0,
    }
    text = {key: value for key, value in TEXT.items() if key not in ("bos_token_id", "eos_token_id")}
    return AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=8))


FAMILIES = {"clip": clip, "siglip": siglip, "siglip2_naflex": siglip2_naflex, "align": align}


def save_image_text_model(folder, family):
    """A model of a family with its tokenizer and image processor, as `from_pretrained` reads them."""
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(folder)
    patches = family == "siglip2_naflex"
    (siglip2_tokenizer() if patches else tokenizer()).save_pretrained(folder)
    processor = (
        Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
        if patches
        else ViTImageProcessor(size={"height": 32, "width": 32})
    )
    processor.save_pretrained(folder)
    return folder
