"""The API as typed code sees it: `make wheel-test` checks this file by `mypy --strict` against the installed wheel."""

from typing import assert_type

import torch
from torch import Tensor

from headscope import ActivationCache, HookedTransformer, HookedTransformerConfig, HookPoint
from headscope.analysis import (
    AblationResult,
    Attribution,
    EntropyResult,
    HeadScore,
    HeadTypes,
    Ranking,
    Task,
    ablate_heads,
    attribute,
    detect_heads,
    measure_entropy,
)
from headscope.data import IOIDataset
from headscope.errors import HeadscopeError
from headscope.exercises import Verdict, check_copying_scores
from headscope.model.transformer import Output
from headscope.views import HtmlView, colored_tokens


def halve(z: Tensor, hook: HookPoint) -> Tensor:
    """Halve an activation."""
    return z * 0.5


def study(name: str) -> float:
    """Run a study and return the entropy of a prediction."""
    model = HookedTransformer.from_pretrained(name)
    assert_type(model, HookedTransformer)
    assert_type(model.cfg, HookedTransformerConfig)
    tokens = model.to_tokens("The cat sat on the mat.")
    assert_type(tokens, Tensor)
    logits, cache = model.run_with_cache(tokens)
    assert_type(logits, Tensor)
    assert_type(cache, ActivationCache)
    assert_type(cache["resid_pre", 0], Tensor)
    halved = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[("blocks.0.attn.hook_z", halve)])
    assert_type(halved, Tensor)
    both, kept = model.run_with_cache(tokens, return_type="both", return_cache_object=True, names_filter="hook_embed")
    assert_type(both, Output)
    assert_type(kept, ActivationCache)
    assert_type(model.run_with_cache(tokens, return_type=None), tuple[None, ActivationCache])
    assert_type(model.run_with_cache(tokens, return_type=None, stop_at_layer=1), tuple[Tensor, ActivationCache])
    assert_type(model.run_with_cache(tokens, return_cache_object=False)[1], dict[str, Tensor])
    assert_type(model(tokens), Tensor)
    assert_type(model(tokens, return_type="both").loss, Tensor)
    assert_type(model(tokens, return_type="both", stop_at_layer=2), Tensor)

    entropy = measure_entropy(model, tokens, progress=False)
    assert_type(entropy, EntropyResult)
    top = entropy.top(3)
    assert_type(top, Ranking)
    best: HeadScore = top[0]
    task = Task.from_ioi(IOIDataset(N=4, tokenizer=model.tokenizer, prepend_bos=True))
    assert_type(task, Task)
    assert_type(attribute(model, task, progress=False), Attribution)
    assert_type(ablate_heads(model, tokens, heads=[(3, 2)], progress=False), AblationResult)
    assert_type(detect_heads(model, progress=False), HeadTypes)
    view = colored_tokens(model.to_str_tokens(tokens[0]), torch.zeros(tokens.shape[1]))
    assert_type(view, HtmlView)
    assert_type(check_copying_scores(torch.zeros(5, 4), model), Verdict)
    return best.value


if __name__ == "__main__":
    try:
        print(f"{study('headscope-demo'):+.3f}")
    except HeadscopeError as error:
        raise SystemExit(f"{error.message} (look up {error.code})") from error
