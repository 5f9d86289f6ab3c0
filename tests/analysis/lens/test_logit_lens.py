"""`logit_lens` against the full logits of each state, in float64."""

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import LogitLensResult, logit_lens
from headscope.errors import InvalidInputError


def full_logits(model: HookedTransformer, tokens: Tensor, *, scale: str, lens_bias: bool) -> Tensor:
    """Logits of every state, `[state, batch, pos, d_vocab]`, none of them in tiles."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    cfg = model.cfg
    _, cache = model.run_with_cache(tokens)
    states = [cache["resid_pre", 0]]
    for layer in range(cfg.n_layers):
        if cfg.has_resid_mid:
            states.append(cache["resid_mid", layer])
        states.append(cache["resid_post", layer])

    def spread(x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True) if cfg.centered_norm else x
        return (centered.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt()

    logits = []
    for index, state in enumerate(states):
        centered = state - state.mean(-1, keepdim=True) if cfg.centered_norm else state
        normalized = centered / spread(states[-1] if scale == "final" else state)
        normalized = normalized * weights.get("ln_final.w", 1.0) + weights.get("ln_final.b", 0.0)
        bias = weights["unembed.b_U"] if lens_bias or index == len(states) - 1 else 0.0
        each = normalized @ weights["unembed.W_U"] + bias
        cap = cfg.output_logits_soft_cap
        logits.append(cap * torch.tanh(each / cap) if cap > 0 else each)
    return torch.stack(logits)


@pytest.mark.parametrize("scale", ["final", "own"])
@pytest.mark.parametrize("lens_bias", [True, False])
@pytest.mark.parametrize(
    "fields",
    [{}, {"attn_only": True}, {"normalization_type": "RMS", "output_logits_soft_cap": 3.0}],
    ids=["LN", "attn-only", "RMS, soft cap"],
)
def test_every_state_is_read_as_its_full_logits(scale: str, lens_bias: bool, fields: dict[str, object]) -> None:
    model, tokens = tiny_model(**fields), tiny_tokens()
    found = logit_lens(model, tokens, k=4, scale=scale, lens_bias=lens_bias, progress=False)  # type: ignore[arg-type]
    log_probs = full_logits(model, tokens, scale=scale, lens_bias=lens_bias).log_softmax(-1)
    top = log_probs.topk(4)
    torch.testing.assert_close(found.entropy, -(log_probs.exp() * log_probs).sum(-1))
    torch.testing.assert_close(found.top_log_probs, top.values)
    assert torch.equal(found.top_tokens, top.indices)
    following = tokens[None, :, 1:, None].expand(len(log_probs), -1, -1, -1)
    expected = log_probs[:, :, :-1].gather(-1, following)
    torch.testing.assert_close(found.next_log_prob[..., :-1], expected.squeeze(-1))
    assert torch.equal(found.next_rank[..., :-1], (log_probs[:, :, :-1] > expected).sum(-1))
    assert bool(found.next_log_prob[..., -1].isnan().all()) and bool((found.next_rank[..., -1] == -1).all())


def test_the_last_state_is_the_model() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    found = logit_lens(model, tokens, progress=False)
    assert found.state_labels == ("0_pre", "0_mid", "1_pre", "1_mid", "final")
    loss = model(tokens, return_type="loss", loss_per_token=True).detach()
    torch.testing.assert_close(-found.next_log_prob[-1, :, :-1], loss)


def test_padding_has_no_prediction_and_is_none() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    mask = torch.ones_like(tokens)
    mask[0, 4:] = 0
    found = logit_lens(model, tokens, attention_mask=mask, progress=False)
    alone = logit_lens(model, tokens[:1, :4], progress=False)
    torch.testing.assert_close(found.entropy[:, :1, :4], alone.entropy)
    torch.testing.assert_close(found.next_log_prob[:, :1, :4], alone.next_log_prob, equal_nan=True)
    assert bool(found.entropy[:, 0, 4:].isnan().all()) and bool((found.top_tokens[:, 0, 4:] == -1).all())
    assert found.info.n_positions == int(mask.sum())


def test_batches_one_after_another_are_one_batch() -> None:
    model, tokens = tiny_model(), tiny_tokens(batch=4)
    whole = logit_lens(model, tokens, progress=False)
    parts = logit_lens(model, [tokens[:3], {"tokens": tokens[3:]}], progress=False)
    torch.testing.assert_close(whole.next_log_prob, parts.next_log_prob, equal_nan=True)


def test_shorter_rows_end_in_nothing() -> None:
    model, tokens = tiny_model(), tiny_tokens(batch=4)
    found = logit_lens(model, [tokens, tokens[:, :3]], k=2, progress=False)
    alone = logit_lens(model, tokens[:, :3], k=2, progress=False)
    assert found.top_tokens.shape == (5, 8, tokens.shape[1], 2)
    assert torch.equal(found.top_tokens[:, 4:, :3], alone.top_tokens)
    assert torch.equal(found.next_rank[:, 4:, :3], alone.next_rank)
    assert bool((found.top_tokens[:, 4:, 3:] == -1).all()) and bool(found.entropy[:, 4:, 3:].isnan().all())
    with pytest.raises(InvalidInputError, match="no position counts"):
        logit_lens(model, [], progress=False)


def test_frame_print_and_file(tmp_path) -> None:
    found = logit_lens(tiny_model(), tiny_tokens(), progress=False, describe="random tokens")
    frame = found.to_frame()
    assert frame["state"].tolist() == list(found.state_labels)
    known = found.next_rank[..., :-1] == 0
    assert frame["accuracy"].tolist() == pytest.approx(known.double().mean((-2, -1)).tolist())
    assert frame["loss"].tolist() == pytest.approx((-found.next_log_prob[..., :-1]).mean((-2, -1)).tolist())
    assert "random tokens" in str(found) and "final" in str(found)
    loaded = LogitLensResult.load(found.save(tmp_path / "lens.safetensors"))
    assert loaded.info == found.info and torch.equal(loaded.top_tokens, found.top_tokens)


@pytest.mark.parametrize("k", [-1, 24])
def test_k_beyond_the_vocabulary_is_refused(k: int) -> None:
    with pytest.raises(InvalidInputError, match="d_vocab = 23"):
        logit_lens(tiny_model(), tiny_tokens(), k=k, progress=False)
