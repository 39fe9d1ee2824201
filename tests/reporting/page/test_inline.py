"""The inline Markdown of cards as HTML: what a browser shows of it is what a reader of the card sees."""

import random
from html.parser import HTMLParser

import pytest

from reporting.test_markdown import PARSER, expected, random_name
from subdistill_hf.reporting import markdown
from subdistill_hf.reporting.page.inline import code, from_markdown, text


class Shown(HTMLParser):
    """The text of some HTML, and its tags."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(str(html))
        self.close()

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))


NAMES = [
    "<script>alert(1)</script>",
    "a & b &amp;",
    "**x** _y_ [z](https://example.com)",
    "`c`",
    "a|b",
    "\\",
    "two\nlines",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name):
    shown = Shown(text(name))
    assert (shown.text, shown.tags) == (name, [])
    assert Shown(code(name)).text == name
    assert [tag for tag, _ in Shown(code(name)).tags] == ["code"]


def test_no_name_makes_a_tag():
    rng = random.Random(0)
    for _ in range(300):
        name = random_name(rng)
        shown = Shown(text(name))
        assert (shown.text, shown.tags) == (expected(name), [])


def test_what_cards_write_has_the_tags_that_a_reader_of_markdown_makes():
    written = (
        f"**{markdown.text('a*b')} 9.0 ± 1.0 %** of {markdown.code('test')}, {markdown.code('a`b')}; "
        f"{markdown.hub_link('x', 'me/data_set', 'datasets/')} is 2 < 3"
    )
    reference = Shown(PARSER.renderInline(written))
    shown = Shown(from_markdown(written))
    assert (shown.text, shown.tags) == (reference.text, reference.tags)
    assert [tag for tag, _ in shown.tags] == ["strong", "code", "code", "a"]


def test_addresses_that_are_not_of_https_are_no_links():
    written = "[x](javascript:alert(1)) [y](http://example.com)"
    assert Shown(from_markdown(written)).tags == []
    assert Shown(from_markdown(written)).text == written
