"""The live page's numbers on the pretrained model, against whole runs with hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from headscope import HookedTransformer
from headscope.explorer.serving.schemas import Change, State, WhyRequest
from headscope.explorer.serving.sessions import Sessions

pytestmark = pytest.mark.real

PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"


def test_changes_are_whole_runs_with_hooks(model: HookedTransformer) -> None:
    sessions = Sessions(model)
    tokens, others = model.to_tokens(PROMPT), model.to_tokens(OTHER)
    _, other = model.run_with_cache(others, names_filter=["blocks.20.attn.hook_z"])

    def scaled(out: Tensor, hook: Any) -> Tensor:
        return 0.25 * out

    def patched(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, -3:, 4] = other[hook.name][:, -3:, 4]
        return z

    changes = [
        Change(component="mlp10", action="scale", factor=0.25),
        Change(component="20.4", action="patch", positions=[-1, -2, -3]),
    ]
    answer = sessions.run(State(prompt=PROMPT, other=OTHER, changes=changes))
    hooks = [("blocks.10.hook_mlp_out", scaled), ("blocks.20.attn.hook_z", patched)]
    for found, logits in (
        (answer.before, model(tokens)),
        (answer.after, model.run_with_hooks(tokens, fwd_hooks=hooks)),
    ):
        assert found is not None
        log_probs = logits[0].log_softmax(-1)
        expected = torch.tensor([float(log_probs[-1, each.id].exp()) for each in found.predictions])
        torch.testing.assert_close(
            torch.tensor([each.probability for each in found.predictions]), expected, rtol=1e-3, atol=1e-5
        )
        losses = -log_probs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found.losses[1:]), losses, rtol=1e-3, atol=1e-3)
    assert answer.before.predictions[0].token == " Mary"
    assert abs(answer.after.target_probability - answer.before.target_probability) > 0.01


def test_why_in_a_late_layer_sums_to_the_score(model: HookedTransformer) -> None:
    state = State(prompt=PROMPT, changes=[Change(component="2.0", action="zero")])
    why = Sessions(model).why(WhyRequest(state=state, layer=25, head=1, query=-1, key=2))
    for parts in (why.query_parts, why.key_parts):
        torch.testing.assert_close(sum(part.value for part in parts), why.score, rtol=1e-3, atol=1e-3)
    assert len(why.parts) == 30
