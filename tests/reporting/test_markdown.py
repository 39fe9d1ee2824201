"""Texts that are data are shown as they are: read back with a parser of Markdown."""

import random

import pytest
from markdown_it import MarkdownIt

from subdistill_hf.reporting.markdown import code, fenced, hub_link, table, text

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = (
    *"\\`*_[]()<>|$~#&!:;,.'\"-+=@{}%/ ",
    *("a", "B", "9", "猫", "é", "🐱", "👩\u200d🔬", "\u3000", "\u00a0", "\t", "\n", "\r", "\r\n", "\x0b", "\x85"),
    *("\u2028", "\0", "\x1b[31m", "\ud800", "\udcff", "\u202e", "\ufeff", "&amp;", "&#65;", "<b>", "</td>", "```"),
    *("---", "$$", "__", "![x](y)", "http://x.y", "{{ x }}", "%}"),
)


def random_name(rng):
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))


def shown(children):
    """The text of inline tokens, as a reader sees it."""
    return "".join("\n" if child.type in ("softbreak", "hardbreak") else child.content for child in children)


def expected(name):
    """What a reader can be shown of a name: all, but for control characters and what turns the text's direction."""
    controls = {*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0x202E} - set(b"\t\n\r")
    return "".join(f"\\u{ord(character):04x}" if ord(character) in controls else character for character in name)


def cells(markdown):
    """The cells of a table, row by row, each as the text that is shown."""
    tokens = PARSER.parse(markdown)
    assert tokens[0].type == "table_open"
    rows = []
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("th_open", "td_open"):
            rows[-1].append(shown(tokens[place + 1].children))
    return rows


NAMES = [random_name(random.Random(seed)) for seed in range(400)]


def test_a_name_is_shown_as_it_is_in_a_sentence_and_in_a_table():
    for name in NAMES:
        paragraph = PARSER.parse(f"The classes are {text(name)}, and others.")
        assert [token.type for token in paragraph] == ["paragraph_open", "inline", "paragraph_close"], name
        assert shown(paragraph[1].children) == f"The classes are {expected(name)}, and others."
        assert all(child.type in ("text", "text_special") for child in paragraph[1].children)
        ((first, second), (left, right)) = cells(table([{"Class": text(name), "Images": "3"}]))
        assert (first, second, left, right) == ("Class", "Images", expected(name), "3")


def test_a_name_that_is_code_is_shown_as_it_is():
    for name in NAMES:
        ((_, _), (left, right)) = cells(table([{"Layer": code(name), "K": "3"}]))
        assert left.removeprefix("<code>").removesuffix("</code>") == expected(name)
        assert right == "3"


def test_names_of_letters_digits_and_underscores_are_written_as_they_are():
    for name in ("zodiac_aries", "great white shark", "n01440764", "Müller's cat (small)", "food & drink", "猫"):
        assert text(name) == name


def test_a_block_of_code_ends_where_the_text_does():
    for value in ("print(1)", "```\nend", "`````", "a ``` b", "~~~"):
        (token,) = PARSER.parse(f"{fenced(value, 'text')}")
        assert (token.type, token.info, token.content) == ("fence", "text", f"{value}\n")


def test_a_table_leaves_out_columns_that_are_unknown():
    assert table([]) == ""
    assert table([{"a": None}]) == ""
    assert cells(table([{"a": "1", "b": None}, {"a": None, "b": None}])) == [["a"], ["1"], ["–"]]  # noqa: RUF001


@pytest.mark.parametrize(
    ("name", "hub_id", "link"), [("x", "me/x", "[me/x](https://huggingface.co/datasets/me/x)"), ("x y", None, "`x y`")]
)
def test_what_is_on_the_hub_is_linked(name, hub_id, link):
    assert hub_link(name, hub_id, "datasets/") == link
