"""The transformer and the logit lens once more, in plain float64: what the tests compare headscope with.

Nothing here imports headscope. Heads go one by one, norms are spelled out, and no tensor is made cleverly.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Edit = Callable[[str, Tensor], Tensor]


def keep(_name: str, value: Tensor) -> Tensor:
    """An edit that changes nothing."""
    return value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: torch.where(x > 0, x, 0.0 * x),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_new"]
ACTIVATIONS["solu_ln"] = lambda x: x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)


def turned(x: Tensor, cfg: Any, positions: Tensor) -> Tensor:
    """Heads `[batch, pos, head, d_head]` turned as complex numbers, pair by pair."""
    width = cfg.rotary_dim
    pairs = [(2 * i, 2 * i + 1) if cfg.rotary_adjacent_pairs else (i, i + width // 2) for i in range(width // 2)]
    out = x.clone()
    for number, (first, second) in enumerate(pairs):
        angle = positions.double() * cfg.rotary_base ** (-2 * number / width) / cfg.rotary_scaling_factor
        number_there = torch.complex(x[..., first], x[..., second])
        there = number_there * torch.exp(1j * angle)[:, :, None]
        out[..., first], out[..., second] = there.real, there.imag
    return out


@dataclass
class Run:
    """Logits [batch, pos, d_vocab], and the value at every hook point by name."""

    logits: Tensor
    acts: dict[str, Tensor]


class Reference:
    """A forward pass from a state dict and the attributes of a config.

    Args:
        state: Weights by headscope's names.
        cfg: Anything with the config's attributes.
        edit: Called with the name and value at each hook point; what it returns is used from there on.
        optional: Which of `attn_in`, `q_input` (all three), `mlp_in`, `result` exist.
    """

    def __init__(
        self, state: Mapping[str, Tensor], cfg: Any, *, edit: Edit = keep, optional: Collection[str] = ()
    ) -> None:
        self.state = {name: value.double() for name, value in state.items()}
        self.cfg = cfg
        self.edit = edit
        self.optional = set(optional)
        self.acts: dict[str, Tensor] = {}

    def at(self, name: str, value: Tensor) -> Tensor:
        value = self.edit(name, value)
        self.acts[name] = value
        return value

    def norm(self, name: str, x: Tensor, kind: str | None = "") -> Tensor:
        kind = self.cfg.normalization_type if kind == "" else kind
        if kind is None:
            return x
        if kind in ("LN", "LNPre"):
            x = x - x.mean(-1, keepdim=True)
        scale = self.at(f"{name}.hook_scale", torch.sqrt((x**2).mean(-1, keepdim=True) + self.cfg.eps))
        out = self.at(f"{name}.hook_normalized", x / scale)
        if kind in ("LN", "RMS"):
            out = out * self.state[f"{name}.w"]
        if kind == "LN":
            out = out + self.state[f"{name}.b"]
        return out

    def run(self, tokens: Tensor, mask: Tensor | None = None) -> Run:
        batch, length = tokens.shape
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        x = self.state["embed.W_E"][tokens]
        x = self.at("hook_embed", self.norm("embed.ln", x, "LN") if self.cfg.post_embedding_ln else x)
        if self.cfg.positional_embedding_type == "standard":
            rows = []
            for row in range(batch):
                positions, seen = self.state["pos_embed.W_pos"], 0
                rows.append(positions.new_zeros(length, positions.shape[1]))  # zero at padding
                for place in range(length):
                    if real[row, place]:
                        rows[row][place], seen = positions[seen], seen + 1
            x = x + self.at("hook_pos_embed", torch.stack(rows))
        return self.run_blocks(x, real, 0)

    def run_blocks(self, x: Tensor, real: Tensor, start: int) -> Run:
        for layer in range(start, self.cfg.n_layers):
            x = self.block(layer, x, real)
        normed = self.norm("ln_final", x, "RMS" if self.cfg.final_rms else "")
        logits = normed @ self.state["unembed.W_U"] + self.state["unembed.b_U"]
        cap = self.cfg.output_logits_soft_cap
        if cap > 0:
            logits = cap * torch.tanh(logits / cap)
        return Run(logits, self.acts)

    def block(self, layer: int, x: Tensor, real: Tensor) -> Tensor:
        name = f"blocks.{layer}."
        x = self.at(name + "hook_resid_pre", x)
        attn_out = self.at(name + "hook_attn_out", self.behind(name + "ln1_post", self.attention(name, layer, x, real)))
        if self.cfg.attn_only:
            return self.at(name + "hook_resid_post", x + attn_out)
        if self.cfg.parallel_attn_mlp:
            return self.at(name + "hook_resid_post", x + attn_out + self.mlp(name, x))
        mid = self.at(name + "hook_resid_mid", x + attn_out)
        return self.at(name + "hook_resid_post", mid + self.mlp(name, mid))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        if "mlp_in" in self.optional:
            x = self.at(name + "hook_mlp_in", x)
        state = self.state
        x = self.in_front(name + "ln2", x)
        linear = x @ state[name + "mlp.W_in"] + state[name + "mlp.b_in"]
        if self.cfg.gated_mlp:
            gate = self.at(name + "mlp.hook_pre", x @ state[name + "mlp.W_gate"] + state[name + "mlp.b_gate"])
            linear = self.at(name + "mlp.hook_pre_linear", linear)
            post = ACTIVATIONS[self.cfg.act_fn](gate) * linear
        else:
            post = ACTIVATIONS[self.cfg.act_fn](self.at(name + "mlp.hook_pre", linear))
        if self.cfg.act_fn == "solu_ln":
            post = self.norm(name + "mlp.ln", self.at(name + "mlp.hook_mid", post), "LN")
        out = self.at(name + "mlp.hook_post", post) @ state[name + "mlp.W_out"] + state[name + "mlp.b_out"]
        return self.at(name + "hook_mlp_out", self.behind(name + "ln2_post", out))

    def in_front(self, name: str, x: Tensor) -> Tensor:
        return x if self.cfg.use_normalization_after_only else self.norm(name, x)

    def behind(self, name: str, x: Tensor) -> Tensor:
        both, after = self.cfg.use_normalization_before_and_after, self.cfg.use_normalization_after_only
        kind = {"LN": "LN", "LNPre": "LN", "RMS": "RMS", "RMSPre": "RMS"}[self.cfg.normalization_type or "LN"]
        return self.norm(name, x, kind) if both or after else x

    def positioned(self, name: str, q: Tensor, k: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        if self.cfg.use_qk_norm:
            q, k = (self.norm(f"{name}attn.{which}_norm", each, "RMS") for which, each in (("q", q), ("k", k)))
        if self.cfg.positional_embedding_type != "rotary":
            return q, k
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        q = self.at(f"{name}attn.hook_rot_q", turned(q, self.cfg, positions))
        return q, self.at(f"{name}attn.hook_rot_k", turned(k, self.cfg, positions))

    def alibi(self, length: int) -> Tensor:
        power = 1
        while 2 * power <= self.cfg.n_heads:
            power *= 2
        of_twice = [2.0 ** (-8 * (head + 1) / (2 * power)) for head in range(2 * power)]
        slopes = torch.tensor((of_twice[1::2] + of_twice[::2])[: self.cfg.n_heads])
        places = torch.arange(length)
        return slopes.double()[:, None, None] * (places[None, :] - places[:, None])

    def attention(self, name: str, layer: int, x: Tensor, real: Tensor) -> Tensor:
        heads = self.cfg.n_heads
        inputs = self.attention_inputs(name, x)
        vectors = {}
        for kind, each in zip("qkv", inputs, strict=True):
            weight, bias = self.state[f"{name}attn.W_{kind.upper()}"], self.state[f"{name}attn.b_{kind.upper()}"]
            parts = [each[..., h, :] @ weight[h] + bias[h] for h in range(heads)]
            vectors[kind] = self.at(f"{name}attn.hook_{kind}", torch.stack(parts, dim=2))
        q, k = self.positioned(name, vectors["q"], vectors["k"], real)
        v = vectors["v"]
        scale = self.cfg.attn_scale if self.cfg.use_attn_scale else 1.0
        if self.cfg.scale_attn_by_inverse_layer_idx:
            scale = scale * (layer + 1)
        length = x.shape[1]
        allowed = real[:, None, None, :].expand(-1, heads, length, -1)
        if self.cfg.attention_dir == "causal":
            earlier = torch.arange(length)[:, None] >= torch.arange(length)[None, :]
            allowed = allowed & earlier
        if self.cfg.use_local_attn and self.cfg.attn_types[layer] == "local":
            distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
            allowed = allowed & (distance < self.cfg.window_size)
        scores = torch.stack([q[:, :, h] @ k[:, :, h].transpose(1, 2) / scale for h in range(heads)], dim=1)
        cap = self.cfg.attn_scores_soft_cap
        scores = cap * torch.tanh(scores / cap) if cap > 0 else scores
        if self.cfg.positional_embedding_type == "alibi":
            scores = scores + self.alibi(length)
        scores = self.at(name + "attn.hook_attn_scores", torch.where(allowed, scores, -math.inf))
        highest = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - torch.where(highest.isinf(), 0.0, highest))
        total = weights.sum(-1, keepdim=True)
        pattern = self.at(name + "attn.hook_pattern", weights / torch.where(total == 0, 1.0, total))
        z = self.at(name + "attn.hook_z", torch.stack([pattern[:, h] @ v[:, :, h] for h in range(heads)], dim=2))
        W_O = self.state[name + "attn.W_O"]
        result = torch.stack([z[:, :, h] @ W_O[h] for h in range(heads)], dim=2)
        if "result" in self.optional:
            result = self.at(name + "attn.hook_result", result)
        return result.sum(2) + self.state[name + "attn.b_O"]

    def attention_inputs(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        per_head = torch.stack([x] * self.cfg.n_heads, dim=2)
        if "attn_in" in self.optional:
            per_head = self.at(name + "hook_attn_in", per_head)
        if "q_input" in self.optional:
            q, k, v = (self.in_front(name + "ln1", self.at(f"{name}hook_{kind}_input", per_head)) for kind in "qkv")
            return q, k, v
        if "attn_in" in self.optional:
            normed = self.in_front(name + "ln1", per_head)
        else:
            normed = torch.stack([self.in_front(name + "ln1", x)] * self.cfg.n_heads, dim=2)
        return normed, normed, normed


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of the softmax along the last axis, in nats."""
    log_probs = logits.double().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


@dataclass
class NaiveEntropy:
    """`[state, batch, pos]` and `[layer, component, batch, pos]`; NaN where a position does not count."""

    resid: Tensor
    diff: Tensor
    marginal: Tensor

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        resid, diff, marginal = (value.nanmean(dim=(-2, -1)) for value in (self.resid, self.diff, self.marginal))
        return resid, diff, marginal


def naive_entropy(
    state: Mapping[str, Tensor],
    cfg: Any,
    tokens: Tensor,
    *,
    counted: Tensor,
    mask: Tensor | None = None,
    edit: Edit = keep,
    **options: Any,
) -> NaiveEntropy:
    """`naive_entropy_of` what the reference gives on some tokens."""
    reference = Reference(state, cfg, edit=edit)
    acts = reference.run(tokens, mask).acts
    return naive_entropy_of(acts, reference.state, cfg, counted=counted, **options)


def scale_of(x: Tensor, kind: str | None, eps: float) -> Tensor:
    """What a norm of this kind divides by."""
    if kind is None:
        return torch.ones_like(x[..., :1])
    x = x - x.mean(-1, keepdim=True) if kind.startswith("LN") else x
    return torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def heads_written(
    acts: Mapping[str, Tensor], weights: Mapping[str, Tensor], cfg: Any, layer: int, means: Tensor | None = None
) -> list[Tensor]:
    """What each head adds to the stream (less what its mean output would): one row for each head.

    A norm behind attention is the linear map it is with the scale that it has in this run.
    """
    name = f"blocks.{layer}."
    z, W_O = acts[name + "attn.hook_z"], weights[name + "attn.W_O"]
    heads = range(cfg.n_heads)
    out = sum(z[:, :, h] @ W_O[h] for h in heads) + weights[name + "attn.b_O"]
    z = z if means is None else z - means
    rows = [z[:, :, h] @ W_O[h] for h in heads]
    if f"{name}ln1_post.w" not in weights:
        return rows
    kind = "LN" if f"{name}ln1_post.b" in weights else "RMS"
    scale, weight = scale_of(out, kind, cfg.eps), weights[f"{name}ln1_post.w"]
    rows = [row - row.mean(-1, keepdim=True) if kind == "LN" else row for row in rows]
    return [row * weight / scale for row in rows]


def naive_entropy_of(
    acts: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    cfg: Any,
    *,
    counted: Tensor,
    baseline: str = "zero",
    scale: str = "final",
    lens_bias: bool = True,
) -> NaiveEntropy:
    """Entropy through the logit lens, one component and all logits at a time.

    A state `x` is read as `norm_final(x) W_U + b_U`, its norm's scale that of the final state or its own. A component
    `c` is added to the state it read (`resid_pre` for a head, the state before the MLP for an MLP), and taken from the
    final one. A soft cap comes last.
    """
    kind = cfg.normalization_type
    if cfg.final_rms and kind is not None:
        kind = "RMS" if "ln_final.w" in weights else "RMSPre"
    final = acts[f"blocks.{cfg.n_layers - 1}.hook_resid_post"]

    def lens(x: Tensor, *, at_the_end: bool, layer: int = cfg.n_layers) -> Tensor:
        scales = cfg.resid_scales or [1.0] * (cfg.n_layers + 1)
        own = cfg.eps * scales[layer] ** 2
        by = scale_of(final, kind, cfg.eps) if scale == "final" else scale_of(x, kind, own)
        x = (x - x.mean(-1, keepdim=True) if kind is not None and kind.startswith("LN") else x) / by
        x = x * weights["ln_final.w"] if kind in ("LN", "RMS") else x
        x = x + weights["ln_final.b"] if kind == "LN" else x
        logits = x @ weights["unembed.W_U"]
        if lens_bias or at_the_end:
            logits = logits + weights["unembed.b_U"]
        cap = cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def spread(values: Tensor) -> Tensor:
        return torch.where(counted, values, torch.nan)

    def changed(written: Tensor) -> Tensor:
        return written - written[counted].mean(0) if baseline == "mean" else written

    sequential = not (cfg.attn_only or cfg.parallel_attn_mlp)
    states, diff, marginal = [], [], []
    end = entropy_of(lens(final, at_the_end=True))
    for layer in range(cfg.n_layers):
        name = f"blocks.{layer}."
        pre = acts[name + "hook_resid_pre"]
        states.append(pre)
        components = [(pre, changed(written)) for written in heads_written(acts, weights, cfg, layer)]
        if sequential:
            states.append(acts[name + "hook_resid_mid"])
        if not cfg.attn_only:
            components.append((states[-1], changed(acts[name + "hook_mlp_out"])))
        diff.append([])
        marginal.append([])
        for before, change in components:
            added = entropy_of(lens(before + change, at_the_end=False, layer=layer))
            diff[-1].append(spread(added - entropy_of(lens(before, at_the_end=False, layer=layer))))
            marginal[-1].append(spread(end - entropy_of(lens(final - change, at_the_end=True))))
    per_layer = len(states) // cfg.n_layers
    resid = [
        spread(entropy_of(lens(state, at_the_end=False, layer=at // per_layer))) for at, state in enumerate(states)
    ] + [spread(end)]
    return NaiveEntropy(
        torch.stack(resid),
        torch.stack([torch.stack(row) for row in diff]),
        torch.stack([torch.stack(row) for row in marginal]),
    )
