"""Patched runs made side by side equal whole forward passes with hooks, and compute what a patch can change."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from side_by_side import changed_runs
from sizes import SetBudget
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, patching
from headscope.analysis.patching.base_run import BaseRun, SuffixRuns, obstacle
from headscope.analysis.patching.engine import Patch, measure_patches
from headscope.analysis.prompts.metrics import AnswerMetric, last_position, reads
from headscope.errors import InvalidInputError
from headscope.model.block import TransformerBlock
from headscope.model.parts.attention import Attention
from headscope.model.parts.layers import MLP, Unembed

BATCH, LENGTH = 2, 4
KINDS: dict[str, dict[str, Any]] = {
    "three layers": {"n_layers": 3},
    "attention only": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True},
    "shared keys": {"n_heads": 4, "n_key_value_heads": 2},
    "shared keys, ungrouped": {"n_heads": 4, "n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "soft cap": {"output_logits_soft_cap": 1.5},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "RMS, scaled by layer": {"normalization_type": "RMS", "scale_attn_by_inverse_layer_idx": True},
    "no norm": {"normalization_type": None},
    "split inputs": {"use_split_qkv_input": True},
    "norms behind": {"use_normalization_before_and_after": True},
    "ALiBi": {"positional_embedding_type": "alibi", "post_embedding_ln": True},
    "ALiBi in bfloat16": {"positional_embedding_type": "alibi", "alibi_bfloat16": True},
    "capped scores": {"attn_scores_soft_cap": 1.0},
    "a window": {"n_layers": 3, "use_local_attn": True, "window_size": 2, "attn_types": ["global", "local", "local"]},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "rotary, shared keys in a window": {
        "n_layers": 3, "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary",
        "use_local_attn": True, "window_size": 2, "attn_types": ["local", "global", "local"], "rotary_base_local": 50.0,
    },
    "LongRoPE": {
        "positional_embedding_type": "rotary", "longrope_short_factors": [1.0, 1.5],
        "longrope_long_factors": [2.0, 3.5], "longrope_original_ctx_len": 3,
    },
    "gated": {"gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS"},
    "experts": {"num_experts": 3, "experts_per_token": 2, "n_layers": 3},
    "clipped": {"clip_qkv": 0.3, "positional_embedding_type": "rotary"},
    "normalized queries": {"use_qk_norm": True, "n_heads": 4, "n_key_value_heads": 2},
    "all queries normalized together": {
        "use_qk_norm": True, "qk_norm_all_heads": True, "positional_embedding_type": "rotary",
        "use_normalization_after_only": True, "normalization_type": "RMS",
    },
    "parallel, norms behind, capped": {
        "parallel_attn_mlp": True, "use_normalization_before_and_after": True, "attn_scores_soft_cap": 2.0,
        "positional_embedding_type": "rotary",
    },
    "summed by head": {"use_attn_result": True, "use_attn_in": True, "use_hook_mlp_in": True},
}  # fmt: skip
# What a model may have, alone and together with others.
FEATURES: dict[str, dict[str, Any]] = {
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 2},
    "ALiBi": {"positional_embedding_type": "alibi"},
    "groups": {"n_heads": 4, "n_key_value_heads": 2},
    "a window": {"use_local_attn": True, "window_size": 2, "attn_types": ["local", "global", "local"]},
    "norms behind": {"use_normalization_before_and_after": True},
    "queries normalized": {"use_qk_norm": True},
    "queries normalized together": {"use_qk_norm": True, "qk_norm_all_heads": True},
    "capped": {"attn_scores_soft_cap": 1.5, "clip_qkv": 0.5},
    "sinks": {"use_attn_sinks": True},
    "parallel": {"parallel_attn_mlp": True},
    "gated": {"gated_mlp": True},
    "experts": {"num_experts": 3, "experts_per_token": 2},
}
SITES = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "attn.hook_q",
         "attn.hook_k", "attn.hook_v", "attn.hook_pattern")  # fmt: skip
SWEEPS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_head_out_by_pos", "attn_head_q_by_pos",
          "attn_head_k_by_pos", "attn_head_v_all_pos", "attn_head_pattern_by_pos")  # fmt: skip
HOOKS = {
    "out": "attn.hook_z", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "pattern": "attn.hook_pattern",
}  # fmt: skip


def metric(logits: Tensor) -> Tensor:
    """Reads every position, and is not linear."""
    return (logits[:, -1, 3] - logits[:, -1, 5]).mean() - logits.log_softmax(-1)[:, :, 7].mean()


def at_last(logits: Tensor) -> Tensor:
    return logits[:, -1].log_softmax(-1)[:, 3].mean()


def hook_of(sweep: str) -> str:
    return HOOKS[sweep.split("_")[2]] if sweep.startswith("attn_head") else f"hook_{sweep}"


def where(sweep: str, index: list[int]) -> tuple[Any, ...]:
    """What of the activation a cell patches."""
    if sweep.endswith("all_pos"):
        return (slice(None), slice(None), index[0])
    return (slice(None), *index)


def whole_runs(
    model: HookedTransformer, tokens: Tensor, cache: Any, sweep: str, shape: Any, measured: Any, **options: Any
) -> Tensor:
    """The sweep by its definition: for each cell a forward pass from the tokens on, with a hook."""
    found = torch.zeros(*shape)
    for layer in range(shape[0]):
        name = f"blocks.{layer}.{hook_of(sweep)}"
        indices = list(product(*map(range, shape[1:])))
        places = [where(sweep, list(index)) for index in indices]
        writes = [lambda value, at=at, name=name: value[at].copy_(cache[name][at]) for at in places]
        for index, logits in zip(indices, changed_runs(model, tokens, name, writes, **options), strict=True):
            found[layer, *index] = float(measured(logits))
    return found


def sweep_of(name: str) -> Callable[..., Any]:
    return partial(getattr(patching, f"get_act_patch_{name}"), progress=False)


def tokens_of_two() -> tuple[Tensor, Tensor]:
    return tiny_tokens(BATCH, LENGTH, seed=2), tiny_tokens(BATCH, LENGTH, seed=1)


def answers(positions: list[int]) -> AnswerMetric:
    right, wrong = torch.tensor([[3, 4], [8, 2]]), torch.tensor([[5], [1]])
    return AnswerMetric(right, wrong, torch.tensor(positions), zero=0.3, unit=-2.0)


@pytest.mark.parametrize(("kind", "side"), [(kind, ("left", "right")[at % 2]) for at, kind in enumerate(KINDS)])
def test_padded_rows_equal_whole_runs(kind: str, side: str) -> None:
    model = tiny_model(**KINDS[kind])
    clean, corrupted = tokens_of_two()
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 0 if side == "left" else -1] = 0
    _, cache = model.run_with_cache(clean, attention_mask=mask)
    ends = [LENGTH - 1, LENGTH - 1 if side == "left" else LENGTH - 2]
    for sweep, measured in (
        ("resid_pre", answers(ends)),
        ("attn_head_q_by_pos", reads(at_last, torch.tensor(ends))),
        ("attn_head_k_by_pos", answers(ends)),
        ("attn_head_v_all_pos", metric),
        ("attn_head_pattern_by_pos", answers([0, 2])),
        ("attn_out", metric),
    ):
        found = sweep_of(sweep)(model, corrupted, cache, measured, attention_mask=mask)
        expected = whole_runs(model, corrupted, cache, sweep, found.shape, measured, attention_mask=mask)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=lambda text, at=sweep: f"{at}: {text}")


@given(
    parts=st.lists(st.sampled_from(sorted(FEATURES)), unique=True, max_size=3),
    real=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    left=st.booleans(),
    reads_at=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    cells=st.lists(st.tuples(st.sampled_from(SITES), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_any_features_together_equal_whole_runs(
    parts: list[str],
    real: list[int],
    left: bool,
    reads_at: list[int],
    cells: list[tuple[str, int, int]],
    seed: int,
) -> None:
    model = tiny_model(n_layers=3, **{name: value for part in parts for name, value in FEATURES[part].items()})
    assert obstacle(model) is None
    clean, corrupted = tiny_tokens(2, 6, seed=seed), tiny_tokens(2, 6, seed=seed + 100)
    mask = torch.arange(6) < torch.tensor(real)[:, None]
    mask = mask.flip(1) if left else mask
    _, cache = model.run_with_cache(clean, attention_mask=mask)

    def put(value: Tensor, name: str, at: int) -> None:
        axis = 2 if name.endswith("pattern") else 1
        value.select(axis, at).copy_(cache[name].select(axis, at))

    patches = [Patch(f"blocks.{layer}.{site}", partial(put, name=f"blocks.{layer}.{site}", at=at))
               for site, layer, at in cells]  # fmt: skip
    measured = reads(lambda logits: logits.log_softmax(-1)[..., 3].sum(), reads_at)
    found = measure_patches(model, corrupted, measured, patches, attention_mask=mask, progress=False)
    for patch, value in zip(patches, found.tolist(), strict=True):
        with torch.no_grad():
            logits = model.run_with_hooks(corrupted, fwd_hooks=[(patch.name, patch.replaced)], attention_mask=mask)
            assert value == pytest.approx(float(measured(logits)), rel=1e-9, abs=1e-9), (parts, patch.name)


def test_a_mask_of_ones_own_is_kept_to() -> None:
    clean, corrupted = tokens_of_two()
    for seen in (torch.ones(12, 12).bool(), torch.ones(12, 12).tril().bool() & ~torch.eye(12).bool().roll(1, 0)):
        model = tiny_model()
        model.blocks[1].attn.mask = seen
        _, cache = model.run_with_cache(clean)
        for sweep in ("resid_pre", "attn_head_k_by_pos", "attn_head_q_by_pos"):
            found = sweep_of(sweep)(model, corrupted, cache, answers([3, 1]))
            expected = whole_runs(model, corrupted, cache, sweep, found.shape, answers([3, 1]))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_any_positions_are_read() -> None:
    model = tiny_model(n_layers=3)
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)

    def several(logits: Tensor) -> Tensor:
        assert logits.shape == (BATCH, 2, 23)
        return logits.log_softmax(-1)[:, 0, 3].mean() - 2 * logits[:, 1, 4].mean()

    def one(logits: Tensor) -> Tensor:
        assert logits.shape == (BATCH, 1, 23)
        return at_last(logits)

    for measured in (reads(several, [-1, 1]), reads(one, 1), reads(one, torch.tensor([0, -2])), last_position(one)):
        found = sweep_of("resid_pre")(model, corrupted, cache, measured)
        expected = whole_runs(model, corrupted, cache, "resid_pre", found.shape, measured)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for positions, message in (([0, 1, 2], "3 rows, and 2 rows"), ([0, 4], "from 0 to 4; there are 4")):
        with pytest.raises(InvalidInputError, match=message):
            sweep_of("resid_pre")(model, corrupted, cache, reads(one, torch.tensor(positions)))
    with pytest.raises(InvalidInputError, match="at least one position"):
        reads(one, [])


@pytest.mark.parametrize(("work_bytes", "tokens"), [(1, 1), (3000, 40), (5000, 40)])
def test_bounds_of_memory_change_nothing(work_bytes: int, tokens: int, set_budget: SetBudget) -> None:
    model = tiny_model(n_layers=3)
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)
    wanted = {sweep: sweep_of(sweep)(model, corrupted, cache, metric) for sweep in ("mlp_out", "attn_head_k_by_pos")}
    set_budget(work_bytes=work_bytes, batch_tokens=tokens)
    for sweep, expected in wanted.items():
        torch.testing.assert_close(sweep_of(sweep)(model, corrupted, cache, metric), expected, rtol=1e-6, atol=1e-6)


# What is computed


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many positions go through blocks, attention, MLPs and the unembedding; nothing is hooked for it."""
    counted: Counter[str] = Counter()
    for kind in (TransformerBlock, Attention, MLP, Unembed):

        def forward(self: Any, x: Tensor, *args: Any, kind: Any = kind, run: Any = kind.forward, **kwargs: Any) -> Any:
            counted[kind.__name__] += x.shape[:2].numel()
            return run(self, x, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    return counted


def test_only_layers_and_positions_behind_a_patch_are_run(work: Counter[str]) -> None:
    layers = 3
    model = tiny_model(n_layers=layers)
    clean = tiny_tokens(BATCH, LENGTH, seed=2)
    corrupted = (clean + 1) % 23
    _, cache = model.run_with_cache(clean)
    whole, suffixes = BATCH * LENGTH, BATCH * sum(range(1, LENGTH + 1))
    cells = layers * LENGTH

    def run(sweep: str, measured: Any) -> Counter[str]:
        work.clear()
        sweep_of(sweep)(model, corrupted, cache, measured)
        work["MLP"] -= layers * whole  # of the unpatched run
        return work

    found = run("resid_pre", metric)
    assert found["MLP"] == (1 + 2 + 3) * suffixes
    assert found["Unembed"] == whole + layers * suffixes
    found = run("resid_pre", last_position(at_last))
    assert found["MLP"] == (1 + 2) * suffixes + cells * BATCH
    assert found["Unembed"] == cells * BATCH
    found = run("resid_pre", answers([LENGTH - 1, 1]))
    assert found["Unembed"] == 0
    found = run("mlp_out", last_position(at_last))
    assert found["MLP"] == 1 * suffixes + 2 * LENGTH * BATCH
    found = run("attn_head_out_all_pos", metric)
    assert found["MLP"] == 3 * (1 + 2 + 3) * whole
    assert found["Attention"] == layers * whole + 3 * (1 + 2) * whole
    found = run("attn_head_pattern_by_pos", metric)  # the first position looks at itself in both runs
    assert found["MLP"] == 3 * (1 + 2 + 3) * (suffixes - whole)
    # Behind the last position that is read, nothing is.
    found = run("resid_pre", reads(at_last, 1))
    assert found["MLP"] == (1 + 2) * BATCH * (2 + 1) + layers * 2 * BATCH


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bidirectional"])
def test_no_kind_of_model_runs_more_than_layers_and_positions_behind_a_patch(kind: str, work: Counter[str]) -> None:
    model = tiny_model(**KINDS[kind])
    clean = tiny_tokens(BATCH, LENGTH, seed=2)
    _, cache = model.run_with_cache(clean)
    work.clear()
    sweep_of("resid_pre")(model, (clean + 1) % 23, cache, last_position(at_last))
    layers = model.cfg.n_layers
    # The unpatched run; the layers between; of the last one, the position that is read.
    above = BATCH * sum(range(1, LENGTH + 1)) * sum(range(layers))
    assert work["Attention"] == layers * BATCH * LENGTH + above + layers * LENGTH * BATCH
    assert work["Unembed"] == layers * LENGTH * BATCH
    assert work["TransformerBlock"] == layers * BATCH * LENGTH  # only the unpatched run is a run of whole blocks


@torch.no_grad()
def test_what_is_equal_in_both_runs_is_not_run(work: Counter[str]) -> None:
    model = tiny_model(n_layers=3)
    clean = tiny_tokens(BATCH, LENGTH, seed=2)
    corrupted = clean.clone()
    corrupted[:, 2] += 1
    for names in (None, lambda name: name.endswith(("resid_pre", "hook_z"))):  # some caches watch patterns and scales
        _, cache = model.run_with_cache(clean, names_filter=names)
        work.clear()
        found = sweep_of("resid_pre")(model, corrupted, cache, metric)
        # From position 2 in three layers, and from 3 in two: there the first layer's input is the same.
        assert work["MLP"] == BATCH * (3 * LENGTH + (3 + 2 + 1) * 2 + (2 + 1))
        unchanged = float(metric(model(corrupted)).float())
        assert found[:, :2].eq(unchanged).all()
        assert float(found[0, 3]) == unchanged and not found[1:, 3].eq(unchanged).any()
        wanted = whole_runs(model, corrupted, cache, "resid_pre", found.shape, metric)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# What somebody looks at


def test_hooks_see_what_they_always_see() -> None:
    model = tiny_model()
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)
    wanted = sweep_of("attn_head_k_by_pos")(model, corrupted, cache, metric)
    shapes = set()

    def look(value: Tensor, hook: Any) -> None:
        shapes.add(tuple(value.shape))

    with model.hooks([("blocks.1.hook_resid_post", look), ("ln_final.hook_normalized", look)]):
        assert obstacle(model)
        found = sweep_of("attn_head_k_by_pos")(model, corrupted, cache, metric)
    assert shapes == {(BATCH, LENGTH, 10)}
    torch.testing.assert_close(found, wanted)


def test_parts_of_ones_own_are_run_as_they_are() -> None:
    class Shifted(MLP):
        """Each position gets what belongs to the one before it."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(1, 1)

    model = tiny_model()
    model.blocks[1].mlp.__class__ = Shifted
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)
    found = sweep_of("resid_pre")(model, corrupted, cache, last_position(at_last))
    wanted = whole_runs(model, corrupted, cache, "resid_pre", found.shape, last_position(at_last))
    torch.testing.assert_close(found, wanted)


def test_a_setter_may_give_another_shape() -> None:
    model = tiny_model()
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)

    def first_row(value: Tensor, index: Any, clean: Tensor) -> Tensor:
        return value[:1]

    found = patching.generic_activation_patch(
        model, corrupted, cache, metric, first_row, "pattern", ["layer"], progress=False
    )
    for layer in range(2):
        name = f"blocks.{layer}.attn.hook_pattern"
        logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, lambda value, hook: value[:1])])
        torch.testing.assert_close(found[layer], metric(logits).detach().float())
    assert found.std() > 1e-3


@pytest.mark.parametrize("gives", [None, "much", [1.0, 2.0]])
def test_a_metric_gives_a_number(gives: Any) -> None:
    model = tiny_model()
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)
    with pytest.raises(InvalidInputError, match="must give one number"):
        sweep_of("resid_pre")(model, corrupted, cache, lambda logits: gives)


def test_answers_are_tokens() -> None:
    model = tiny_model()
    clean, corrupted = tokens_of_two()
    _, cache = model.run_with_cache(clean)
    beyond = AnswerMetric(torch.tensor([[3], [23]]), torch.tensor([[1], [1]]), torch.tensor([3, 3]))
    with pytest.raises(InvalidInputError, match="from 0 to 22; they go from 1 to 23"):
        sweep_of("resid_pre")(model, corrupted, cache, beyond)


def test_a_padded_text_whose_angles_depend_on_its_length_is_not_cut() -> None:
    """Cut behind what is read, it could be on the other side of the length at which they change."""
    factors = {"longrope_short_factors": [1.0, 1.5], "longrope_long_factors": [2.0, 3.5]}
    model = tiny_model(positional_embedding_type="rotary", longrope_original_ctx_len=5, **factors)
    tokens, places = tiny_tokens(2, 8), torch.tensor([[6], [6]])
    for n_padded, stop in ((0, 7), (2, 8)):
        mask = (torch.arange(8) >= n_padded).expand(2, 8)
        base = BaseRun(model, tokens, set(), 0, attention_mask=mask)
        assert SuffixRuns(base, places).stop == stop
