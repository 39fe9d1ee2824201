"""Zero-shot teachers: parity with the pipeline of transformers, one pass of the text side, and refused words."""

import json

import pytest
import torch
from transformers import pipeline

from helpers import glyph_rows
from image_text import CLASSES, FAMILIES, clip, save_image_text_model, tokenizer
from subdistill_hf.models import zero_shot
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.words import Words, phrases_of_names
from subdistill_hf.models.zero_shot import (
    OTHER_PROMPTS,
    as_classifier,
    usual_other_prompts,
)
from subdistill_hf.models.zero_shot_teachers import is_zero_shot, load_zero_shot

WORDS = phrases_of_names(CLASSES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model of each family with its tokenizer and image processor."""
    return {name: save_image_text_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_those_of_the_pipeline(folders, family):
    prompt = "This is a photo of {}."
    teacher = load_zero_shot(str(folders[family]), Words(WORDS, (prompt,)))
    images = [image.convert("RGB") for image in glyph_rows()["img"][:3]]
    pixels = teacher.processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = teacher.model(pixels)[:, : len(CLASSES)].double()
    ours = logits.sigmoid() if family.startswith("siglip") else logits.softmax(dim=1)
    classify = pipeline("zero-shot-image-classification", model=str(folders[family]))
    for image, row in zip(images, ours, strict=True):
        theirs = {
            each["label"]: each["score"]
            for each in classify(image, candidate_labels=list(CLASSES), hypothesis_template=prompt)
        }
        for name, value in zip(CLASSES, row.tolist(), strict=True):
            assert value == pytest.approx(theirs[name], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_side_runs_once_and_is_not_kept(folders, family):
    teacher = load_zero_shot(str(folders[family]), Words(WORDS))
    names = [name for name, _ in teacher.model.named_parameters()]
    assert not [name for name in names if "text" in name]
    assert teacher.model.word_head.weight.shape[0] > len(CLASSES)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert [teacher.labels[output] for output in range(3)] == list(CLASSES)


def test_several_phrases_and_prompts_are_averaged():
    model, words = clip(), tokenizer()
    texts = [
        "a photo of red tomato .",
        "a picture of red tomato .",
        "a photo of ripe tomato .",
        "a picture of ripe tomato .",
    ]
    with torch.no_grad():
        features = torch.stack([zero_shot._text_embedding(model.eval(), words, [text]) for text in texts]).double()
    expected = features.mean(0) / features.mean(0).norm()
    given = Words((("red tomato", "ripe tomato"), ("a photo",)), ("a photo of {} .", "a picture of {} ."))
    scale = float(model.logit_scale.detach().exp())
    made = as_classifier(model, words, given)
    torch.testing.assert_close(made.word_head.weight[0].double() / scale, expected, atol=1e-6, rtol=0)
    assert given.names == ("red tomato", "a photo")


def test_a_sigmoid_model_has_one_more_output_whose_logit_is_zero(folders):
    teacher = load_zero_shot(str(folders["siglip"]), Words(WORDS))
    with torch.no_grad():
        logits = teacher.model(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 4)
    assert not logits[:, 3].any()
    assert teacher.labels[3] == "none of these"


def test_image_text_models_are_told_from_classifiers(folders, tmp_path):
    assert all(is_zero_shot(str(folder)) for folder in folders.values())
    assert not is_zero_shot("glyphs-resnet")
    assert not is_zero_shot(str(tmp_path / "nowhere"))
    settings = json.loads((folders["clip"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["CLIPForImageClassification"]}))
    assert not is_zero_shot(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_is_not_read_to_its_end_is_refused(folders, family):
    long = "tomato " * 80
    message = "the text '.*tomato .*has [0-9]+ tokens, the teacher reads 64: give fewer words"
    for words in (
        Words((("a ripe tomato",), (long,))),
        Words((("a ripe tomato",), ("a red tomato", long))),
        Words(WORDS, other_prompts=(long,)),
    ):
        with pytest.raises(ModelError, match=message):
            load_zero_shot(str(folders[family]), words)


def test_classes_whose_texts_are_the_same_to_the_teacher_are_refused(folders):
    same = Words(phrases_of_names(["a ripe tomato", "a nectarine", "a mandarine"]))  # both words are unknown
    with pytest.raises(ModelError, match="classes 'a nectarine' and 'a mandarine' are the same text to the teacher"):
        load_zero_shot(str(folders["clip"]), same)


def test_a_model_that_compares_otherwise_is_refused():
    model = clip()
    model.forward = lambda **given: type("Output", (), {"logits_per_image": torch.tensor([[3.0]])})
    with pytest.raises(ModelError, match="by more than the cosine"):
        as_classifier(model, tokenizer(), Words(WORDS))


@pytest.mark.parametrize(
    ("classes", "left_out"),
    [
        (("a ripe tomato", "a rotten tomato"), set()),
        (("a person", "a dog"), {"a photo of a person."}),
        (("two people", "a Building"), {"a photo of a person.", "a photo of a building."}),
        (("wild animals", "texture"), {"a photo of an animal.", "a texture."}),
        (("a photo", "something else"), set()),
    ],
)
def test_usual_texts_of_none_of_the_classes_name_none_of_them(classes, left_out):
    assert usual_other_prompts(phrases_of_names(classes)) == tuple(
        prompt for prompt in OTHER_PROMPTS if prompt not in left_out
    )


def test_a_text_of_none_of_the_classes_that_is_a_text_of_a_class_is_refused(folders):
    given = Words(WORDS, ("a photo of {}.",), other_prompts=("a photo of a ripe tomato.",))
    with pytest.raises(ModelError, match="is of none of the classes, and is that of the class 'a ripe tomato' too"):
        load_zero_shot(str(folders["clip"]), given)
