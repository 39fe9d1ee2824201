"""Formulas as MathML, which browsers draw themselves: no script, and nothing from the network when a page is read."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def _formula(translator: HTML5Translator, node: nodes.Element, as_block: bool) -> None:
    try:
        formula = tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("a formula that docutils cannot read: %s: %s", error, node.astext(), location=node)
        formula = node.astext()
    translator.body.append(f'<div class="formula">{formula}</div>' if as_block else formula)
    raise nodes.SkipNode


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    _formula(translator, node, as_block=False)


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    _formula(translator, node, as_block=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx; the renderer is chosen by `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
