"""Text that means harm, and every kind of view of tokens with it wherever a caller may give text."""

from collections.abc import Mapping
from typing import Any

import torch

from headscope.views import topk_samples, topk_tokens
from headscope.views.activations import text_neuron_activations
from headscope.views.attention import attention_heads, attention_pattern
from headscope.views.html import HtmlView
from headscope.views.logits import token_log_probs
from headscope.views.tokens import colored_tokens, colored_tokens_multi

HACK = "document.title='hacked'"
HOSTILE = [
    f"</script><script>{HACK}</script>",
    "<!--<script>",
    "-->]]>",
    f'" onpointerover="{HACK}" x="',
    "' onfocus='",
    "&lt;b&gt;",
    "\ud83d",  # half of a pair
    "\u2028\u2029",
    "\u202eabc\u2066\u061c\u200f",
    "\x00\x07\x1b[31m\x7f\x85",
    "\r\n",
    "\t",
    "",
    " ",
    "\U0001f381\U0001f44d\U0001f3fd",
    "a\xa0b\u200d\U000e0041\u3164",
    "{{7*7}}${7*7}",
    "x" * 10_000,
]
WORDS = ["When", " Mary", " and", " John", " went", " to", " the", " store", ",", "\n", " Mary", " gave"]


def views_of(tokens: list[str]) -> dict[str, HtmlView]:
    """Every kind of view of these tokens, which also stand wherever a caller may give text."""
    n = len(tokens)
    values = torch.randn(n, 4)
    values[1, 0] = torch.nan
    some: Any = [tokens[at % n] for at in range(4)]
    words: Mapping[str, Any] = {"name": tokens[0], "unit": tokens[1 % n], "title": tokens[0]}
    return {
        "attention": attention_heads(
            torch.rand(4, n, n).tril(), tokens, attention_head_names=some, focus=n - 1, title=tokens[0]
        ),
        "pattern": attention_pattern(torch.randn(n, n), tokens, title=tokens[0]),
        "tokens": colored_tokens(tokens, values[:, 0], notes=tokens, marked=[1 % n], **words),
        "tokens_multi": colored_tokens_multi(tokens, values, labels=some, **words),
        "activations": text_neuron_activations(
            [tokens, tokens[::-1]],
            list(torch.randn(2, n, 2, 4)),
            first_dimension_name=tokens[0],
            second_dimension_labels=some,
            text_labels=some[:2],
            **words,
        ),
        "logits": token_log_probs(range(n), torch.randn(n, n).log_softmax(-1), to_string=tokens, title=tokens[0]),
        "effects": token_log_probs(range(n), torch.randn(n, n), to_string=tokens, negative=True, **words),
        "topk_tokens": topk_tokens.topk_tokens(
            [tokens] * 2, list(torch.randn(2, 4, n, 9)), first_dimension_labels=some, sample_labels=some[:2], **words
        ),
        "topk_samples": topk_samples.topk_samples(
            [[[tokens] * 2] * 4], [list(torch.randn(4, 2, n))], zeroth_dimension_name=tokens[0], **words
        ),
    }
