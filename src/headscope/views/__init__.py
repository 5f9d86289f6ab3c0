"""Results in, figures out: plotly figures, and token views in self-contained HTML. A view never runs a model.

`from headscope import views` or `import headscope.views as cv`; then `views.entropy_by_head(result)`,
`views.attention.attention_heads(attention, tokens)`, `views.tokens.colored_tokens(tokens, values)`.
"""

from headscope.views import attention, calibration, entropy, html, plots, tokens
from headscope.views.attention import attention_heads, attention_pattern
from headscope.views.calibration import calibration_curve, overconfidence_by_head
from headscope.views.entropy import entropy_by_head, entropy_by_layer
from headscope.views.html import HtmlView
from headscope.views.plots import hist, imshow, line, scatter
from headscope.views.tokens import colored_tokens

__all__ = [
    "HtmlView",
    "attention",
    "attention_heads",
    "attention_pattern",
    "calibration",
    "calibration_curve",
    "colored_tokens",
    "entropy",
    "entropy_by_head",
    "entropy_by_layer",
    "hist",
    "html",
    "imshow",
    "line",
    "overconfidence_by_head",
    "plots",
    "scatter",
    "tokens",
]
