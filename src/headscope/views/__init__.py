"""Plotly figures of results, and token views in self-contained HTML. A view never runs a model.

`from headscope import views` or `import headscope.views as cv`; then `views.entropy_by_head(result)`,
`views.attention.attention_heads(attention, tokens)`, `views.tokens.colored_tokens(tokens, values)`,
`views.activations.text_neuron_activations(...)`, `views.logits.token_log_probs(...)`. `views.topk_tokens` and
`views.topk_samples` are modules, each with the function of the same name.
"""

from headscope.views import activations, attention, examples, html, logits, plots, tokens, topk_samples, topk_tokens
from headscope.views.activations import text_neuron_activations
from headscope.views.attention import attention_heads, attention_pattern, attention_patterns
from headscope.views.drawing.saving import figure_page, save_figure
from headscope.views.figures import ablation, attribution, calibration, entropy, patching
from headscope.views.figures.ablation import ablation_bars, ablation_by_head, ablation_on_text
from headscope.views.figures.attention_score import attention_pairs, attention_sides
from headscope.views.figures.attribution import (
    attribution_by_component,
    attribution_by_head,
    attribution_by_layer,
    attribution_by_source,
)
from headscope.views.figures.calibration import calibration_curve, overconfidence_by_head
from headscope.views.figures.circuit import circuit_picture
from headscope.views.figures.comparison import compared_lines, compared_maps
from headscope.views.figures.copy_suppression import circuit_rank_maps, copy_suppression_by_head, suppression_scatter
from headscope.views.figures.entropy import entropy_by_head, entropy_by_layer
from headscope.views.figures.faithfulness import faithfulness_curve
from headscope.views.figures.head_scores import head_score_maps
from headscope.views.figures.head_types import head_type_maps, k_composition_maps
from headscope.views.figures.patching import patching_by_head, patching_by_head_and_position, patching_by_position
from headscope.views.figures.path_patching import attribution_scatter, path_patching_by_head
from headscope.views.figures.toy import fourier_bars, grokking_curve
from headscope.views.figures.toy_dynamics import dynamics_along_training
from headscope.views.figures.training import token_maps, token_maps_along_training, training_metrics
from headscope.views.html import HtmlView
from headscope.views.logits import token_log_probs
from headscope.views.plots import bar, hist, imshow, line, scatter
from headscope.views.tokens import colored_tokens, colored_tokens_multi

__all__ = [
    "HtmlView",
    "ablation",
    "ablation_bars",
    "ablation_by_head",
    "ablation_on_text",
    "activations",
    "attention",
    "attention_heads",
    "attention_pairs",
    "attention_pattern",
    "attention_patterns",
    "attention_sides",
    "attribution",
    "attribution_by_component",
    "attribution_by_head",
    "attribution_by_layer",
    "attribution_by_source",
    "attribution_scatter",
    "bar",
    "calibration",
    "calibration_curve",
    "circuit_picture",
    "circuit_rank_maps",
    "colored_tokens",
    "colored_tokens_multi",
    "compared_lines",
    "compared_maps",
    "copy_suppression_by_head",
    "dynamics_along_training",
    "entropy",
    "entropy_by_head",
    "entropy_by_layer",
    "examples",
    "faithfulness_curve",
    "figure_page",
    "fourier_bars",
    "grokking_curve",
    "head_score_maps",
    "head_type_maps",
    "hist",
    "html",
    "imshow",
    "k_composition_maps",
    "line",
    "logits",
    "overconfidence_by_head",
    "patching",
    "patching_by_head",
    "patching_by_head_and_position",
    "patching_by_position",
    "path_patching_by_head",
    "plots",
    "save_figure",
    "scatter",
    "suppression_scatter",
    "text_neuron_activations",
    "token_log_probs",
    "token_maps",
    "token_maps_along_training",
    "tokens",
    "topk_samples",
    "topk_tokens",
    "training_metrics",
]
