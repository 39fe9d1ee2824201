"""An image-text model as a classifier whose classes are words.

The text side runs once. What teaches is the vision side with a matrix of class embeddings as its head, so that caches,
subspaces, layer pairs and adapters treat it as any classifier.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

from subdistill_hf.hub.errors import explain, missing_place
from subdistill_hf.models.configuration import without_loading_reports
from subdistill_hf.models.errors import LOADING_ERRORS, ModelError
from subdistill_hf.models.heads import labels_of, names_of
from subdistill_hf.models.one_size import OfOneSize, reads_patches
from subdistill_hf.models.words import Phrases, Words

USUAL_PROMPTS: Final = ("a photo of {}.", "a close-up photo of {}.", "a blurry photo of {}.", "a picture of {}.")
PROMPTS: Final[dict[str, tuple[str, ...]]] = {
    "chinese_clip": ("{}的照片。", "{}的图片。"),
    "siglip": ("This is a photo of {}.",),
    "siglip2": ("This is a photo of {}.",),
}
"""Kind of model to its usual prompts, where these are not `USUAL_PROMPTS`; SigLIP was trained on whole captions, and
its card advises this one."""
OTHER_PROMPTS: Final = (
    "a photo.",
    "a photo of something else.",
    "a photo of a person.",
    "a photo of an animal.",
    "a photo of an object.",
    "a photo of a landscape.",
    "a photo of a building.",
    "a photo of a room.",
    "a texture.",
    "a text.",
)
"""What a photograph of none of the classes may be described as."""
NO_SUBJECT: Final = frozenset({"a", "an", "of", "photo", "something", "else"})
"""Words of these that say nothing of what is shown."""
LIKE_PEOPLE: Final = frozenset(
    {"people", "human", "man", "men", "woman", "women", "child", "children", "boy", "girl", "face"}
)
"""Words beside which "a photo of a person." would take images from a class."""
NOTHING: Final = "none of these"
OTHER_TEXT: Final = "(other) "
"""How the names of outputs begin that stand for texts of none of the classes."""
SIGLIP_TOKENS: Final = 64
PARITY: Final = 1e-4
"""How far a logit may be from the model's own, beside its size."""


class ZeroShotClassifier(nn.Module):
    """The vision side of an image-text model with a fixed head of class embeddings.

    Args:
        vision: an image-text model without its text side; `get_image_features` gives the image embeddings.
        embeddings: of the classes, of length 1, `(K, D)`.
        scale: factor of the cosines.
        bias: added to each logit.
        names: of the outputs.
    """

    head_names: Final = ("word_head",)
    """What an adapter trains, see `adapters.head_modules`. No classifier of transformers calls its head so: an adapter
    of this one must not fit another network."""
    base_model_prefix: Final = ""
    """PEFT asks for it, through transformers, where a model has models of transformers as parts."""

    def __init__(self, vision: Any, embeddings: Tensor, scale: float, bias: Tensor, names: Sequence[str]) -> None:
        super().__init__()
        self.config = copy.deepcopy(getattr(vision.config, "vision_config", vision.config))
        self.config.update(labels_of(names))
        self.config._name_or_path = vision.config._name_or_path
        self.vision = vision
        self.word_head = nn.Linear(embeddings.shape[1], embeddings.shape[0])
        with torch.no_grad():
            self.word_head.weight.copy_(scale * embeddings)
            self.word_head.bias.copy_(bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(B, K)` of images `(B, 3, H, W)`."""
        logits: Tensor = self.word_head(image_embeddings(self.vision, pixel_values))
        return logits


def class_labels(model: nn.Module) -> dict[int, str]:
    """The outputs of a classifier that stand for classes, by name: all, but those of none of a teacher's words."""
    labels = dict(enumerate(names_of(model.config)))
    if not isinstance(model, ZeroShotClassifier):
        return labels
    return {output: name for output, name in labels.items() if name != NOTHING and not name.startswith(OTHER_TEXT)}


def of_first_outputs(model: ZeroShotClassifier, count: int) -> ZeroShotClassifier:
    """A classifier of the first outputs of another, with the same vision side: of the classes without the other texts.

    Args:
        model: the other; it shares its vision side with the new one.
        count: how many outputs.
    """
    head, names = model.word_head, names_of(model.config)[:count]
    first = ZeroShotClassifier(model.vision, head.weight[:count], 1.0, head.bias[:count], names)
    return first.train(model.training)


@torch.no_grad()
def add_outputs(model: ZeroShotClassifier, whole: nn.Linear, names: Sequence[str]) -> None:
    """Give a classifier the outputs that `of_first_outputs` left out, in place.

    Args:
        model: of the first outputs.
        whole: the head of all outputs; its first rows give way to those of `model`.
        names: of all outputs.
    """
    own, first = model.word_head, len(model.word_head.bias)
    head = nn.Linear(whole.in_features, whole.out_features).to(own.weight)
    head.weight.copy_(torch.cat([own.weight, whole.weight[first:].to(own.weight)]))
    head.bias.copy_(torch.cat([own.bias, whole.bias[first:].to(own.bias)]))
    model.word_head = head
    model.config.update(labels_of(names))


def image_embeddings(model: Any, pixel_values: Tensor) -> Tensor:
    """The embeddings of images, of length 1, `(B, D)`."""
    return F.normalize(_pooled(model.get_image_features(pixel_values=pixel_values)), dim=-1)


def _pooled(features: Any) -> Tensor:
    """Embeddings as older versions of transformers give them, or as a part of an output."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return found


def read_zero_shot(
    name: str, words: Words, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[ZeroShotClassifier, Any, Words]:
    """Read an image-text model as a classifier of words; its text side is used once, and not kept.

    Args:
        name: a local folder, or an id of the Hub.
        words: the classes and prompts.
        trust_remote_code: run model code from the repository.
        revision: of the repository.

    Returns:
        The classifier, its image processor, and the words with the prompts that were used.

    Raises:
        ModelError: as `as_classifier` does, and when it cannot be read.
    """
    where: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        with without_loading_reports():
            model = AutoModelForZeroShotImageClassification.from_pretrained(name, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        processor = AutoImageProcessor.from_pretrained(name, **where)
    except LOADING_ERRORS as error:
        reason = missing_place(name) or explain(error).rstrip(".")
        raise ModelError(f"zero-shot teacher {name!r} cannot be loaded: {reason}") from error
    if reads_patches(model):
        model = OfOneSize(model)
        processor = model.square_processor(processor)
    words = replace(words, prompts=prompts_of(model, words), other_prompts=other_prompts_of(model, words))
    return as_classifier(model, tokenizer, words), processor, words


def prompts_of(model: Any, words: Words) -> tuple[str, ...]:
    """The prompts of the classes: those that were given, or those that suit the model."""
    return words.prompts or PROMPTS.get(model.config.model_type, USUAL_PROMPTS)


@torch.no_grad()
def as_classifier(model: Any, tokenizer: Any, words: Words) -> ZeroShotClassifier:
    """A classifier of words, made of an image-text model, which loses its text side.

    Its outputs are the classes, and behind them what else an image may show: the other prompts, or of a model with
    sigmoids one output whose logit is 0. A sigmoid's logit is the log odds of a class against everything else, so the
    softmax over the classes and that 0 is the probability of each where they exclude each other.

    Args:
        model: the model.
        tokenizer: of its texts.
        words: the classes and prompts.

    Raises:
        ModelError: when its logits are none of a scaled cosine, for a text that is longer than it reads, and for
            classes that its tokenizer does not tell apart.
    """
    model.eval()
    texts = [
        [prompt.format(phrase.replace("_", " ")) for prompt in prompts_of(model, words) for phrase in phrases]
        for phrases in words.classes
    ]
    sigmoid = has_sigmoids(model)
    others = other_prompts_of(model, words)
    texts += [[text] for text in others]
    names = [*words.names, *(f"{OTHER_TEXT}{text}" for text in others)]
    scale, shift = _scale_and_bias(model)
    _check_texts(model, tokenizer, texts, words.names)
    _check_cosine(model, tokenizer, texts[0][0], scale, shift)
    embeddings = torch.stack([_text_embedding(model, tokenizer, each) for each in texts])
    bias = torch.full((len(texts),), shift)
    if sigmoid and not others:
        embeddings = torch.cat([embeddings, torch.zeros_like(embeddings[:1])])
        bias, names = torch.cat([bias, torch.zeros(1)]), [*names, NOTHING]
    _drop_text_side(model)
    return ZeroShotClassifier(model, embeddings, scale, bias, names)


def other_prompts_of(model: Any, words: Words) -> tuple[str, ...]:
    """The texts of none of the classes: those that were given, none for a model with sigmoids, or usual ones."""
    return words.other_prompts or (() if has_sigmoids(model) else usual_other_prompts(words.classes))


def usual_other_prompts(classes: Phrases) -> tuple[str, ...]:
    """Those of `OTHER_PROMPTS` that name none of the classes: an image of one must not be one of "none of these".

    Args:
        classes: the phrases of each class.
    """
    named = {word for phrases in classes for phrase in phrases for word in re.findall(r"\w+", phrase.casefold())}
    named |= {word.removesuffix("s") for word in named}
    if named & LIKE_PEOPLE:
        named.add("person")
    return tuple(prompt for prompt in OTHER_PROMPTS if not named & (set(re.findall(r"\w+", prompt)) - NO_SUBJECT))


def has_sigmoids(model: Any) -> bool:
    """Whether each logit is the log odds of its own class, as in SigLIP, and not one of a softmax."""
    return "siglip" in model.config.model_type


def _text_embedding(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The mean embedding of some texts, of length 1, `(D,)`."""
    features = F.normalize(_pooled(model.get_text_features(**tokens_of(model, tokenizer, texts))), dim=-1)
    return F.normalize(features.mean(dim=0), dim=0) if len(texts) > 1 else features[0]


def tokens_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> Any:
    """The tokens of texts, padded as the pipeline of transformers does."""
    if has_sigmoids(model):
        return tokenizer(
            list(texts), return_tensors="pt", padding="max_length", max_length=SIGLIP_TOKENS, truncation=True
        )
    return tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)


def _check_texts(model: Any, tokenizer: Any, texts: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """Refuse texts that the model does not read to their end, and those of two classes, or of one and none, alike.

    Args:
        model: the model.
        tokenizer: of its texts.
        texts: those of each class, and behind them the other ones.
        names: of the classes.

    Raises:
        ModelError: with the first text, or the first two classes, or the class and the other text.
    """
    most = _longest_text(model, tokenizer)
    tokens = {text: tuple(tokenizer(text, verbose=False)["input_ids"]) for each in texts for text in each}
    for text, read in tokens.items():
        if len(read) > most:
            raise ModelError(f"the text {text!r} has {len(read)} tokens, the teacher reads {most}: give fewer words")
    seen: dict[tuple[tuple[int, ...], ...], str] = {}
    owners: dict[tuple[int, ...], str] = {}
    for name, each in zip(names, texts, strict=False):  # the other texts may be alike
        if (other := seen.setdefault(tuple(tokens[text] for text in each), name)) != name:
            raise ModelError(f"classes {other!r} and {name!r} are the same text to the teacher: rename one of them")
        owners |= {tokens[text]: name for text in each}
    for (text,) in texts[len(names) :]:
        if (owner := owners.get(tokens[text])) is not None:
            raise ModelError(
                f"the text {text!r} is of none of the classes, and is that of the class {owner!r} too: give "
                "--other_prompts that show none of them"
            )


def _longest_text(model: Any, tokenizer: Any) -> int:
    """How many tokens of a text the model reads."""
    if has_sigmoids(model):
        return SIGLIP_TOKENS
    positions = getattr(getattr(model.config, "text_config", None), "max_position_embeddings", None)
    longest: int = tokenizer.model_max_length
    return min(longest, positions or longest)


def _scale_and_bias(model: Any) -> tuple[float, float]:
    """The factor of a cosine, and what is added to it."""
    if hasattr(model, "temperature"):  # ALIGN
        return float(1 / model.temperature), 0.0
    if not hasattr(model, "logit_scale"):
        raise ModelError(
            f"{type(model).__name__} has no scale of its logits: expected a model that compares images with texts by "
            "the cosine of their embeddings, such as CLIP or SigLIP"
        )
    bias = float(model.logit_bias) if hasattr(model, "logit_bias") else 0.0
    return float(torch.as_tensor(model.logit_scale).exp()), bias


def _check_cosine(model: Any, tokenizer: Any, text: str, scale: float, shift: float) -> None:
    """Refuse a model whose logit of an image and a text is not its scaled cosine.

    Raises:
        ModelError: with both.
    """
    side = getattr(getattr(model.config, "vision_config", None), "image_size", 224)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        own = float(model(**tokens_of(model, tokenizer, [text]), pixel_values=image).logits_per_image)
        ours = float(scale * (image_embeddings(model, image)[0] @ _text_embedding(model, tokenizer, [text])) + shift)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be a zero-shot teacher here: it does not take images of one size, "
            f"`pixel_values` (B, 3, H, W), and texts alone ({error}). Give a model such as CLIP or SigLIP"
        ) from error
    if abs(own - ours) > PARITY * max(1.0, abs(own)):
        raise ModelError(
            f"{type(model).__name__} compares images and texts by more than the cosine of their embeddings: its logit "
            f"is {own:.5f}, that of the cosine {ours:.5f}"
        )


def _drop_text_side(model: Any) -> None:
    """Take out of a model whatever its image embeddings do not need."""
    whole = model.model if isinstance(model, OfOneSize) else model
    used: set[str] = set()
    hooks = [
        child.register_forward_hook(lambda *_, name=name: used.add(name)) for name, child in whole.named_children()
    ]
    side = getattr(getattr(model.config, "vision_config", None), "image_size", 224)
    try:
        image_embeddings(model, torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    for name, _ in list(whole.named_children()):
        if name not in used:
            setattr(whole, name, None)
