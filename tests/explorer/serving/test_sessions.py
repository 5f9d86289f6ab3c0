"""The numbers of the live page, against full runs with hooks in float64, for every shape of block."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from live import OTHER, PROMPT, SHAPES, live_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.attention.score import attribute_attention
from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import components
from headscope.analysis.lens.logit_lens import logit_lens
from headscope.analysis.recording.component_means import OutputSums
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.explorer.serving.schemas import (
    Change,
    OnePatternRequest,
    PatternsRequest,
    Run,
    State,
    WhyRequest,
)
from headscope.explorer.serving.sessions import Sessions, TooLongError

Hooks = list[tuple[str, Any]]


@pytest.fixture(scope="module", params=SHAPES)
def sessions(request: pytest.FixtureRequest) -> Sessions:
    model = live_model(**SHAPES[request.param])
    tokens = model.to_tokens("The old dog ran after the ball, and the cat saw the old dog run.")
    sums = OutputSums.of_all(model)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    return Sessions(model, sums.means(sums.measure(Batch(tokens, None, everywhere), 0)).over_data)


def by_hand(sessions: Sessions, changes: list[Change]) -> Hooks:
    """Hooks of a whole run that put changes in force, the plain way."""
    model = sessions.model
    _, cache = model.run_with_cache(OTHER)
    hooks: Hooks = []
    for change in changes:
        (part,) = components(model.cfg, [change.component])
        name = f"blocks.{part.layer}." + ("hook_mlp_out" if part.head is None else "attn.hook_z")

        def put(value: Tensor, hook: Any, change: Change = change, part: Any = part, name: str = name) -> Tensor:
            at: Any = slice(None) if change.positions is None else change.positions
            which: Any = (0, at) if part.head is None else (0, at, part.head)
            if change.action == "zero":
                value[which] = 0.0
            elif change.action == "scale":
                value[which] *= change.factor
            elif change.action == "mean":
                value[which] = sessions.means[part]
            else:
                value[which] = cache[name][which]
            return value

        hooks.append((name, put))
    return hooks


def changes_of(model: HookedTransformer) -> dict[str, list[Change]]:
    """Changes of every kind, of heads and MLPs, in the first and the last layers, alone and together."""
    last = model.cfg.layers_with("attn")[-1]
    mlps = model.cfg.layers_with("mlp")
    head = {"component": f"{last}.1"}
    found = {
        "none": [],
        "zero": [Change(component="0.2", action="zero")],
        "mean of the last": [Change(**head, action="mean")],
        "scale at some": [Change(component="0.0", action="scale", factor=-1.5, positions=[3, -2])],
        "patch": [Change(**head, action="patch", positions=[1, 3])],
        "several": [
            Change(component="0.0", action="zero", positions=[5]),
            Change(component="0.0", action="scale", factor=3.0, positions=[6, 7]),
            Change(component="0.1", action="mean"),
            Change(**head, action="patch"),
        ],
    }
    if mlps:
        found |= {
            "an MLP": [Change(component=f"mlp{mlps[0]}", action="patch", positions=[4, 5])],
            "the last MLP and a head": [
                Change(component=f"mlp{mlps[-1]}", action="mean"),
                Change(component="0.2", action="scale", factor=0.5),
            ],
        }
    return found


@torch.no_grad()
def check_run(found: Run, model: HookedTransformer, tokens: Tensor, hooks: Hooks, position: int, target: int) -> None:
    """Compare a run's numbers with those of a whole run with hooks."""
    with model.hooks(hooks):
        logits, cache = model.run_with_cache(tokens)
        lens = logit_lens(model, tokens, include_bos=True, progress=False)
    log_probs = logits[0].log_softmax(-1)
    expected, at = log_probs[position].exp(), log_probs[position].argsort(descending=True)
    assert [each.id for each in found.predictions] == at[: len(found.predictions)].tolist()
    close([each.probability for each in found.predictions], expected[at[: len(found.predictions)]])
    close(found.target_probability, expected[target])
    assert found.target_rank == int((expected > expected[target]).sum())
    assert found.losses[0] is None
    close(found.losses[1:], -log_probs[:-1].gather(1, tokens[0, 1:, None])[:, 0])
    assert found.entropy.labels == list(lens.state_labels)
    close(found.entropy.values, lens.entropy[:, 0, position])
    # Direct effects: each part over the final norm's scale, along the target's unembedding less the mean.
    u = model.W_U[:, target] - model.W_U.mean(1)
    norm = model.ln_final
    u = u * norm.w if hasattr(norm, "w") else u
    scale = cache["ln_final.hook_scale"][0, position, 0]
    center = (lambda x: x - x.mean(-1, keepdim=True)) if model.cfg.final_norm in ("LN", "LNPre") else (lambda x: x)
    for layer in range(model.cfg.n_layers):
        parts = model.cfg.parts_of(layer)
        for head in range(model.cfg.n_heads):
            if "attn" not in parts:
                assert found.head_effects[layer][head] is None
                continue
            written = cache["z", layer][0, position, head] @ model.blocks[layer].attn.W_O[head]
            if model.cfg.has_post_norms:
                written = (
                    written * model.blocks[layer].ln1_post.w / cache[f"blocks.{layer}.ln1_post.hook_scale"][0, position]
                )
            close(found.head_effects[layer][head], center(written) @ u / scale)
        if "mlp" in parts:
            close(found.mlp_effects[layer], center(cache["mlp_out", layer][0, position]) @ u / scale)
    if not model.cfg.layers_with("mlp"):
        assert found.mlp_effects is None


def close(found: Any, expected: Any) -> None:
    found, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_runs_are_those_of_hooks(sessions: Sessions) -> None:
    model, tokens = sessions.model, sessions.model.to_tokens(PROMPT)
    for number, (name, changes) in enumerate(changes_of(model).items()):
        position, target = ((-1, None), (4, 17), (-3, 250))[number % 3]
        state = State(prompt=PROMPT, other=OTHER, changes=changes, position=position, target=target, top=7)
        answer = sessions.run(state)
        plain = sessions.run(state.model_copy(update={"changes": []}))
        assert answer.before == plain.before and plain.after is None, name
        assert answer.ids == tokens[0].tolist() and "".join(answer.tokens[1:]) == PROMPT
        wanted = answer.target.id if target is None else target
        check_run(answer.before, model, tokens, [], position, wanted)
        if not changes:
            assert answer.after is None
            continue
        assert answer.after is not None
        check_run(answer.after, model, tokens, by_hand(sessions, changes), position, wanted)
        assert answer.after != answer.before, name


def test_patterns_are_those_of_hooks(sessions: Sessions) -> None:
    model, tokens = sessions.model, sessions.model.to_tokens(PROMPT)
    changes = changes_of(model)["several"]
    state = State(prompt=PROMPT, other=OTHER, changes=changes)
    found = sessions.patterns(PatternsRequest(state=state))
    n = tokens.shape[1]
    assert found.n == n and len(found.before) == model.cfg.n_layers
    for given, hooks in ((found.before, []), (found.after, by_hand(sessions, changes))):
        with model.hooks(hooks):
            _, cache = model.run_with_cache(tokens)
        assert given is not None
        for layer, heads in enumerate(given):
            if "attn" not in model.cfg.parts_of(layer):
                assert heads == []
                continue
            levels = [np.frombuffer(base64.b64decode(head), np.uint8).reshape(n, n) for head in heads]
            expected = (cache["pattern", layer][0] * 255).round().numpy()
            assert np.abs(np.stack(levels) - expected).max() <= 1  # a half may be rounded either way
    layer = model.cfg.layers_with("attn")[-1]
    with model.hooks(by_hand(sessions, changes)):
        _, cache = model.run_with_cache(tokens)
    one = sessions.pattern(OnePatternRequest(state=state, layer=layer, head=1))
    close(one.after, cache["pattern", layer][0, 1])
    (only,) = sessions.patterns(PatternsRequest(state=state, layer=layer)).before
    assert only == found.before[layer]


def test_why_is_the_attribution_of_the_changed_run(sessions: Sessions) -> None:
    model, tokens = sessions.model, sessions.model.to_tokens(PROMPT)
    layer = model.cfg.layers_with("attn")[-1]
    for changes in ([], [Change(component="0.1", action="zero")]):
        why = sessions.why(
            WhyRequest(state=State(prompt=PROMPT, changes=changes), layer=layer, head=2, query=-1, key=-3)
        )
        with model.hooks(by_hand(sessions, changes)):
            expected = attribute_attention(model, tokens, (layer, 2), -1, -3, progress=False)
            scores = model.run_with_cache(tokens)[1]["attn_scores", layer]
        close(why.score, scores[0, 2, -1, -3])
        close(why.score, sum(part.value for part in why.key_parts) + why.penalty)
        close(why.score, sum(part.value for part in why.query_parts) + why.penalty)
        told = sum(part.value for part in why.parts) + why.pairs_rest.value + why.penalty
        close(why.score, told)
        assert len(why.parts) + why.pairs_rest.count == expected.pairs.numel()
        assert len(why.parts) == min(30, expected.pairs.numel())
        best = expected.pairs.abs().max()
        close(abs(why.parts[0].value), best)
        assert [abs(part.value) for part in why.parts] == sorted((abs(part.value) for part in why.parts), reverse=True)


class Given(Exception):
    """Raised in the middle of a run."""


def test_a_run_given_up_in_any_layer_leaves_nothing_behind() -> None:
    state = State(prompt=PROMPT, other=OTHER, changes=[Change(component="0.1", action="patch", positions=[2])])
    expected = Sessions(live_model()).run(state)
    for asked in ("run", "patterns", "why"):
        sessions = Sessions(live_model())
        places = {"layer": 2, "head": 0, "query": -1, "key": 1}
        request = {
            "run": state,
            "patterns": PatternsRequest(state=state),
            "why": WhyRequest(state=state, **places),
        }[asked]
        stops = 0
        while True:
            left = iter(range(stops))

            def check(left: Any = left) -> None:
                if next(left, None) is None:
                    raise Given

            try:
                getattr(sessions, asked)(request, check)
            except Given:
                stops += 1
                assert not any(point.has_hooks() for point in sessions.model.hook_points())
            else:
                break
        assert stops > sessions.model.cfg.n_layers
        found = sessions.run(state)
        assert (found.before, found.after) == (expected.before, expected.after)


class CountedAttention:
    """A layer's attention, which notes that it runs."""

    def __init__(self, run: Any, layer: int, noted: list[int]) -> None:
        self.run, self.layer, self.noted = run, layer, noted

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.noted.append(self.layer)
        return self.run(*args, **options)


def test_runs_are_kept_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(prompt=PROMPT, changes=[Change(component="1.1", action="zero")])
    roomy, small = Sessions(live_model()), Sessions(live_model(), kept_bytes=0)
    expected = roomy.run(state)
    blocks: list[int] = []
    for sessions in (roomy, small):
        sessions.run(state)
        for layer, block in enumerate(sessions.model.blocks):
            count = CountedAttention(block.attn.forward, layer, blocks)
            monkeypatch.setattr(block.attn, "forward", count)
    assert roomy.run(state).after == expected.after and blocks == []
    # Another change begins in its own layer.
    roomy.run(state.model_copy(update={"changes": [Change(component="2.1", action="zero")]}))
    assert blocks == [2]
    blocks.clear()
    assert small.run(state).after == expected.after and blocks == [0, 1, 2, 1, 2]


def test_what_cannot_be_done_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(live_model(attn_only=True))
    for changes, said in (
        ([Change(component="mlp1", action="zero")], "mlp1 does not exist: 'small' has attention only"),
        ([Change(component="0.1", action="mean")], "the mean output of 0.1 was not measured"),
        ([Change(component="0.1", action="patch")], "a patch comes from a second prompt"),
        ([Change(component="0.1", action="zero")] * 2, "0.1 is changed twice at position 0"),
        (
            [Change(component="0.1", action="zero"), Change(component="1.2", action="zero", positions=[3, 40])],
            r"the change of 1\.2: positions are -\d+ to \d+ in this prompt; got 40",
        ),
    ):
        with pytest.raises(InvalidInputError, match=said):
            sessions.run(State(prompt=PROMPT, changes=changes))
    with pytest.raises(InvalidInputError, match=r"second prompt has 2 tokens and the first \d+"):
        sessions.run(State(prompt=PROMPT, other="a", changes=[Change(component="0.1", action="patch")]))
    with pytest.raises(TooLongError, match="at most 48 are run live"):
        sessions.run(State(prompt=PROMPT * 5))
    with monkeypatch.context() as smaller, pytest.raises(TooLongError, match="ask for one layer at a time"):
        smaller.setattr("headscope.explorer.serving.sessions._PATTERN_BYTES", 1000)
        sessions.patterns(PatternsRequest(state=State(prompt=PROMPT)))
    with pytest.raises(InvalidInputError, match="has 7 outputs for 326 tokens"):
        Sessions(live_model(d_vocab_out=7))
    with pytest.raises(InvalidInputError, match="'small' attends in both directions"):
        Sessions(live_model(attention_dir="bidirectional"))
    with pytest.raises(MissingTokenizerError, match="'small' has no tokenizer"):
        Sessions(live_model(tokenizer=False))
