"""Formulas as MathML, which browsers draw themselves: no script, no web font, no request."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator


def mathml(latex: str, *, display: str = "inline") -> str:
    r"""Return the MathML element of a formula.

    Example:
        >>> mathml(r"\log p").split("<mrow>")[1]
        '<mi>log</mi><mspace width="0.17em" /><mi>p</mi></mrow></math>'
    """
    element = convert(re.sub(r"\s+", " ", latex.strip()), display=display)
    # Names of functions are identifiers, with a thin space where no parenthesis follows.
    element = re.sub(r"<mo>(\w\w+)</mo>", r"<mi>\1</mi>", element)
    bare = r"(?<!<msub>)(?<!<msup>)(?<!<msubsup>)(<mi>\w\w+</mi>)(?=<m(?:i|sub|sup|subsup|frac)>)"
    return re.sub(bare, r'\1<mspace width="0.17em" />', element)


def _visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{mathml(node.astext())}</span>')
    raise nodes.SkipNode


def _visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math-block">{mathml(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
