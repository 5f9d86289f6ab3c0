"""Hooks and modules that change what analyses work out by hand are refused, and those that do not are no obstacle."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from headscope import HookedTransformer, HookPoint
from headscope.analysis import (
    ablate_heads,
    attribute,
    copy_suppression_preserving_ablation,
    logit_lens,
    measure_calibration,
    measure_entropy,
    next_token_loss,
    suppression_scores,
    weights_circuit_ranks,
)
from headscope.analysis.heads.evidence import copying_scores
from headscope.errors import InvalidInputError

TOKENS = tiny_tokens(3, 6)
ANSWERS = torch.tensor([[1, 2]] * 3)
POST_NORMS = {"normalization_type": "RMS", "use_normalization_before_and_after": True}

HEADS: dict[str, Callable[[HookedTransformer], Any]] = {
    "entropy": lambda model: measure_entropy(model, TOKENS, progress=False),
    "direct effects": lambda model: ablate_heads(model, TOKENS, effects=["direct"], progress=False),
    "indirect effects": lambda model: ablate_heads(model, TOKENS, effects=["indirect"], progress=False),
    "calibration": lambda model: measure_calibration(model, TOKENS, progress=False),
    "copy suppression": lambda model: copy_suppression_preserving_ablation(model, TOKENS, progress=False),
    "attribution": lambda model: attribute(model, TOKENS, answer_tokens=ANSWERS, progress=False),
    "scores": lambda model: suppression_scores(model, n_sequences=2, length=3, n_prompts=0, progress=False),
}
STATES: dict[str, Callable[[HookedTransformer], Any]] = {
    "lens": lambda model: logit_lens(model, TOKENS, progress=False),
    "patched effects": lambda model: ablate_heads(model, TOKENS, effects=["patched"], progress=False),
}


class Wrapped(nn.Module):
    """A wrapper that shows nothing of what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.hook_out = inner, HookPoint()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook_out(self.inner(*args, **kwargs))


def twice(value: Tensor, hook: Any) -> Tensor:
    return 2 * value


def without_one_head(result: Tensor, hook: Any) -> Tensor:
    result = result.clone()
    result[:, :, 1] = 0
    return result


def losses(model: HookedTransformer) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, return_type="loss", loss_per_token=True)


@pytest.mark.parametrize("analysis", [*HEADS, *STATES])
@pytest.mark.parametrize("point", ["ln_final.hook_scale", "ln_final.hook_normalized"])
def test_a_changed_final_norm_is_refused(analysis: str, point: str) -> None:
    model = tiny_model()
    model.add_perma_hook(point, twice)
    with pytest.raises(InvalidInputError, match="the final norm does not give"):
        (HEADS | STATES)[analysis](model)
    torch.testing.assert_close(next_token_loss(model, TOKENS, progress=False).double(), losses(model))


@pytest.mark.parametrize("analysis", [*HEADS, *STATES])
def test_a_changed_unembedding_is_refused(analysis: str) -> None:
    hooked, wrapped = tiny_model(), tiny_model()
    hooked.unembed.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    forward = wrapped.unembed.forward
    wrapped.unembed.forward = lambda states: forward(states) + states[..., :1]  # type: ignore[method-assign]
    for model in (hooked, wrapped):
        with pytest.raises(InvalidInputError, match="the unembedding does not give"):
            (HEADS | STATES)[analysis](model)
        with pytest.raises(InvalidInputError, match="the unembedding does not give"):
            next_token_loss(model, TOKENS, progress=False)


@pytest.mark.parametrize("analysis", HEADS)
@pytest.mark.parametrize("fields", [{}, POST_NORMS], ids=["plain", "post-norms"])
def test_what_changes_heads_on_their_way_to_the_stream_is_refused(analysis: str, fields: dict[str, Any]) -> None:
    hooks = [("attn.hook_result", without_one_head), ("hook_attn_out", twice)]
    hooks += [("ln1_post.hook_normalized", twice)] if fields else []
    for point, hook in hooks:
        model = tiny_model(**fields)
        model.add_perma_hook(f"blocks.1.{point}", hook)
        with pytest.raises(InvalidInputError, match="attention of layer 1 does not give the sum"):
            HEADS[analysis](model)


@pytest.mark.parametrize("analysis", STATES)
def test_states_and_patched_runs_need_no_sum_of_heads(analysis: str) -> None:
    model = tiny_model()
    model.add_perma_hook("blocks.1.hook_attn_out", twice)
    found = STATES[analysis](model)
    wanted = -found.next_log_prob[-1, :, :-1] if analysis == "lens" else found.loss
    torch.testing.assert_close(wanted.double(), losses(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("analysis", [*HEADS, *STATES])
@pytest.mark.parametrize("fields", [{}, POST_NORMS, {"dtype": torch.bfloat16}], ids=["plain", "post-norms", "bfloat16"])
def test_hooks_that_change_nothing_and_steering_are_no_obstacle(analysis: str, fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    points = ["ln_final.hook_scale", "ln_final.hook_normalized", "blocks.0.attn.hook_result", "blocks.0.hook_attn_out"]
    for point in points + (["blocks.0.ln1_post.hook_scale"] if fields is POST_NORMS else []):
        model.add_perma_hook(point, lambda value, hook: value.clone())
    model.unembed.register_forward_hook(lambda module, inputs, logits: None)
    vector = torch.linspace(-1, 1, model.cfg.d_model).to(model.W_E.dtype)
    model.add_perma_hook("blocks.1.hook_attn_out", lambda out, hook: out + vector)
    (HEADS | STATES)[analysis](model)


@pytest.mark.parametrize("part", ["ln_final", "unembed", "blocks.1.attn"])
def test_modules_that_hide_weights_are_refused_by_name(part: str) -> None:
    model = tiny_model()
    owner, _, name = part.rpartition(".")
    setattr(model.get_submodule(owner), name, Wrapped(model.get_submodule(part)))
    model.setup()
    for analysis in HEADS.values():
        with pytest.raises(InvalidInputError, match="replaced by a module without|no blocks.1.attn.hook_z to read"):
            analysis(model)


def test_circuits_are_not_read_past_a_norm_that_hides_its_weights() -> None:
    model = tiny_model()
    model.blocks[1].ln1 = Wrapped(model.blocks[1].ln1)
    model.setup()
    for analysis in (lambda: weights_circuit_ranks(model, progress=False), lambda: copying_scores(model)):
        with pytest.raises(InvalidInputError, match=r"blocks\.1\.ln1 was replaced by a Wrapped without (w|b)"):
            analysis()
