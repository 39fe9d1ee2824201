"""Which split and class each file of a folder of images is of, by the folders that it lies in."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from subdistill_hf.errors import DataError

SPLIT_WORDS: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD: Final = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SPLIT_OF_SHORT_WORD: Final = {"tr": "train", "trn": "train", "te": "test", "tst": "test"}
"""Whole names that stand for a split where they are of folders of folders; of images alone they may be a class."""
SPLIT_COMPOUND: Final = re.compile(r"([a-z]+?)(sets?|data|images?|imgs?|splits?)")
"""Words such as trainset, whose beginning may be the word of a split."""
Value = TypeVar("Value")
USUAL_WORDS: Final = {"", "data", "dataset", "image", "images", "img", "imgs", "set", "split"}
EXPECTED: Final = "Expected train/CLASS/NAME.png and test/CLASS/NAME.png, or CLASS/NAME.png with --test_fraction"


@dataclass(frozen=True)
class Layout:
    """The images of a folder.

    Attributes:
        images: for each split the path and the class of each image, in the order of the paths.
        left_out: why an image is in no class, and which are.
        notices: what was taken for granted.
        roots: the beginnings of paths that the folders of the classes follow.
    """

    images: Mapping[str, Sequence[tuple[str, str]]]
    left_out: Mapping[str, Sequence[str]]
    notices: Sequence[str] = ()
    roots: Sequence[str] = ("",)

    @property
    def classes(self) -> list[str]:
        """The names of all classes, sorted."""
        return sorted({name for images in self.images.values() for _, name in images})


def split_named(text: str) -> str | None:
    """The split that a name of a folder or file stands for, if it holds the word of just one."""
    whole = {**SPLIT_OF_SHORT_WORD, **SPLIT_OF_WORD}
    if text.casefold() in whole:
        return whole[text.casefold()]
    found = {SPLIT_OF_WORD[word] for word in _words(text) if word in SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def _words(text: str) -> list[str]:
    """The words of a name; of those such as trainset their beginning."""
    words = re.split(r"[\W_\d]+", text.casefold())
    compounds = [SPLIT_COMPOUND.fullmatch(word) for word in words]
    return [
        found[1] if found and found[1] in SPLIT_OF_WORD else word for word, found in zip(words, compounds, strict=True)
    ]


def _other_words(text: str) -> frozenset[str]:
    """The words of a name beside that of its split, such as that of the dataset."""
    return frozenset(_words(text)) - set(SPLIT_OF_WORD) - set(SPLIT_OF_SHORT_WORD) - USUAL_WORDS


def name_splits(names: Iterable[str], place: str) -> dict[str, str]:
    """The split of each of several names; of those that stand for one split, the one that is its name has it.

    The others are splits of their own names.

    Raises:
        DataError: when several stand for a split, and none is its name.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[split_named(name) or name].append(name)
    splits: dict[str, str] = {}
    for split, members in groups.items():
        exact = [name for name in members if name == split] or [name for name in members if name.casefold() == split]
        chosen = exact if len(exact) == 1 else members
        if len(chosen) > 1:
            raise DataError(
                f"{place}: {' and '.join(members[:3])} may all be the {split} split. Give one of them the name "
                f"{split}, and the others another"
            )
        splits |= {name: split if name in chosen else name for name in members}
    return splits


def in_usual_order(splits: Mapping[str, Value]) -> dict[str, Value]:
    """Splits with those for training, validation and test first."""
    usual = [split for split in SPLIT_WORDS if split in splits]
    return {split: splits[split] for split in [*usual, *(split for split in splits if split not in usual)]}


def split_paths(paths: Sequence[str]) -> dict[str, list[str]]:
    """The images of each split, by their first folders alone: those in no folder of a split's name are for training.

    Args:
        paths: of images, relative to a folder, with slashes.
    """
    words = {**SPLIT_OF_SHORT_WORD, **SPLIT_OF_WORD}
    splits: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        top, slash, _ = path.partition("/")
        splits[words.get(top.casefold(), "train") if slash else "train"].append(path)
    return in_usual_order(splits)


def read_layout(paths: Sequence[str], place: str) -> Layout:
    """Find split and class of images in their paths: splits are named by the first folder, and by no other.

    Args:
        paths: of images, relative to a folder, with slashes.
        place: what the folder is called in messages.

    Raises:
        DataError: when the images are in no class folders, or it is not clear which folders are splits.
    """
    tops: dict[str, list[str]] = defaultdict(list)
    loose: list[str] = []
    for path in sorted(paths):
        top, slash, _ = path.partition("/")
        (tops[top] if slash else loose).append(path)
    if not tops:
        raise DataError(
            f"{place} holds {len(loose)} images and no folders of classes. {EXPECTED}; images without labels need "
            "--label_column none"
        )
    left_out = {"in no class folder": loose} if loose else {}
    deep = {top: sum(path.count("/") > 1 for path in inside) for top, inside in tops.items()}
    splits = _splits_among(tops, deep, place)
    if splits is None:
        only = next(iter(tops))
        if len(tops) == 1 and deep[only] == len(tops[only]):
            return _inside(only, tops[only], left_out, place)
        _refuse_splits_below(tops, place)
        _refuse_equal_folders(tops, deep, place)
        images, below = _by_class(path for inside in tops.values() for path in inside)
        composed, respelled = _with_composed_names({"train": images})
        return Layout(composed, left_out, [*below, *respelled])
    result: dict[str, Sequence[tuple[str, str]]] = {}
    notices: list[str] = []
    without = [path for top in splits for path in tops[top] if path.count("/") == 1]
    if without:
        left_out["in no class folder"] = [*loose, *without]
    common = _common_folder([path.partition("/")[2] for top in splits for path in tops[top] if path.count("/") > 1])
    roots = [f"{top}/{common}/" if common else f"{top}/" for top in splits]
    if common:
        notices.append(f"all images of the splits are in their folder {common}, whose folders are the classes")
    for (top, split), begin in zip(splits.items(), roots, strict=True):
        images, below = _by_class(path.removeprefix(begin) for path in tops[top] if path.count("/") > 1)
        result[split] = [(f"{begin}{path}", name) for path, name in images]
        notices += [f"{split}: {notice}" for notice in below]
    others = [path for top, inside in tops.items() if top not in splits for path in inside]
    if others:
        left_out["beside the folders of the splits"] = others
    composed, respelled = _with_composed_names(in_usual_order(result))
    return Layout(composed, left_out, [*notices, *respelled], roots)


def composed(name: str) -> str:
    """A name with its accents composed (NFC): some systems write them apart, and it looks the same."""
    return unicodedata.normalize("NFC", name)


def _with_composed_names(
    images: Mapping[str, Sequence[tuple[str, str]]],
) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """The images with composed names of their classes, and a notice of classes with two spellings."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for inside in images.values():
        for _, name in inside:
            spellings[composed(name)].add(name)
    several = [name for name, found in spellings.items() if len(found) > 1]
    told = "their folders are spelled with composed and with decomposed accents, which were read as one name"
    notices = [f"classes {', '.join(several[:5])}: {told}"] if several else []
    return {split: [(path, composed(name)) for path, name in inside] for split, inside in images.items()}, notices


def _refuse_splits_below(tops: Mapping[str, Sequence[str]], place: str) -> None:
    """Refuse folders of splits that lie below the first folders: their images would be mixed.

    Raises:
        DataError: naming them.
    """
    for top, inside in tops.items():
        below = {path.split("/")[1] for path in inside if path.count("/") > 1}
        named = {SPLIT_OF_WORD[name.casefold()]: name for name in sorted(below) if name.casefold() in SPLIT_OF_WORD}
        if len(named) > 1:
            raise DataError(
                f"{place}: the folder {top} has the folders {' and '.join(named.values())}, and splits are told by "
                f"the first folders alone. {EXPECTED}: give {top} itself as the dataset if all images are in it, or "
                "move them"
            )


def _refuse_equal_folders(tops: Mapping[str, Sequence[str]], deep: Mapping[str, int], place: str) -> None:
    """Refuse folders that hold folders of the same names and nothing else: splits of other names look so.

    One name alone, such as `images`, is no sign of splits: their folders are classes, of which there are two.

    Raises:
        DataError: naming them.
    """
    if len(tops) < 2 or any(deep[top] < len(inside) for top, inside in tops.items()):
        return
    below = [{path.split("/")[1] for path in inside} for inside in tops.values()]
    common = sorted(set.intersection(*below))
    if len(common) > 1:
        raise DataError(
            f"{place}: it is not clear whether {', '.join(list(tops)[:3])} are splits or classes, since all of them "
            f"have the folders {' and '.join(common[:3])}. {EXPECTED}: give splits the names train and test, or move "
            "the images of classes straight into their folders"
        )


def _splits_among(tops: Mapping[str, Sequence[str]], deep: Mapping[str, int], place: str) -> dict[str, str] | None:
    """The splits that folders are, by their names; `None` when they are classes."""
    words = {top: SPLIT_OF_WORD[top.casefold()] for top in tops if top.casefold() in SPLIT_OF_WORD}
    with_folders = [top for top in tops if deep[top]]
    if not with_folders:
        if len(set(words.values())) > 1 or len(words) == len(tops):
            raise DataError(
                f"{place}: {', '.join(words)} hold images and no folders of classes. {EXPECTED}; if these are "
                "classes, give them other names"
            )
        return None
    named = [top for top in with_folders if split_named(top)]
    if len({_other_words(top) for top in named}) > 1:  # such as train and test-tube
        named = [top for top in named if top in words]
    if not named:
        return None
    exact = {words[top] for top in named if top in words}
    if len(tops) == 1 and _holds_splits(tops[named[0]]):
        return None
    if len(named) == len(tops) or ("train" in exact and len(exact) > 1):
        return name_splits(with_folders, place)
    beside = [top for top in tops if top not in named]
    raise DataError(
        f"{place}: it is not clear which folders are splits and which are classes, of {', '.join(named[:3])} and "
        f"{', '.join(beside[:3])}. {EXPECTED}: move or rename what is something else"
    )


def _holds_splits(paths: Sequence[str]) -> bool:
    """Whether all folders in a folder are splits by their names, and more than one."""
    inner = {path.split("/")[1].casefold() for path in paths if path.count("/") > 2}
    return len({SPLIT_OF_WORD[name] for name in inner if name in SPLIT_OF_WORD}) > 1 and inner <= set(SPLIT_OF_WORD)


def _common_folder(paths: Sequence[str]) -> str:
    """The folder, or folders in each other, that all images are in, where these are in further folders there."""
    common: list[str] = []
    parts = [path.split("/")[:-1] for path in paths]
    while parts and all(len(folders) > len(common) + 1 for folders in parts):
        if len({folders[len(common)] for folders in parts}) > 1:
            break
        common.append(parts[0][len(common)])
    return "/".join(common)


def _inside(top: str, paths: Sequence[str], left_out: dict[str, list[str]], place: str) -> Layout:
    """The layout of the only folder in a folder: one class alone would be of no use."""
    layout = read_layout([path.removeprefix(f"{top}/") for path in paths], f"{place}/{top}")
    images = {split: [(f"{top}/{path}", name) for path, name in inside] for split, inside in layout.images.items()}
    more = {why: [f"{top}/{path}" for path in inside] for why, inside in layout.left_out.items()}
    both = {why: [*left_out.get(why, []), *more.get(why, [])] for why in {**left_out, **more}}
    notices = [f"all images are in {top}, which was read as the dataset", *layout.notices]
    return Layout(images, both, notices, [f"{top}/{root}" for root in layout.roots])


def _by_class(paths: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Images with the first folder of their paths as their class, and a notice of those that lie deeper."""
    images = [(path, path.partition("/")[0]) for path in paths]
    deeper = [(path, name) for path, name in images if path.count("/") > 1]
    if not deeper:
        return images, []
    folder, name = deeper[0][0].rpartition("/")[0], deeper[0][1]
    return images, [
        f"{len(deeper)} images lie in folders below those of the classes, such as {folder}: they count as images of "
        f"the class {name}"
    ]
