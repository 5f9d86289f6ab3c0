"""Rotary positions: tables that can be read and set, shared by layers, and made for as long as the text is."""

import math
from typing import Any

import pytest
import torch
from tiny import randomize, tiny_config, tiny_model, tiny_tokens

from headscope.analysis.core.batches import Batch
from headscope.analysis.recording.layer import sources
from headscope.errors import InvalidInputError
from headscope.model.parts.masks import alibi_penalties, alibi_slopes, allowed_by_position
from headscope.model.parts.rotary import frequencies, rotary_table, rotate

TOKENS = tiny_tokens()
ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary"}
CHUNKS: dict[str, Any] = {
    "use_local_attn": True, "attn_in_chunks": True, "window_size": 3, "attn_types": ["local", "global"],
}  # fmt: skip


def test_tables_can_be_read_and_set() -> None:
    model = tiny_model(**ROTARY, rotary_base=100)
    attn = model.blocks[0].attn
    assert attn.rotary_sin.shape == attn.rotary_cos.shape == (12, 4)
    for position in (0, 5):
        angles = torch.tensor([1.0, 0.1, 1.0, 0.1], dtype=torch.float64) * position
        torch.testing.assert_close(attn.rotary_sin[position], angles.sin())
        torch.testing.assert_close(attn.rotary_cos[position], angles.cos())
    wanted = model(TOKENS)
    attn.rotary_sin[:] = 0.0  # a copy: nothing changes
    assert torch.equal(model(TOKENS), wanted)
    attn.rotary_sin, attn.rotary_cos = torch.zeros(12, 4), torch.ones(12, 4)
    assert float((model(TOKENS) - wanted).detach().abs().max()) > 1e-3
    _, acts = model.run_with_cache(TOKENS)
    assert torch.equal(acts["q", 0], acts["rot_q", 0]) and not torch.equal(acts["q", 1], acts["rot_q", 1])
    assert not any("rotary" in name or "_own" in name for name in model.state_dict())


def test_only_rotary_attention_has_tables() -> None:
    attn = tiny_model().blocks[0].attn
    assert not hasattr(attn, "rotary_sin") and not hasattr(attn, "rotary_cos")


def test_assigning_what_is_shown_changes_nothing() -> None:
    model = tiny_model(**ROTARY, n_ctx=2100, d_vocab=5)
    attn = model.blocks[0].attn
    tokens = tiny_tokens(1, 2060, d_vocab=5)  # more than are shown
    wanted = model(tokens)
    attn.rotary_sin, attn.rotary_cos = attn.rotary_sin, attn.rotary_cos
    assert len(attn.rotary_sin) == 2048 and torch.equal(model(tokens), wanted)


def test_layers_with_the_same_angles_share_a_table() -> None:
    cfg = tiny_config(**ROTARY)
    cpu = torch.device("cpu")
    table = rotary_table(cfg, local=False, length=1, device=cpu)
    assert rotary_table(tiny_config(**ROTARY), local=False, length=7, device=cpu) is table
    assert rotary_table(tiny_config(**ROTARY, rotary_base=5), local=False, length=1, device=cpu) is not table


def test_a_changed_base_counts_from_then_on() -> None:
    model = tiny_model(**ROTARY)
    model(TOKENS)
    model.cfg.rotary_base = 3.0
    torch.testing.assert_close(model(TOKENS), tiny_model(**ROTARY, rotary_base=3.0)(TOKENS))


def test_a_table_made_in_inference_mode_can_be_differentiated_through() -> None:
    model = tiny_model(**ROTARY, rotary_base=17.5)
    with torch.inference_mode():
        model(TOKENS)
    model(TOKENS, return_type="loss").backward()
    assert float(model.blocks[0].attn.W_K.grad.abs().max()) > 0


def test_scores_depend_on_distance_alone() -> None:
    model = tiny_model(**ROTARY, n_layers=1)
    _, acts = model.run_with_cache(torch.full((1, 8), 3))
    scores = acts["attn_scores", 0][0]
    for distance in range(4):
        along = scores.diagonal(-distance, 1, 2)
        torch.testing.assert_close(along, along[:, :1].expand_as(along), rtol=1e-9, atol=1e-9)


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"13 tokens.*n_ctx = 12.*set cfg\.n_ctx"):
        tiny_model(**ROTARY)(tiny_tokens(1, 13))


def test_longrope_has_other_angles_for_long_texts() -> None:
    cfg = tiny_config(**ROTARY, longrope_short_factors=[1.0, 2.0], longrope_long_factors=[4.0, 8.0],
                      longrope_original_ctx_len=6, longrope_attention_factor=1.25)  # fmt: skip
    for length, factors in ((6, [1.0, 2.0]), (7, [4.0, 8.0])):
        angles, factor = frequencies(cfg, length=length)
        assert factor == 1.25
        torch.testing.assert_close(angles, torch.tensor([1.0, 0.01], dtype=torch.float64) / torch.tensor(factors))


GROWING = {
    "longrope": {"longrope_short_factors": [1.0, 2.0], "longrope_long_factors": [4.0, 8.0],
                 "longrope_original_ctx_len": 5},
    "dynamic": {"dynamic_NTK_factor": 3.0, "NTK_original_ctx_len": 5},
}  # fmt: skip


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_whose_rows_are_all_padded_has_no_length_of_its_own(kind: str, side: str) -> None:
    """The longest text counts in `transformers`, or all of a row; where that makes a difference it is refused."""
    model = tiny_model(**ROTARY, **GROWING[kind])
    tokens = tiny_tokens(2, 8)
    for lengths, fits in (((8, 3), True), ((4, 3), False)):
        mask = torch.arange(8) < torch.tensor(lengths)[:, None]
        mask = mask.flip(-1) if side == "left" else mask
        if fits:
            model(tokens, attention_mask=mask)
            continue
        with pytest.raises(InvalidInputError, match="8 positions, but the longest text in them has 4, .* padding that"):
            model(tokens, attention_mask=mask)
        kept = tokens[:, -4:] if side == "left" else tokens[:, :4]
        mask = mask[:, -4:] if side == "left" else mask[:, :4]
        model(kept, attention_mask=mask)
    model.cfg.longrope_original_ctx_len = model.cfg.NTK_original_ctx_len = 8
    few = torch.arange(8) < 3
    model(tokens, attention_mask=few.expand(2, 8))  # no row is longer than the context of training


def test_dynamic_ntk_stretches_the_base_in_long_texts() -> None:
    cfg = tiny_config(**ROTARY, d_head=6, dynamic_NTK_factor=3.0, NTK_original_ctx_len=8)
    plain, stretched = (frequencies(cfg, length=length)[0] for length in (8, 16))
    torch.testing.assert_close(plain, 10000.0 ** -(torch.arange(3).double() / 3))
    torch.testing.assert_close(stretched, plain * 4.0 ** -(torch.arange(3).double() / 2))  # 3 (2 - 1) + 1 = 4
    assert float(stretched[-1] / plain[-1]) == pytest.approx(1 / 4)


def test_layers_may_turn_nothing() -> None:
    _, acts = tiny_model(**ROTARY, rotary_layers=[True, False]).run_with_cache(TOKENS)
    assert torch.equal(acts["k", 1], acts["rot_k", 1]) and not torch.equal(acts["k", 0], acts["rot_k", 0])


@pytest.mark.parametrize("mask", [None, torch.arange(7) >= torch.tensor([[0], [4]])])
def test_queries_are_sharpened_by_position(mask: torch.Tensor | None) -> None:
    model = tiny_model(**ROTARY, attn_temperature_slope=0.5, attn_temperature_length=2)
    tokens = tiny_tokens(2, 7)
    _, acts = model.run_with_cache(tokens, attention_mask=mask)
    model.cfg.attn_temperature_slope = 0.0
    _, without = model.run_with_cache(tokens, attention_mask=mask)
    by_position = [1 + 0.5 * math.log(1 + position // 2) for position in range(7)]
    factors = torch.tensor([by_position, [1.0] * 4 + by_position[:3]] if mask is not None else [by_position] * 2)
    torch.testing.assert_close(acts["rot_q", 0], without["rot_q", 0] * factors[..., None, None].double())
    assert torch.equal(acts["rot_k", 0], without["rot_k", 0])


def test_layers_may_sharpen_or_norm_nothing() -> None:
    layers = [False, True]
    model = tiny_model(**ROTARY, attn_temperature_slope=0.5, attn_temperature_length=2, attn_temperature_start=1,
                       attn_temperature_layers=layers, use_qk_norm=True, qk_norm_layers=layers,
                       qk_norm_after_rotation=True, rotary_layers=[True, False])  # fmt: skip
    assert not hasattr(model.blocks[0].attn, "q_norm") and model.blocks[1].attn.q_norm.w.shape == (4,)
    _, acts = model.run_with_cache(TOKENS)
    length = TOKENS.shape[1]
    factors = torch.tensor([1 + 0.5 * math.log(1 + (position + 1) // 2) for position in range(length)]).double()
    normed = acts["q", 1] * (acts["q", 1].square().mean(-1, keepdim=True) + model.cfg.eps).rsqrt()
    weighted = normed * model.blocks[1].attn.q_norm.w
    torch.testing.assert_close(acts["rot_q", 1], weighted * factors[:, None, None])
    attn = model.blocks[0].attn
    sin, cos = attn.rotary_sin[None, :length], attn.rotary_cos[None, :length]
    torch.testing.assert_close(acts["rot_q", 0], rotate(acts["q", 0], sin, cos, adjacent=False))


@pytest.mark.parametrize("kind", ["RMS", "LN"])
@pytest.mark.parametrize("which", ["", "qk_norm_per_head", "qk_norm_all_heads"])
@pytest.mark.parametrize("after", [False, True])
def test_norms_of_queries_and_keys(kind: str, which: str, after: bool) -> None:
    """Against the definition, with keys of two groups shown to hooks by group and for each of their heads."""
    options = {which: True} if which else {}
    model = tiny_model(**ROTARY, n_heads=4, n_key_value_heads=2, use_qk_norm=True, qk_norm_type=kind,
                       qk_norm_after_rotation=after, **options)  # fmt: skip
    attn = model.blocks[1].attn
    randomize(attn.k_norm)
    assert attn.k_norm.w.shape == {"": (4,), "qk_norm_per_head": (2, 4), "qk_norm_all_heads": (8,)}[which]
    for ungrouped in (False, True):
        model.cfg.ungroup_grouped_query_attention = ungrouped
        _, acts = model.run_with_cache(TOKENS)
        k, sin, cos = acts["k", 1], attn.rotary_sin[None, : TOKENS.shape[1]], attn.rotary_cos[None, : TOKENS.shape[1]]
        k = rotate(k, sin, cos, adjacent=False) if after else k
        vectors = k[:, :, :: 2 if ungrouped else 1]
        vectors = vectors.flatten(-2) if which == "qk_norm_all_heads" else vectors
        centered = vectors - vectors.mean(-1, keepdim=True) if kind == "LN" else vectors
        wanted = centered / (centered.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt() * attn.k_norm.w
        wanted = wanted + attn.k_norm.b if kind == "LN" else wanted
        wanted = wanted.unflatten(-1, (2, 4)) if which == "qk_norm_all_heads" else wanted
        wanted = wanted if after else rotate(wanted, sin, cos, adjacent=False)
        wanted = wanted.repeat_interleave(2, dim=2) if ungrouped else wanted
        torch.testing.assert_close(acts["rot_k", 1], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields, message", [
    ({**ROTARY, "rotary_dim": 3}, "rotary_dim must be even and at most d_head = 4; got 3"),
    ({**ROTARY, "rotary_dim": 6}, "rotary_dim must be even"),
    ({**ROTARY, "longrope_short_factors": [1.0, 2.0]}, "longrope_long_factors"),
    ({**ROTARY, "rotary_layers": [True]}, r"rotary_layers .* each of 2 layers; got \[True\]"),
    ({**ROTARY, "attn_temperature_layers": [True]}, r"attn_temperature_layers .* each of 2 layers; got \[True\]"),
    ({"use_qk_norm": True, "qk_norm_layers": [True]}, r"qk_norm_layers .* each of 2 layers; got \[True\]"),
    ({"qk_norm_layers": [True, False]}, "needs use_qk_norm = True"),
    ({**ROTARY, "attn_temperature_start": -1}, "attn_temperature_start must not be negative; got -1"),
    ({"attn_temperature_layers": [True, False]}, "attn_temperature_layers = .* needs positional_embedding_type"),
    ({"attn_in_chunks": True}, "attn_in_chunks = True needs use_local_attn"),
    ({**CHUNKS, "attention_dir": "bidirectional"}, "needs attention_dir = 'causal'; got 'bidirectional'"),
    ({**ROTARY, "attn_temperature_length": 0}, "attn_temperature_length must be at least 1; got 0"),
    ({"attn_temperature_slope": 0.1}, "attn_temperature_slope = 0.1 needs positional_embedding_type = 'rotary'"),
    ({"qk_norm_per_head": True, "qk_norm_all_heads": True}, "qk_norm_per_head and qk_norm_all_heads cannot both"),
    ({"qk_norm_type": "LNPre"}, "qk_norm_type must be one of 'RMS', 'LN'; got 'LNPre'"),
    ({**ROTARY, "longrope_short_factors": [1.0], "longrope_long_factors": [1.0]}, "rotary_dim / 2 = 2 numbers"),
    ({"use_local_attn": True, "attn_types": ["local", "global"]}, "window_size of at least 1"),
    ({"use_local_attn": True, "window_size": 3, "attn_types": ["local"]}, "attn_types.*2 layers"),
    ({"use_local_attn": True, "window_size": 3, "attn_types": ["local", "sliding"]}, "attn_types"),
    ({"use_normalization_before_and_after": True, "use_normalization_after_only": True}, "cannot both be set"),
    ({"gated_mlp": True, "act_fn": "solu_ln"}, "no gated form"),
])  # fmt: skip
def test_choices_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tiny_config(**fields)


def test_windows_and_slopes() -> None:
    wanted = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    cpu = torch.device("cpu")
    assert torch.equal(allowed_by_position(2, 4, causal=True, window=2, device=cpu)[0], wanted)
    assert torch.equal(allowed_by_position(2, 2, causal=False, window=None, device=cpu)[0], torch.ones(2, 2).bool())
    assert alibi_slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert alibi_slopes(6).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


def test_penalties_rounded_to_bfloat16() -> None:
    """As Falcon has them: a slope times the place of the key, rounded, in bfloat16, and divided by the scale."""
    cfg = tiny_config(positional_embedding_type="alibi", alibi_bfloat16=True, attn_scale=1.7, n_heads=12, n_ctx=400)
    like = torch.empty(0, dtype=torch.float64)
    found = alibi_penalties(cfg, 2, 400, None, like)
    for head, slope in enumerate(alibi_slopes(12).tolist()):
        rounded = [float(torch.tensor(slope).bfloat16() * torch.tensor(key).bfloat16()) for key in range(400)]
        for query in range(2):
            wanted = [(each - rounded[398 + query]) / 1.7 for each in rounded]
            torch.testing.assert_close(found[0, head, query], torch.tensor(wanted, dtype=torch.float64))
    plain = alibi_slopes(12)[:, None, None] * (torch.arange(400) - torch.tensor([[398], [399]])) / 1.7
    assert float((found[0] - plain).abs().max()) > 0.1, "nothing was rounded"
    with pytest.raises(InvalidInputError, match="alibi_bfloat16 = True needs"):
        tiny_config(alibi_bfloat16=True)


def test_chunks_begin_with_the_first_real_token() -> None:
    """By the mask, in both ways of attending, and for analyses; padding in front moves the chunks with the text."""
    model = tiny_model(**ROTARY, **CHUNKS)
    tokens = tiny_tokens(1, 7)
    chunk = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    wanted = (chunk[:, None] == chunk) & torch.ones(7, 7).bool().tril()
    assert torch.equal(model.blocks[0].attn.mask[:7, :7], wanted) and int(model.blocks[1].attn.mask[6].sum()) == 7
    logits, acts = model.run_with_cache(tokens)
    assert torch.equal(acts["pattern", 0][0, 0] > 0, wanted)
    torch.testing.assert_close(model(tokens), logits)
    padded = torch.cat([tiny_tokens(1, 2), tokens], dim=1)
    mask = torch.arange(9)[None] >= 2
    found, acts = model.run_with_cache(padded, attention_mask=mask)
    assert torch.equal(acts["pattern", 0][0, 0, 2:, 2:] > 0, wanted)
    for each in (found, model(padded, attention_mask=mask)):
        torch.testing.assert_close(each[:, 2:], logits)
    assert torch.equal(sources(model, Batch(padded, mask, mask), 0)[0, 2:, 2:], wanted)
