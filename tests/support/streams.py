"""Every analysis of a stream on a small model, as a table of cases."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import (
    ablate_heads,
    attribute,
    copy_suppression_preserving_ablation,
    detect_heads,
    dynamic_ov,
    head_scores,
    logit_lens,
    measure_calibration,
    measure_entropy,
    next_token_loss,
    predict_next_tokens,
    suppression_scores,
)
from headscope.analysis.lens.entropy import EntropyResult
from headscope.explorer.measuring.activity import measure_activity
from headscope.explorer.measuring.rows import pick_rows
from headscope.explorer.measuring.sequences import Shown, measure_sequences

__all__ = ["CASES", "make_model", "make_tokens", "measured", "same_bits", "tensors_of"]

D_VOCAB = 23


def make_model(seed: int = 0) -> HookedTransformer:
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=8, n_ctx=12, d_head=4, d_vocab=D_VOCAB, act_fn="gelu_new", seed=seed, device="cpu"
        )
    )


def make_tokens(seed: int = 0) -> Tensor:
    """Nine rows, in which tokens come again."""
    half = torch.randint(0, D_VOCAB, (9, 4), generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half], 1)


def measured(model: HookedTransformer, tokens: Tensor, out: str | Path, engine: Any) -> EntropyResult:
    """A run of two passes that keeps every position."""
    options: dict[str, Any] = {"baseline": "mean", "reduce": "none", "progress": False, "resume": True}
    return measure_entropy(model, tokens, out=out, engine=engine, **options)


PROMPTS = {"answer_tokens": make_tokens(3)[:, :2]}
IOI = {"prompts": make_tokens(1), "answers": make_tokens(2)[:, :2], "n_sequences": 5, "length": 4}

SHOWN = [Shown(number % 2, number // 2 % 2, number % 10 + 1, number < 3, number) for number in range(9)]


def sequences(model: HookedTransformer, tokens: Tensor, *, shown: list[Shown] = SHOWN, **run: Any) -> Any:
    return measure_sequences(model, pick_rows(model, run.pop("data", tokens), range(9)), shown, **run)


# name -> the function over (model, tokens), and an option that makes another run of it
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "entropy": (measure_entropy, {"scale": "own"}),
    "entropy, mean, every position": (
        lambda *a, **o: measure_entropy(*a, **{"baseline": "mean", "reduce": "none", **o}),
        {"reduce": "mean"},
    ),
    "calibration": (measure_calibration, {"n_bins": 7}),
    "ablation": (lambda *a, **o: ablate_heads(*a, kl=True, **o), {"heads": ["0.1"]}),
    "ablation, resampled, means": (
        lambda *a, **o: ablate_heads(
            *a, values=["mean", "resample"], mean_over="position", reference=make_tokens(5), reduce="mean", **o
        ),
        {"seed": 1},
    ),
    "CSPA": (copy_suppression_preserving_ablation, {"top": 0.5}),
    "dynamic OV": (dynamic_ov, {"threshold": 0.2}),
    "suppression scores": (lambda model, _, **o: suppression_scores(model, **{**IOI, **o}), {"seed": 1}),
    "loss": (next_token_loss, {"data": make_tokens(7)}),
    "next tokens": (predict_next_tokens, {"k": 3}),
    "logit lens": (logit_lens, {"lens_bias": False}),
    "attribution": (lambda *a, **o: attribute(*a, **{**PROMPTS, **o}), {"sources": False, "control": "reinitialized"}),
    "head scores": (head_scores, {"include_bos": True}),
    "head types": (detect_heads, {"min_effect": 0.1}),
    "head activity": (measure_activity, {"n_top": 3}),
    "head sequences": (sequences, {"shown": SHOWN[:4]}),
}


def tensors_of(found: Any) -> dict[str, Tensor]:
    """The arrays and numbers of a result."""
    if isinstance(found, Tensor):
        return {"values": found}
    values = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    numbers = {name: torch.tensor(value) for name, value in values.items() if isinstance(value, (int, float))}
    return numbers | {name: value for name, value in values.items() if isinstance(value, Tensor)}


def same_bits(found: Any, wanted: Any) -> None:
    ours, theirs = tensors_of(found), tensors_of(wanted)
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and value.shape == theirs[name].shape, name
        assert value.contiguous().numpy().tobytes() == theirs[name].contiguous().numpy().tobytes(), name
    if not isinstance(found, Tensor):
        assert found.info == wanted.info
