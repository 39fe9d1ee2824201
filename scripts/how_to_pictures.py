"""The pictures of three how-to pages, each made from small runs on the embedded images.

    python scripts/how_to_pictures.py unlabelled    # which images without labels the teacher keeps: half a minute
    python scripts/how_to_pictures.py words         # what a teacher of words answers: half a minute
    python scripts/how_to_pictures.py marks         # what students that saw a mark look at: three minutes

The one of words needs a model that compares images with texts, and none is embedded. So one is made: the vision side
of CLIP takes the weights of the embedded glyphs-vit, and the text side learns the names of the 100 symbols.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from subdistill_hf.benchmark.config import read_benchmark
from subdistill_hf.benchmark.jobs import Job, final_jobs, tune
from subdistill_hf.benchmark.training import task_of
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.preprocessing import process
from subdistill_hf.data.subtask import match_teacher
from subdistill_hf.data.unlabelled import load_unlabelled
from subdistill_hf.explain.heatmaps import seen_by
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.explain.pictures import coloured, common_scale, panel, picture_of, shares_on, stacked
from subdistill_hf.explain.relevance import explain_images
from subdistill_hf.models.loading import LoadedModel, load_teacher
from subdistill_hf.models.words import Words
from subdistill_hf.models.zero_shot_teachers import load_zero_shot
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.pipeline.run import build_trainer, teacher_of
from subdistill_hf.pipeline.selection import look_at, masses_of
from subdistill_hf.pipeline.task import Task
from subdistill_hf.reporting.colours import INK
from subdistill_hf.reporting.drawing import TEXT_SIZE, figure_of_panels, save_figure, set_heading

PICTURES = Path(__file__).parents[1] / "docs" / "_static"
SIDE = 32
COLUMNS = 10
GAP = 12
QUALITY = 70  # of noisy images, which are large otherwise

# Images without labels

LOOKED_AT = 2000
EDGES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01, 0.0)
THRESHOLD = 0.5


def draw_unlabelled(path: Path) -> None:
    """Some of the images without labels, by the probability that they show a chess piece."""
    options = TaskOptions(
        classes=["superclass:chess_pieces"],
        train_images_per_class=25,
        unlabelled="glyphs-100",
        unlabelled_images=LOOKED_AT,
    )
    data = load_subtask(options, 0)
    teacher = load_teacher(options.teacher)
    subtask = match_teacher(data.subtask, teacher.labels, data.class_names)
    images = load_unlabelled(options, data.columns, subtask.names, 0)
    masses = masses_of(look_at(images.rows, data.columns, teacher).logits, subtask)
    figure, (ax,) = figure_of_panels(1, 1, panel=(4.4, 2.5))
    rows = list(itertools.pairwise(EDGES))
    order = torch.randperm(len(masses), generator=torch.Generator().manual_seed(0))
    tops = [place * SIDE + (GAP if low < THRESHOLD else 0) for place, (_, low) in enumerate(rows)]
    sheet = np.full((len(rows) * SIDE + GAP, COLUMNS * SIDE, 3), 255, dtype=np.uint8)
    names = []
    for top, (high, low) in zip(tops, rows, strict=True):
        inside = [index for index in order.tolist() if low <= masses[index] < high or masses[index] >= high == 1.0]
        names.append(f"{low:g} to {high:g}: {len(inside):,}")
        for column, index in enumerate(inside[:COLUMNS]):
            pixels = np.asarray(images.rows[index][data.columns.image].convert("RGB"))
            sheet[top : top + SIDE, column * SIDE : (column + 1) * SIDE] = pixels
    ax.imshow(sheet, interpolation="nearest")
    ax.set_yticks([top + SIDE / 2 for top in tops], names)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.axhline(tops[sum(low >= THRESHOLD for _, low in rows)] - GAP / 2, color=INK, linewidth=1.2)
    kept = int((masses >= THRESHOLD).sum())
    set_heading(ax, f"The teacher takes {kept} of {LOOKED_AT:,}")
    save_as_jpeg(figure, path)


def save_as_jpeg(figure: Figure, path: Path) -> None:
    """Write a figure of photographs, or of images as noisy."""
    with tempfile.TemporaryDirectory() as place:
        drawn = save_figure(figure, Path(place, "drawn.png"))
        Image.open(drawn).convert("RGB").save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)


# Words

PROMPT = "a drawing of {}."
CHESS = range(10, 15)
NAMES = [f"a {name.replace('_', ' ')}" for name in CLASS_NAMES]
EACH, STEPS, BATCH = 30, 400, 128
NONE_OF_THESE = (16, 24, 26, 86, 96)
"""Symbols that no class is of."""


def glyphs(numbers: Sequence[int], split: str, each: int) -> list[Tensor]:
    """Images of some classes, `(3, H, W)` bytes."""
    drawn = [render(0, split, number, index).convert("RGB") for number in numbers for index in range(each)]
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in drawn]


def save_image_text_model(folder: Path) -> None:
    """Make a CLIP of the embedded transformer, teach its text side the names of all symbols, and save it."""
    torch.manual_seed(0)
    teacher = load_teacher("glyphs-vit")
    known = sorted({word for name in NAMES for word in PROMPT.format(name).removesuffix(".").split()})
    words = ["[PAD]", "[UNK]", *known, "."]
    splitter = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    splitter.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token=".",
        model_input_names=["input_ids", "attention_mask"],
    )
    model = clip_of(teacher, len(words), words.index("."))
    pixels = process(teacher.processor, glyphs(range(len(NAMES)), "train", EACH))
    labels = torch.arange(len(NAMES)).repeat_interleave(EACH)
    texts = tokenizer([PROMPT.format(name) for name in NAMES], padding=True, return_tensors="pt")
    with torch.no_grad():
        seen = torch.cat([model.vision_model(pixel_values=batch).pooler_output for batch in pixels.split(BATCH)])
    learning = [weight for name, weight in model.named_parameters() if not name.startswith("vision_model")]
    optimizer = torch.optim.AdamW(learning, 2e-3)
    for _ in range(STEPS):
        batch = torch.randint(len(seen), (BATCH,))
        images = F.normalize(model.visual_projection(seen[batch]), dim=1)
        named_by = F.normalize(model.get_text_features(**texts).pooler_output, dim=1)
        loss = F.cross_entropy(model.logit_scale.exp() * images @ named_by.T, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    teacher.processor.save_pretrained(folder)


@torch.no_grad()
def clip_of(teacher: LoadedModel, words: int, end: int) -> Any:
    """A CLIP whose vision side is a vision transformer of transformers.

    CLIP has a norm before its first block, which the transformer has not; it is given the mean spread of the tokens.
    """
    vit: Any = teacher.model.vit
    text = {
        "vocab_size": words,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": end,
    }
    taken = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    )
    vision = {name: getattr(vit.config, name) for name in (*taken, "hidden_act", "layer_norm_eps")}
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    side, own = model.vision_model, vit.embeddings
    side.embeddings.class_embedding.copy_(own.cls_token[0, 0])
    side.embeddings.patch_embedding.weight.copy_(own.patch_embeddings.projection.weight)
    places = own.position_embeddings[0].clone()
    places[1:] += own.patch_embeddings.projection.bias  # CLIP's patches have none
    side.embeddings.position_embedding.weight.copy_(places)
    tokens = side.embeddings(process(teacher.processor, glyphs([10], "train", 16)))
    side.pre_layrnorm.weight.fill_(float(tokens.std(dim=-1).mean()))
    side.pre_layrnorm.bias.fill_(float(tokens.mean()))
    for ours, theirs in zip(side.encoder.layers, vit.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(ours.self_attn, name).load_state_dict(getattr(theirs.attention, name).state_dict())
        ours.self_attn.out_proj.load_state_dict(theirs.attention.o_proj.state_dict())
        ours.layer_norm1.load_state_dict(theirs.layernorm_before.state_dict())
        ours.layer_norm2.load_state_dict(theirs.layernorm_after.state_dict())
        ours.mlp.load_state_dict(theirs.mlp.state_dict())
    side.post_layernorm.load_state_dict(vit.layernorm.state_dict())
    return model.eval()


@torch.no_grad()
def draw_words(path: Path) -> None:
    """What a teacher of five words says of the first test images of these symbols, and of some others."""
    classes = [NAMES[number] for number in CHESS]
    others = tuple(PROMPT.format(name) for name in NAMES if name not in classes)
    with tempfile.TemporaryDirectory() as folder:
        with torch.enable_grad():
            save_image_text_model(Path(folder))
        teacher = load_zero_shot(folder, Words(tuple(classes), (PROMPT,), others))
    images = glyphs(CHESS, "test", 1) + glyphs(NONE_OF_THESE, "test", 1)
    of_all = teacher.model(process(teacher.processor, images)).softmax(dim=1)
    shares = torch.cat([of_all[:, : len(classes)], of_all[:, len(classes) :].sum(dim=1, keepdim=True)], dim=1)
    figure, (ax,) = figure_of_panels(1, 1, panel=(4.6, 2.2))
    shown = [image.permute(1, 2, 0).numpy() for image in images]
    draw_probabilities(ax, [*classes, "none of these"], shares.T.numpy(), shown)
    save_as_jpeg(figure, path)


def draw_probabilities(ax: Axes, classes: Sequence[str], probabilities: Any, images: Sequence[Any]) -> None:
    """A table of probabilities, `(words, images)`, under the images."""
    for place, image in enumerate(images):
        ax.imshow(image, extent=(place - 0.45, place + 0.45, -0.6, -1.5), interpolation="nearest")
    ax.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for word, image in np.argwhere(probabilities >= 0.1):
        share = probabilities[word, image]
        colour = "white" if share > 0.55 else INK
        ax.text(image, word, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=TEXT_SIZE - 1)
    ax.set_xlim(-0.5, len(images) - 0.5)
    ax.set_ylim(len(classes) - 0.5, -1.55)
    ax.set_yticks(range(len(classes)), classes)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    set_heading(ax, "The teacher's answers, in %")


# Marks

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "configs" / "glyphs_marks.yaml"
ALL_MARKED, MARKED_SUBTASK = "all marked", "chess_pieces"
COMPARED = {"scratch": "labels alone", "kd": "KD", "subdistill": "SubDistill"}


def draw_marks(path: Path) -> None:
    """Heat maps of the teacher and of three students on marked images of classes whose training images had no mark."""
    grid = read_benchmark(BENCHMARK)
    relevances: dict[str, Tensor] = {}
    for job in final_jobs(grid, tune(grid, lambda jobs: [])):
        if (job.condition, job.subtask, job.seed) != (ALL_MARKED, MARKED_SUBTASK, 0) or job.method not in COMPARED:
            continue
        task, classifier = trained(job)
        images = others_of(task)
        teacher = ExplainedNetwork("teacher", task.teacher_classifier)
        targets = teacher.answers(images)
        networks = {"teacher": teacher, COMPARED[job.method]: ExplainedNetwork(job.method, classifier)}
        for name in networks.keys() - relevances.keys():
            explained = explain_images(networks[name], images, targets, "integrated_gradients", show=False)
            relevances[name] = explained.relevance
    seen = seen_by(task.teacher.processor, *images[0].shape[1:])  # the students read the same pixels
    rows = []
    for number, picture in enumerate(map(picture_of, images)):
        shares = [shares_on(picture, relevances[name][number], seen) for name in ("teacher", *COMPARED.values())]
        scale = common_scale(shares)
        pictures = [picture, *(coloured(one, scale) for one in shares)]
        rows.append(panel(pictures, ("marked image", "teacher", *COMPARED.values())))
    stacked(rows).save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)


def trained(job: Job) -> tuple[Task, Classifier]:
    """The task of a benchmark's run, and its student."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(job, folder)
        trainer, student, _ = build_trainer(task, task.config, teacher_of(task))
        trainer.train()
    return task, Classifier(trainer.model, student.processor)


def others_of(task: Task) -> list[Tensor]:
    """The first test image of each class but the one whose training images were marked."""
    labels = task.test.labels
    return [task.test.image(labels.index(output)) for output in range(1, len(task.data.subtask.names))]


DRAWN = {"unlabelled": draw_unlabelled, "words": draw_words, "marks": draw_marks}


def main() -> None:
    """Draw one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", choices=DRAWN)
    given = parser.parse_args()
    DRAWN[given.picture](PICTURES / f"{given.picture}.png")


if __name__ == "__main__":
    main()
