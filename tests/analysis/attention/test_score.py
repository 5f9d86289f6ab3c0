"""The parts of attention scores against full runs whose inputs of queries and keys are put there by hooks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from three_passes import random_task
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import AttentionAttribution, attribute_attention
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, NotFiniteError, UnknownNameError

SHAPES: dict[str, dict[str, Any]] = {
    "mlps": {},
    "folded": {"normalization_type": "LNPre"},
    "attn_only": {"attn_only": True, "normalization_type": None},
    "grouped, rotary": {
        "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "gated_mlp": True,
        "normalization_type": "RMS",
    },
    "parallel": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 2},
    "norms on both sides": {"use_normalization_before_and_after": True, "positional_embedding_type": "rotary"},
    "norms behind, of all heads": {
        "use_normalization_after_only": True, "normalization_type": "RMS", "use_qk_norm": True,
        "qk_norm_all_heads": True, "positional_embedding_type": "rotary",
    },
    "centered norms of heads": {
        "use_qk_norm": True, "qk_norm_type": "LN", "qk_norm_per_head": True, "n_heads": 4, "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
    },
    "norms after the turn": {
        "use_qk_norm": True, "qk_norm_after_rotation": True, "positional_embedding_type": "rotary",
        "attn_temperature_slope": 0.3, "attn_temperature_length": 2, "normalization_type": "RMS",
    },
    "ALiBi": {"positional_embedding_type": "alibi"},
    "capped": {"attn_scores_soft_cap": 2.0},
    "shortformer": {"positional_embedding_type": "shortformer", "normalization_type": "LNPre"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "gated": {"gated_attn": True, "normalization_type": "RMS", "positional_embedding_type": "rotary"},
    "experts": {"num_experts": 3, "experts_per_token": 2},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "post_embedding_ln": True},
}  # fmt: skip
LATENT = {
    "d_latent_kv": 6, "d_latent_q": 5, "positional_embedding_type": "rotary", "rotary_dim": 2,
    "normalization_type": "RMS",
}  # fmt: skip


def three_layers(shape: str = "mlps", **fields: Any) -> HookedTransformer:
    return tiny_model(n_layers=3, **(LATENT if shape == "latent" else SHAPES[shape] | fields))


class InputsByHooks:
    """Scores of a head whose query and key read streams of one's own, all scales being those of the clean run."""

    def __init__(self, model: HookedTransformer, task: Task, layer: int, head: int) -> None:
        self.model, self.task, self.layer, self.head = model, task, layer, head
        self.groups = 1 if model.cfg.n_key_value_heads is None else model.cfg.n_heads // model.cfg.n_key_value_heads
        model.set_use_split_qkv_input(True)
        self.options = {"attention_mask": task.attention_mask, "return_type": None}
        names = [name for name in model.hook_dict if self._is_scale(name)]
        self.calls: list[tuple[str, Tensor]] = []
        keep = [(name, lambda scale, hook: self.calls.append((hook.name, scale.clone()))) for name in names]
        model.run_with_hooks(task.clean_tokens, fwd_hooks=keep, **self.options)
        self.names = names

    def _is_scale(self, name: str) -> bool:
        prefixes = (f"blocks.{self.layer}.ln1.", f"blocks.{self.layer}.attn.")
        return name.startswith(prefixes) and name.endswith("hook_scale")

    def score(self, query: Tensor, key: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        """The score of each prompt, before a soft cap."""
        left, prompts = iter(self.calls), torch.arange(len(self.task))
        shown: list[Tensor] = []

        def frozen(scale: Tensor, hook: Any) -> Tensor:
            name, value = next(left)
            assert name == hook.name and value.shape == scale.shape
            return value

        def put(stream: Tensor, where: Tensor, head: int) -> Callable[..., Tensor]:
            def change(inputs: Tensor, hook: Any) -> Tensor:
                inputs = inputs.clone()
                inputs[prompts, where, head] = stream
                return inputs

            return change

        prefix = f"blocks.{self.layer}."
        hooks = [
            (prefix + "hook_q_input", put(query, at[0], self.head)),
            (prefix + "hook_k_input", put(key, at[1], self.head // self.groups)),
            *((name, frozen) for name in self.names),
            (prefix + "attn.hook_attn_scores", lambda scores, hook: shown.append(scores.clone())),
        ]
        self.model.run_with_hooks(self.task.clean_tokens, fwd_hooks=hooks, **self.options)
        score, cap = shown[0][prompts, self.head, at[0], at[1]], self.model.cfg.attn_scores_soft_cap
        return cap * torch.atanh(score / cap) if cap > 0 else score


@pytest.fixture
def ragged() -> Task:
    return random_task((6, 4, 5))


def parts_at(model: HookedTransformer, task: Task, label: str, layer: int, at: Tensor) -> Tensor:
    """What a component wrote to the stream at one position of each prompt, by a run of its own."""
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(task.clean_tokens, attention_mask=task.attention_mask)
    prompts = torch.arange(len(task))
    if label == "embed":
        return cache["hook_embed"][prompts, at]
    if label.startswith("mlp"):
        return cache["mlp_out", int(label[3:])][prompts, at]
    where, head = map(int, label.split("."))
    written = cache["result", where][prompts, at, head]
    if not model.cfg.has_post_norms:
        return written
    norm = model.blocks[where].ln1_post
    centered = written - written.mean(-1, keepdim=True) if norm.centered else written
    return centered * norm.w / cache[f"blocks.{where}.ln1_post.hook_scale"][prompts, at]


@pytest.mark.parametrize("shape", [*SHAPES, "latent"])
def test_pairs_are_those_of_runs_with_inputs_of_ones_own(shape: str, ragged: Task) -> None:
    model = three_layers(shape)
    found = attribute_attention(model, ragged, (2, 1), "end", 1, progress=False)
    at = (ragged.positions, torch.ones_like(ragged.positions))
    reference, empty = InputsByHooks(model, ragged, 2, 1), torch.zeros(len(ragged), model.cfg.d_model).double()
    pairs = [("embed", "0.2"), ("1.1", "embed"), ("1.0", "0.1")]
    pairs += [] if model.cfg.attn_only else [("mlp1", "mlp0"), ("0.0", "mlp1")]
    for query, key in pairs:
        of_query, of_key = (parts_at(model, ragged, *each) for each in ((query, 2, at[0]), (key, 2, at[1])))
        streams = [(of_query, of_key), (empty, of_key), (of_query, empty), (empty, empty)]
        both, of_keys, of_queries, own = (reference.score(*each, at) for each in streams)
        expected = (both - of_keys - of_queries + own).mean()
        torch.testing.assert_close(found.sel(query_part=query, key_part=key), expected, atol=1e-11, rtol=1e-8)
        assert expected.abs() > 1e-6
        own_part = found.sel(query_part="own bias", key_part=key)
        if shape != "shortformer":  # whose empty stream has positions added to it
            torch.testing.assert_close(own_part, (of_keys - own).mean(), atol=1e-11, rtol=1e-8)


@pytest.mark.parametrize("shape", [*SHAPES, "latent", "ALiBi, capped", "clipped", "pad left"])
def test_everything_sums_to_the_score(shape: str) -> None:
    more: dict[str, tuple[str, dict[str, Any]]] = {
        "clipped": ("mlps", {"clip_qkv": 0.4}),
        "ALiBi, capped": ("ALiBi", {"attn_scores_soft_cap": 2.0}),
        "pad left": ("mlps", {}),
    }
    same, fields = more.get(shape, (shape, {}))
    model = three_layers(same, **fields)
    task = random_task((6, 4, 5), pad_left=shape == "pad left")
    found = attribute_attention(model, task, "2.1", "end", "S2", progress=False)
    _, cache = model.run_with_cache(task.clean_tokens, attention_mask=task.attention_mask)
    prompts, cap = torch.arange(3), model.cfg.attn_scores_soft_cap
    shown = cache["attn_scores", 2][prompts, 1, task.positions, task.word_idx["S2"]]
    products = found.scores - found.penalties
    capped = cap * torch.tanh(products / cap) if cap > 0 else products
    torch.testing.assert_close(capped + found.penalties, shown, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.query_parts.sum(1), products)
    torch.testing.assert_close(found.key_parts.sum(1), products)
    torch.testing.assert_close(found.pairs.sum(), products.mean())
    torch.testing.assert_close(found.pairs.sum(1), found.query_parts.mean(0))
    torch.testing.assert_close(found.pairs.sum(0), found.key_parts.mean(0))
    pattern = cache["pattern", 2][prompts, 1, task.positions, task.word_idx["S2"]]
    torch.testing.assert_close(found.attention[:, 0], pattern)
    heads = [f"{layer}.{head}" for layer in range(2) for head in range(model.cfg.n_heads)]
    for side in ("query", "key"):
        by_source = getattr(found, f"{side}_sources").sum(-1).flatten(1)
        torch.testing.assert_close(by_source, found.array(f"{side}_parts").sel(**{f"{side}_part": heads}).values)


def test_two_keys_are_the_difference_of_one_and_the_other(ragged: Task) -> None:
    model = three_layers("grouped, rotary")
    here, there = (attribute_attention(model, ragged, (2, 0), "end", key, progress=False) for key in ("S2", 0))
    both = attribute_attention(model, ragged, (2, 0), "end", "S2", against=0, progress=False)
    for name in ("pairs", "scores", "query_parts", "key_parts", "query_sources", "key_sources"):
        expected = getattr(here, name) - getattr(there, name)
        torch.testing.assert_close(getattr(both, name), expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(both.attention, torch.cat([here.attention, there.attention], 1))
    assert "less that at 0" in str(both)


def test_errors_are_of_means_over_prompts(ragged: Task, set_budget: Any) -> None:
    model = three_layers()
    alone = [attribute_attention(model, ragged[[row]], (1, 2), "end", 0, progress=False) for row in range(3)]
    set_budget(batch_tokens=1)  # a prompt at a time
    found = attribute_attention(model, ragged, (1, 2), "end", 0, progress=False)
    each = torch.stack([one.pairs for one in alone])
    torch.testing.assert_close(found.pairs, each.mean(0))
    torch.testing.assert_close(found.errors, each.std(0) / 3**0.5)
    assert alone[0].errors is None and "±" not in str(alone[0])
    shown = str(found)
    for by in ("pairs", "query_parts", "key_parts"):
        first = found.top(1, by=by)[0]
        assert f": {first.label} {first.value:+.4f} ± {first.error:.4f}, " in shown
    assert torch.equal(found.scores, torch.cat([one.scores for one in alone]))


def test_a_hook_between_the_stream_and_the_score_is_noticed(ragged: Task) -> None:
    model = three_layers()
    expected = attribute_attention(model, ragged, (2, 1), "end", 0, progress=False)
    model.add_hook("blocks.2.attn.hook_q", lambda q, hook: 1.01 * q, is_permanent=True)
    with pytest.raises(InvalidInputError, match="a hook, or a module"):
        attribute_attention(model, ragged, (2, 1), "end", 0, progress=False)
    model.reset_hooks(including_permanent=True)
    # One that changes what is written is part of what is split.
    model.add_hook("blocks.0.hook_mlp_out", lambda out, hook: 2 * out)
    changed = attribute_attention(model, ragged, (2, 1), "end", 0, progress=False)
    assert not torch.allclose(changed.scores, expected.scores)


def test_the_table_by_token_names_the_tokens(ragged: Task) -> None:
    found = attribute_attention(three_layers(), ragged, (2, 1), "end", 1, progress=False)
    table = found.by_token("query", prompt=1)
    assert set(table["position"]) == {0, 1, 2, 3} and set(table["layer"]) == {0, 1}
    assert table["score"].abs().is_monotonic_decreasing
    first = table.iloc[0]
    assert first.token == ragged.str_tokens[1][first.position]
    assert first.score == float(found.query_sources[1, first.layer, first["head"], first.position])  # type: ignore[index]
    with pytest.raises(InvalidInputError, match="numbered from 0 to 2"):
        found.by_token("query", prompt=3)
    without = attribute_attention(three_layers(), ragged, (2, 1), "end", 1, sources=False, progress=False)
    with pytest.raises(InvalidInputError, match="sources=False"):
        without.by_token()


def test_tokens_and_the_first_layer_and_files(tmp_path: Any) -> None:
    model, tokens = three_layers(), tiny_tokens(1, 5)[0]
    found = attribute_attention(model, tokens, "0.2", -1, 3, progress=False)
    assert found.part_labels == ("embed", "pos_embed", "bias", "own bias")
    loaded = AttentionAttribution.load(found.save(tmp_path / "why.safetensors"))
    assert str(loaded) == str(found) and loaded.to_frame().equals(found.to_frame())
    assert "embed x embed" in {score.label for score in found.top(16)}


def bad_calls() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    yield {"head": (0, 3)}, InvalidInputError, "0.3"
    yield {"head": "mlp1"}, InvalidInputError, "only a head attends"
    yield {"key_pos": "IO"}, UnknownNameError, "IO"
    yield {"key_pos": 5}, InvalidInputError, "not a real token of every prompt"
    yield {"query_pos": 0, "key_pos": 2}, InvalidInputError, "cannot look from position 0 of a prompt to 2"
    yield {"data": torch.zeros(0, 3).long()}, InvalidInputError, "tokens \\[prompt, pos\\]"


@pytest.mark.parametrize(("changed", "error", "message"), [*bad_calls()])
def test_what_cannot_be_asked(changed: dict[str, Any], error: type[Exception], message: str, ragged: Task) -> None:
    asked = {"data": ragged, "head": (1, 0), "query_pos": "end", "key_pos": 0} | changed
    with pytest.raises(error, match=message):
        attribute_attention(three_layers(), progress=False, **asked)


def test_scores_that_are_not_finite(ragged: Task) -> None:
    model = three_layers()
    with torch.no_grad():
        model.blocks[1].attn.W_Q[0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"head 1\.0 is not finite"):
        attribute_attention(model, ragged, (1, 0), "end", 0, progress=False)


def test_others_are_the_mean_of_all_keys_in_sight(ragged: Task) -> None:
    model = three_layers("grouped, rotary")
    found = attribute_attention(model, ragged, (2, 3), "end", 1, against="others", progress=False)
    for row in range(3):
        alone, end = ragged[[row]], int(ragged.positions[row])
        each = [attribute_attention(model, alone, (2, 3), "end", key, progress=False) for key in range(end + 1)]
        for name in ("query_parts", "key_parts", "query_sources", "key_sources", "scores"):
            values = [getattr(one, name)[0] for one in each]
            expected = values[1] - torch.stack(values[:1] + values[2:]).mean(0)
            torch.testing.assert_close(getattr(found, name)[row], expected, atol=1e-12, rtol=1e-9)
    with pytest.raises(InvalidInputError, match="there is no other key"):
        attribute_attention(model, ragged, (2, 3), 0, 0, against="others", progress=False)


def test_the_key_is_by_default_where_each_prompt_looks_most(ragged: Task) -> None:
    model = three_layers()
    found = attribute_attention(model, ragged, (2, 1), "S2", progress=False)
    _, cache = model.run_with_cache(ragged.clean_tokens, attention_mask=ragged.attention_mask)
    rows = cache["pattern", 2][torch.arange(3), 1, ragged.word_idx["S2"]]
    assert torch.equal(found.looked_at[:, 1], rows.argmax(-1))
    torch.testing.assert_close(found.attention[:, 0], rows.amax(-1))


def test_half_precision_is_refused(ragged: Task) -> None:
    model = tiny_model(n_layers=3, dtype=torch.bfloat16)
    with pytest.raises(InvalidInputError, match="model.to\\(torch.float32\\)"):
        attribute_attention(model, ragged, (2, 1), "end", 0, progress=False)
