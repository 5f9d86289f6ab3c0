"""Mixtures of experts against a loop over tokens and experts in float64, and what their hooks show and change."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import InvalidInputError
from headscope.model.names import get_act_name
from headscope.model.parts.experts import MoE

EXPERTS = {"num_experts": 5, "experts_per_token": 2, "act_fn": "silu"}
KINDS: dict[str, dict[str, Any]] = {
    "gated": {"gated_mlp": True},
    "not gated": {},
    "made to sum to one": {"gated_mlp": True, "norm_topk_prob": True},
    "one of each token": {"gated_mlp": True, "experts_per_token": 1},
    "all of them": {"gated_mlp": True, "experts_per_token": 5},
    "sigmoids": {"router": "sigmoid", "norm_topk_prob": True, "expert_weight_scale": 2.5},
    "sigmoids in groups": {"router": "sigmoid", "num_experts": 6, "expert_groups": 3, "expert_groups_per_token": 2,
                           "experts_per_token": 3},
    "softmax in groups": {"gated_mlp": True, "num_experts": 6, "expert_groups": 3, "expert_groups_per_token": 1},
    "sparse mixer": {"router": "sparsemixer", "sparsemixer_margin": 0.9},
    "one for all": {"gated_mlp": True, "d_mlp_shared": 7},
    "one for all, with a gate": {"d_mlp_shared": 7, "gate_shared_expert": True},
    "weights on inputs": {"router": "sigmoid", "scale_expert_inputs": True},
    "clamped": {"gated_mlp": True, "gated_mlp_limit": 0.4, "gated_mlp_offset": 1.0, "expert_output_biases": True},
}  # fmt: skip


def model(**fields: Any) -> HookedTransformer:
    return tiny_model(**{**EXPERTS, **fields})


def one_by_one(part: MoE, x: Tensor) -> Tensor:
    """Every token on its own, its experts one by one."""
    out = torch.zeros_like(x)
    for place in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        token = x[tuple(place)]
        for expert, weight in weights_of(part, token).items():
            read, written = (token * weight, 1.0) if part.cfg.scale_expert_inputs else (token, weight)
            made = neurons(part, read, expert) @ part.W_out[expert]
            made = made + part.b_out_expert[expert] if part.cfg.expert_output_biases else made
            out[tuple(place)] += written * made
        if part.cfg.d_mlp_shared:
            gate = 1.0
            if part.cfg.gate_shared_expert:
                gate = 1 / (1 + torch.exp(-(token @ part.W_shared_gate + part.b_shared_gate)))
            out[tuple(place)] += gate * (neurons(part.shared, token) @ part.shared.W_out + part.shared.b_out)
    return out + part.b_out


def weights_of(part: MoE, token: Tensor) -> dict[int, Tensor]:
    """The experts of one token, with what they are weighted by."""
    cfg, logits = part.cfg, (token @ part.W_router + part.b_router).tolist()
    everyone = range(len(logits))
    if cfg.router == "sparsemixer":
        return mixed_weights(logits, cfg.sparsemixer_margin)
    odds = [math.exp(each) for each in logits]
    scores = [each / (1 + each if cfg.router == "sigmoid" else sum(odds)) for each in odds]
    order = [
        score + float(part.b_choice[each]) if cfg.router == "sigmoid" else score for each, score in enumerate(scores)
    ]
    size = len(logits) // (cfg.expert_groups or 1)
    best = 2 if cfg.router == "sigmoid" else 1
    by_group = {start: sum(sorted(order[start : start + size])[-best:]) for start in range(0, len(logits), size)}
    groups = sorted(by_group, key=lambda start: -by_group[start])[: cfg.expert_groups_per_token or 1]
    allowed = [each for each in everyone if each // size * size in groups]
    chosen = sorted(allowed, key=lambda each: -order[each])[: cfg.experts_per_token]
    total = sum(scores[each] for each in chosen) if cfg.norm_topk_prob else 1.0
    return {each: scores[each] / total * cfg.expert_weight_scale for each in chosen}


def mixed_weights(logits: list[float], margin: float) -> dict[int, float]:
    """The two experts of the sparse mixer: each weighted among those near it that were not chosen before."""
    chosen: dict[int, float] = {}
    for _ in range(2):
        left = [each for each in range(len(logits)) if each not in chosen]
        first = max(left, key=lambda each: logits[each])
        top = logits[first]
        near = [each for each in left if (top - logits[each]) / max(abs(logits[each]), top) <= margin]
        chosen[first] = math.exp(top) / sum(math.exp(logits[each]) for each in near)
    return chosen


def neurons(part: Any, token: Tensor, *expert: int) -> Tensor:
    """Activations of an MLP, or of one expert."""
    cfg, linear = part.cfg, token @ part.W_in[expert] + part.b_in[expert]
    gate = token @ part.W_gate[expert] + part.b_gate[expert] if cfg.gated_mlp else linear
    if cfg.gated_mlp_limit:
        gate, linear = gate.clamp(max=cfg.gated_mlp_limit), linear.clamp(-cfg.gated_mlp_limit, cfg.gated_mlp_limit)
    return gate / (1 + torch.exp(-gate)) * (linear + cfg.gated_mlp_offset if cfg.gated_mlp else 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_those_of_the_loop(kind: str) -> None:
    part = model(**KINDS[kind]).blocks[1].mlp
    x = torch.randn(2, 7, part.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = one_by_one(part, x)
        torch.testing.assert_close(part(x), wanted, rtol=0, atol=1e-12)
        for point in (part.hook_pre, part.hook_post, part.hook_expert_weights):
            point.add_hook(lambda value, hook: value.clone())
        torch.testing.assert_close(part(x), wanted, rtol=0, atol=1e-12)
        assert part(x[:, :0]).shape == (2, 0, part.cfg.d_model)


def test_only_chosen_experts_work() -> None:
    """Experts nobody chose may hold anything: they are not multiplied by."""
    part = model(gated_mlp=True).blocks[0].mlp
    x = torch.randn(1, 2, part.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted, chosen = part(x), part.route(x)[1]
        idle = [each for each in range(5) if each not in chosen]
        assert idle
        part.W_in[idle] = torch.nan
        assert torch.equal(part(x), wanted)


def test_what_is_shown() -> None:
    tokens, own = tiny_tokens(), model(gated_mlp=True)
    _, acts = own.run_with_cache(tokens)
    batch, pos = tokens.shape
    weights, chosen = acts["expert_weights", 0], acts[get_act_name("expert_indices", 0)]
    assert weights.shape == (batch, pos, 5) and chosen.shape == (batch, pos, 2) and not chosen.is_floating_point()
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, pos, dtype=torch.float64))
    assert torch.equal(chosen[..., 0], weights.argmax(-1))
    part, x = own.blocks[0].mlp, acts["normalized", 0, "ln2"] * own.blocks[0].ln2.w + own.blocks[0].ln2.b
    with torch.no_grad():
        for rank in range(2):
            expert = chosen[1, 4, rank]
            gate = x[1, 4] @ part.W_gate[expert] + part.b_gate[expert]
            torch.testing.assert_close(acts["pre", 0][1, 4, rank], gate, rtol=0, atol=1e-12)
        parts = (acts["post", 0][..., None, :] @ part.W_out[chosen])[..., 0, :] * weights.gather(-1, chosen)[..., None]
    torch.testing.assert_close(parts.sum(-2) + part.b_out, acts["mlp_out", 0], rtol=0, atol=1e-12)


def test_an_expert_can_be_taken_away() -> None:
    """With its probability zero the next likely expert is chosen; an index can be set as well."""
    part = model(gated_mlp=True).blocks[0].mlp
    x = torch.randn(1, 6, part.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def without_one(weights: Tensor, hook: Any) -> Tensor:
        weights[..., 2] = 0
        return weights

    with torch.no_grad():
        plain = part.route(x)
        part.hook_expert_weights.add_hook(without_one)
        weights, chosen = part.route(x)
        assert 2 in plain[1] and 2 not in chosen
        part.hook_expert_weights.remove_hooks()
        part.hook_expert_indices.add_hook(lambda value, hook: torch.full_like(value, 3))
        weights, chosen = part.route(x)
    odds = (x @ part.W_router + part.b_router).softmax(-1)[..., 3]
    torch.testing.assert_close(weights[..., 0], odds.detach(), rtol=0, atol=1e-12)


def test_gradients_and_patches_go_through() -> None:
    tokens, own = tiny_tokens(1), model(gated_mlp=True, norm_topk_prob=True)
    loss = own(tokens, return_type="loss")
    loss.backward()
    part, step = own.blocks[0].mlp, 1e-6
    for weight in (part.W_router, part.W_out, part.W_gate):
        place = tuple(int(each) for each in (weight.grad.abs() == weight.grad.abs().max()).nonzero()[0])
        with torch.no_grad():
            weight[place] += step
            more = own(tokens, return_type="loss")
            weight[place] -= 2 * step
            less = own(tokens, return_type="loss")
            weight[place] += step
        torch.testing.assert_close((more - less) / (2 * step), weight.grad[place], rtol=1e-5, atol=1e-9)
    _, acts = own.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    assert acts["blocks.0.mlp.hook_post_grad"].shape == acts["post", 0].shape
    assert "blocks.0.mlp.hook_expert_weights_grad" in acts and "blocks.0.mlp.hook_expert_indices_grad" not in acts
    name = get_act_name("post", 0)
    changed = own.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value * 0)])
    bias = own.run_with_hooks(tokens, fwd_hooks=[(get_act_name("mlp_out", 0), lambda value, hook: value * 0)])
    part.b_out.data.zero_()
    assert not torch.allclose(changed, bias)
    changed = own.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value * 0)])
    torch.testing.assert_close(changed, bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_processing_keeps_log_probabilities(kind: str, norm: str) -> None:
    tokens, own = tiny_tokens(), model(**KINDS[kind], normalization_type=norm)
    with torch.no_grad():
        wanted = own(tokens).log_softmax(-1)
        own.process_weights_()
        torch.testing.assert_close(own(tokens).log_softmax(-1), wanted, rtol=0, atol=1e-10)
    # What experts read is weighted behind the norm, and its bias with it.
    folded = not (norm == "LN" and own.cfg.scale_expert_inputs)
    assert ("fold_ln" in own.weight_processing) is folded and bool(own.blocks[0].ln2.state_dict()) is not folded


def test_parts_of_the_stream() -> None:
    own = model(gated_mlp=True)
    _, acts = own.run_with_cache(tiny_tokens())
    parts = acts.get_full_resid_decomposition(expand_neurons=False).sum(0)
    torch.testing.assert_close(parts, acts["resid_post", -1], rtol=0, atol=1e-10)
    with pytest.raises(InvalidInputError, match="5 experts each.*expand_neurons=False"):
        acts.get_full_resid_decomposition()
    assert own.W_in.shape == (2, 5, 10, 14) and own.W_out.shape == (2, 5, 14, 10) and own.b_out.shape == (2, 10)
    of_mlps = sum(p.numel() for n, p in own.named_parameters() if ".mlp.W_" in n)
    of_attention = sum(p.numel() for n, p in own.named_parameters() if ".attn.W_" in n)
    assert own.cfg.n_params == of_mlps + of_attention


def test_experts_in_some_layers() -> None:
    """The others have a dense MLP, of a width of its own; a weight that has not one shape in all layers is refused."""
    fields = {"gated_mlp": True, "mlp_types": ["dense", "experts", "dense"], "d_mlp_dense": 9, "n_layers": 3}
    own = model(**fields, d_mlp_shared=7, gate_shared_expert=True)
    assert [type(block.mlp).__name__ for block in own.blocks] == ["GatedMLP", "MoE", "GatedMLP"]
    assert own.blocks[0].mlp.W_in.shape == (10, 9) and own.blocks[1].mlp.W_in.shape == (5, 10, 14)
    with pytest.raises(InvalidInputError, match=r"W_in has not one shape in all layers: \[10, 9\], \[5, 10, 14\]"):
        _ = own.W_in
    assert own.b_out.shape == (3, 10)
    matrices = [p.numel() for n, p in own.named_parameters() if ".W_" in n and n.startswith("blocks.")]
    assert own.cfg.n_params == sum(matrices)
    tokens = tiny_tokens()
    with torch.no_grad():
        wanted = own(tokens).log_softmax(-1)
        own.process_weights_()
        torch.testing.assert_close(own(tokens).log_softmax(-1), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 4}, "between 1 and num_experts = 4; got None"),
        ({"num_experts": 4, "experts_per_token": 5}, "got 5"),
        ({"num_experts": 4, "experts_per_token": 2, "act_fn": "solu_ln"}, "'solu_ln' has no form with experts"),
        ({**EXPERTS, "mlp_types": ["dense"]}, "for each of 2 layers"),
        ({**EXPERTS, "router": "hash"}, "router must be one of 'softmax', 'sigmoid', 'sparsemixer'; got 'hash'"),
        ({**EXPERTS, "router": "sparsemixer", "experts_per_token": 3}, "chooses two experts; got .* 3"),
        ({**EXPERTS, "gate_shared_expert": True}, "gate_shared_expert needs d_mlp_shared"),
        ({**EXPERTS, "expert_groups": 2, "expert_groups_per_token": 1}, "must divide num_experts = 5"),
        (
            {**EXPERTS, "num_experts": 6, "expert_groups": 3, "experts_per_token": 3, "expert_groups_per_token": 1},
            "must hold experts_per_token = 3",
        ),
        ({"gated_mlp_limit": 1.0}, "need gated_mlp = True"),
        ({"gated_mlp": True, "gated_mlp_limit": -1.0}, "must be positive"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tiny_config(**fields)
    assert HookedTransformerConfig.from_dict(tiny_config(**EXPERTS).to_dict()).num_experts == 5


@pytest.mark.parametrize(("name", "value"), {
    "experts_per_token": 2, "mlp_types": ["dense"] * 2, "d_mlp_dense": 8, "d_mlp_shared": 8, "gate_shared_expert": True,
    "router": "sigmoid", "sparsemixer_margin": 0.1, "norm_topk_prob": True, "expert_weight_scale": 2.0,
    "expert_groups": 2, "expert_groups_per_token": 1, "scale_expert_inputs": True, "expert_output_biases": True,
}.items())  # fmt: skip
def test_options_of_experts_without_experts_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} = .* needs num_experts"):
        tiny_config(**{name: value})
