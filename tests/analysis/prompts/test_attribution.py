"""Attribution against full logits and sums over cached activations, one prompt, head and position at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes import SetBudget
from small_models import small_model
from tiny import randomize, tiny_model, tiny_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headscope import HookedTransformer
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.attribution_result import Attribution, component_labels
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, NotFiniteError, UnknownNameError

KINDS: dict[str, dict[str, Any]] = {
    "LN": {"normalization_type": "LN"},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS"},
    "no norm": {"normalization_type": None},
    "attention only": {"attn_only": True, "act_fn": None, "d_mlp": None},
    "parallel": {"parallel_attn_mlp": True},
    "shared values": {"n_heads": 4, "n_key_value_heads": 2},
    "shared, shown per head": {"n_heads": 4, "n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "positions beside the stream": {"positional_embedding_type": "shortformer"},
    "several at once": {
        "parallel_attn_mlp": True,
        "n_heads": 4,
        "n_key_value_heads": 1,
        "normalization_type": "RMSPre",
    },
}
ANSWERS = torch.tensor([[3, 7], [0, 22], [5, 6]])


def lens(model: HookedTransformer, x: Tensor, final: Tensor, *, biases: bool) -> Tensor:
    """All logits that `x` gives at the scale of `final`, spelled out."""
    kind, state = model.cfg.normalization_type, model.state_dict()

    def centered(y: Tensor) -> Tensor:
        return y - y.mean() if kind is not None and kind.startswith("LN") else y

    scale = torch.tensor(1.0) if kind is None else (centered(final).square().mean() + model.cfg.eps).sqrt()
    x = centered(x) / scale
    x = x * state["ln_final.w"] if kind in ("LN", "RMS") else x
    x = x + state["ln_final.b"] if kind == "LN" and biases else x
    out = x @ state["unembed.W_U"]
    return out + state["unembed.b_U"] if biases else out


def naive(model: HookedTransformer, row: Tensor, at: int, right: int, wrong: int) -> dict[str, Any]:
    """Everything about one prompt without padding, from a cache of it alone."""
    logits, cache = model.run_with_cache(row[None])
    final = cache["resid_post", -1][0, at]
    cfg = model.cfg

    def toward(x: Tensor, *, biases: bool = False) -> float:
        out = lens(model, x, final, biases=biases)
        return float(out[right] - out[wrong])

    components = {"embed": toward(cache["embed"][0, at])}
    if cfg.positional_embedding_type == "standard":
        components["pos_embed"] = toward(cache["pos_embed"][0, at])
    components["final bias"] = toward(final, biases=True) - toward(final)
    sources: dict[tuple[int, int], list[float]] = {}
    neurons: dict[tuple[int, int], float] = {}
    states: list[float] = []
    for layer in range(cfg.n_layers):
        block = model.blocks[layer]
        states.append(toward(cache["resid_pre", layer][0, at], biases=True))
        if cfg.has_resid_mid:
            states.append(toward(cache["resid_mid", layer][0, at], biases=True))
        v = cache["v", layer][0]
        for head in range(cfg.n_heads):
            components[f"{layer}.{head}"] = toward(cache["z", layer][0, at, head] @ block.attn.W_O[head])
            own = v[:, head * v.shape[1] // cfg.n_heads]
            weights = cache["pattern", layer][0, head, at]
            sources[layer, head] = [
                toward(w * each @ block.attn.W_O[head]) for w, each in zip(weights, own, strict=True)
            ]
        components[f"b_O {layer}"] = toward(block.attn.b_O)
        if not cfg.attn_only:
            components[f"mlp{layer}"] = toward(cache["mlp_out", layer][0, at])
            for neuron in range(cfg.d_mlp):
                neurons[layer, neuron] = toward(cache["post", layer][0, at, neuron] * block.mlp.W_out[neuron])
    states.append(toward(final, biases=True))
    total = float(logits[0, at, right] - logits[0, at, wrong])
    return {"total": total, "components": components, "sources": sources, "neurons": neurons, "states": states}


def check(model: HookedTransformer, found: Attribution, rows: list[Tensor], positions: list[int]) -> None:
    """Compare with `naive`, prompt by prompt; `rows` are without padding, and stand in the real positions."""
    neurons: dict[tuple[int, int], list[float]] = {}
    for i, (row, at) in enumerate(zip(rows, positions, strict=True)):
        right, wrong = ANSWERS[i].tolist()
        with torch.no_grad():
            own = naive(model, row, at, right, wrong)
        assert float(found.logit_difference[i]) == pytest.approx(own["total"], abs=1e-9)
        assert found.accumulated[i].tolist() == pytest.approx(own["states"], abs=1e-9)
        by_name = dict(zip(found.component_labels, found.components[i].tolist(), strict=True))
        assert by_name == pytest.approx(own["components"], abs=1e-9)
        assert sum(by_name.values()) == pytest.approx(own["total"], abs=1e-9)
        real = found.attention_mask[i]
        for (layer, head), values in own["sources"].items():
            assert found.sources_of(i)[layer, head].tolist() == pytest.approx(values, abs=1e-9)
            assert found.sources is not None and not found.sources[i, layer, head, ~real].any()
            assert float(found.heads[i, layer, head]) == pytest.approx(sum(values), abs=1e-9)
        for place, value in own["neurons"].items():
            neurons.setdefault(place, []).append(value)
    if found.neurons is None:
        assert not neurons
    else:
        means = {place: sum(values) / len(values) for place, values in neurons.items()}
        places = [(layer, n) for layer in range(found.neurons.shape[0]) for n in range(found.neurons.shape[1])]
        assert dict(zip(places, found.neurons.flatten().tolist(), strict=True)) == pytest.approx(means, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_what_full_logits_say(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    tokens = tiny_tokens(3)
    found = attribute(model, tokens, answer_tokens=ANSWERS, progress=False)
    check(model, found, list(tokens), [6] * 3)
    assert found.component_labels == component_labels(model.cfg) and len(set(found.component_labels)) == len(
        found.component_labels
    )
    assert len(found.state_labels) == found.accumulated.shape[1]
    assert float(found.unexplained.abs().max()) < 1e-9 and "in no component" not in str(found)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str) -> None:
    model = tiny_model()
    lengths = [7, 4, 5]
    rows = [tiny_tokens(1, n, seed=n)[0] for n in lengths]
    tokens = torch.full((3, 7), 9)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(7 - len(row), 7)
        tokens[i, place], mask[i, place] = row, True
    found = attribute(model, tokens, answer_tokens=ANSWERS, attention_mask=mask.long(), progress=False)
    check(model, found, rows, [n - 1 for n in lengths])
    starts = [0, 0, 0] if side == "right" else [7 - n for n in lengths]
    earlier = torch.tensor([start + 2 for start in starts])
    found = attribute(model, tokens, answer_tokens=ANSWERS, attention_mask=mask, positions=earlier, progress=False)
    check(model, found, rows, [2, 2, 2])


@given(
    kind=st.sampled_from(["LN", "parallel", "shared values", "attention only"]),
    seed=st.integers(0, 1000),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_components_sum_to_the_models_difference(kind: str, seed: int, lengths: list[int]) -> None:
    model = tiny_model(**KINDS[kind])
    randomize(model, seed=seed)
    n = len(lengths)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens, answers = tiny_tokens(n, max(lengths), seed=seed), tiny_tokens(n, 2, seed=seed + 1)
    found = attribute(model, tokens, answer_tokens=answers, attention_mask=mask, progress=False)
    at = torch.tensor(lengths) - 1
    logits = model(tokens, attention_mask=mask)[torch.arange(n), at].detach()
    expected = logits.gather(1, answers[:, :1]) - logits.gather(1, answers[:, 1:])
    torch.testing.assert_close(found.logit_difference[:, None], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.components.sum(1, keepdim=True), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.accumulated[:, -1:], expected, atol=1e-9, rtol=0)
    assert found.sources is not None
    torch.testing.assert_close(found.sources.sum(-1), found.heads, atol=1e-9, rtol=0)
    if found.neurons is not None and found.mlps is not None:
        final = model(tokens, attention_mask=mask, stop_at_layer=2)[torch.arange(n), at]
        scale = (final.detach() - final.detach().mean(-1, keepdim=True)).square().mean(-1).add(model.cfg.eps).sqrt()
        u = model.W_U.T[answers[:, 0]] - model.W_U.T[answers[:, 1]]
        w = model.ln_final.w
        for layer in range(2):
            b = model.blocks[layer].mlp.b_out
            bias = (((b - b.mean()) * w * u).sum(-1) / scale).mean().detach()
            torch.testing.assert_close(
                found.neurons[layer].sum() + bias, found.mlps[:, layer].mean(), atol=1e-9, rtol=0
            )


def test_processing_keeps_the_difference_and_moves_it_between_parts() -> None:
    raw = small_model()
    processed = small_model()
    processed.load_and_process_state_dict({name: each.clone() for name, each in processed.state_dict().items()})
    tokens = tiny_tokens(3, 9, d_vocab=raw.cfg.d_vocab)
    answers = tiny_tokens(3, 2, d_vocab=raw.cfg.d_vocab, seed=5)
    one, two = (attribute(model, tokens, answer_tokens=answers, progress=False) for model in (raw, processed))
    torch.testing.assert_close(one.logit_difference, two.logit_difference, atol=1e-4, rtol=1e-4)
    for found in (one, two):
        assert float(found.unexplained.abs().max()) < 1e-4
    # With the value biases folded, what a head adds no longer holds its share of them.
    assert not torch.allclose(one.heads, two.heads, atol=1e-3)
    assert one.info.processing != two.info.processing


def test_a_low_precision_model_is_read_in_float32() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    found = attribute(model, tiny_tokens(3), answer_tokens=ANSWERS, progress=False)
    assert found.components.dtype == torch.float32
    logits = model(tiny_tokens(3))[:, -1].detach().float()
    expected = logits.gather(1, ANSWERS[:, :1]) - logits.gather(1, ANSWERS[:, 1:])
    torch.testing.assert_close(found.logit_difference[:, None], expected, atol=0.3, rtol=0.1)


def ioi_task(n: int = 24, **options: Any) -> tuple[HookedTransformer, Task]:
    model = HookedTransformer.from_pretrained("headscope-demo")
    return model, Task.from_ioi(IOIDataset(N=n, tokenizer=model.tokenizer, prepend_bos=True, **options))


def test_a_task_brings_its_answers_and_words(set_budget: SetBudget) -> None:
    model, task = ioi_task()
    found = attribute(model, task, progress=False)
    logits = model(task.clean_tokens, attention_mask=task.attention_mask).detach()
    torch.testing.assert_close(
        found.logit_difference, task.logit_difference(logits, per_prompt=True), atol=1e-4, rtol=1e-4
    )
    assert float(found.unexplained.abs().max()) < 1e-4
    assert found.str_tokens == task.str_tokens and found.labels == task.labels
    for word, at in task.word_idx.items():
        for i in range(len(task)):
            assert found.sources is not None
            assert torch.equal(found.sources_at(word)[i], found.sources[i, :, :, at[i]])
    answers = torch.cat([task.correct, task.incorrect], 1)
    same = attribute(
        model, task.clean_tokens, answer_tokens=answers, attention_mask=task.attention_mask, progress=False
    )
    assert torch.equal(same.components, found.components) and same.token_strings == found.token_strings
    set_budget(batch_tokens=50)
    pieces = attribute(model, task, progress=False)
    for name in ("logit_difference", "accumulated", "components", "sources", "neurons"):
        torch.testing.assert_close(getattr(pieces, name), getattr(found, name), atol=1e-4, rtol=1e-4)
    assert found.info.n_sequences == found.info.n_positions == 24 and "24 prompts, such as" in found.info.data


def test_several_answers_are_averaged() -> None:
    model, _ = ioi_task(2)
    text = "When Mary and John went to the store, John gave a drink to"

    def task(right: list[str], wrong: list[str]) -> Task:
        return Task.from_prompts([text], [right], [wrong], model.tokenizer)

    both = attribute(model, task(["Mary", "Anna"], ["John", "Tom", "Peter"]), progress=False)
    each = [
        [attribute(model, task([a], [b]), progress=False).components for b in ("John", "Tom", "Peter")]
        for a in ("Mary", "Anna")
    ]
    expected = torch.stack([torch.stack(row).mean(0) for row in each]).mean(0)
    torch.testing.assert_close(both.components, expected, atol=1e-5, rtol=1e-5)


def test_the_demo_model_gets_its_answer_from_two_heads_and_its_last_mlps() -> None:
    model, task = ioi_task(200)
    found = attribute(model, task, progress=False)
    assert float(found.logit_difference.mean()) > 5 and float((found.logit_difference > 0).float().mean()) > 0.9
    best = found.top(2)
    assert [score.label for score in best] == ["3.2", "2.2"] and best[0].value > 2 and best[1].value > 1
    assert found.top(1, mlps=True)[0].label == "mlp4"
    # 3.2 reads who acted; what it adds comes from there.
    s2 = found.sources_at("S2")[:, 3, 2].mean()
    assert torch.equal(found.sources_at("S1 + 1"), found.sources_at("S1+1"))
    assert torch.equal(found.sources_at("S2-1")[1], found.sources[1, :, :, int(task.word_idx["S2"][1]) - 1])
    with pytest.raises(InvalidInputError, match="'end\\+1' is not a real token"):
        found.sources_at("end+1")
    assert float(s2) > 0.95 * best[0].value
    # 1.0 moves whoever is named second: for in one order, against in the other, nothing on average.
    one, two = (found.only(order).heads[:, 1, 0].mean() for order in ("ABBA", "BABA"))
    assert float(one) < -1 and float(two) > 1 and abs(float(found.heads[:, 1, 0].mean())) < 0.6


def test_the_result_as_tables_and_text(tmp_path: Path) -> None:
    model, task = ioi_task()
    found = attribute(model, task, progress=False)
    frame = found.to_frame()
    assert frame["component"].tolist() == list(found.component_labels)
    assert frame["mean"].tolist() == pytest.approx(found.components.double().mean(0).tolist())
    assert frame["std"].tolist() == pytest.approx(found.components.double().std(0, correction=0).tolist())
    row = frame[frame["component"] == "3.2"].iloc[0]
    assert (row["kind"], row["layer"], row["head"]) == ("head", 3, 2)
    assert frame[frame["kind"] == "MLP"]["layer"].tolist() == list(range(5)) and frame["head"].notna().sum() == 20
    long = found.to_frame(per_prompt=True)
    assert len(long) == 24 * len(found.component_labels)
    assert long[(long["prompt"] == 3) & (long["component"] == "2.2")]["attribution"].item() == pytest.approx(
        float(found.heads[3, 2, 2])
    )
    assert found.states_frame()["mean"].tolist() == pytest.approx(found.accumulated.double().mean(0).tolist())
    means = found.heads.mean(0)
    assert found.top(1)[0].value == pytest.approx(float(means.max()))
    assert found.top(1, largest=False)[0].value == pytest.approx(float(means.min()))
    assert found.neurons is not None
    neuron = found.top_neurons(2)[0]
    assert (
        neuron.value == pytest.approx(float(found.neurons.max())) and neuron.label == f"L{neuron.layer}N{neuron.neuron}"
    )
    assert found.top_neurons(1, largest=False)[0].value == pytest.approx(float(found.neurons.min()))
    assert "logit difference:" in str(found) and "3.2 +" in str(found) and "of 24 prompts" in repr(found)
    again = Attribution.load(found.save(tmp_path / "found.safetensors"))
    for name, value in vars(found).items():
        same = getattr(again, name)
        assert torch.equal(same, value) if isinstance(value, Tensor) else same == value
    assert again.str_tokens == found.str_tokens


def test_one_kind_of_prompts() -> None:
    model, task = ioi_task()
    found = attribute(model, task, progress=False)
    some = found.only("BABA")
    rows = [i for i, label in enumerate(task.labels) if label == "BABA"]
    alone = attribute(model, task[rows], neurons=False, progress=False)
    torch.testing.assert_close(some.components, alone.components, atol=1e-5, rtol=1e-5)
    assert some.str_tokens == alone.str_tokens == tuple(task.str_tokens[i] for i in rows)
    torch.testing.assert_close(some.sources_at("IO"), alone.sources_at("IO"), atol=1e-5, rtol=1e-5)
    assert some.neurons is None and set(some.labels) == {"BABA"} and some.info.n_sequences == len(rows)
    with pytest.raises(UnknownNameError, match="'ABBA'"):
        found.only("ABAB")


def test_less_is_made_when_less_is_asked_for() -> None:
    model = tiny_model()
    seen: list[str] = []
    model.add_hook(
        lambda name: name.endswith(("hook_pattern", "hook_post")), lambda value, hook: seen.append(hook.name)
    )
    model.reset_hooks()
    found = attribute(model, tiny_tokens(3), answer_tokens=ANSWERS, sources=False, neurons=False, progress=False)
    assert found.sources is None and found.neurons is None and found.str_tokens[0][0] == str(int(tiny_tokens(3)[0, 0]))
    for ask, message in (
        (lambda: found.sources_of(0), "sources=False"),
        (lambda: found.sources_at("IO"), "sources=False"),
        (lambda: found.top_neurons(), "neurons=False"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            ask()
    whole = attribute(model, tiny_tokens(3), answer_tokens=ANSWERS, progress=False)
    torch.testing.assert_close(whole.components, found.components)
    assert (
        attribute(tiny_model(**KINDS["attention only"]), tiny_tokens(3), answer_tokens=ANSWERS, progress=False).mlps
        is None
    )
    for ask, message in (
        (lambda: whole.sources_of(3), "from 0 to 2; got 3"),
        (lambda: whole.top_neurons(0), "k must be at least 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            ask()
    with pytest.raises(UnknownNameError, match="come with a Task"):
        whole.sources_at("IO")


def test_what_a_hook_puts_into_the_stream_is_told() -> None:
    model = tiny_model()
    steer = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: value + steer)]):
        found = attribute(model, tiny_tokens(3), answer_tokens=ANSWERS, progress=False)
        logits = model(tiny_tokens(3))[:, -1].detach()
    expected = logits.gather(1, ANSWERS[:, :1]) - logits.gather(1, ANSWERS[:, 1:])
    torch.testing.assert_close(found.logit_difference[:, None], expected)
    assert float(found.unexplained.abs().min()) > 1e-3 and "is in no component: a hook" in str(found)


def test_a_soft_cap_comes_after_what_is_attributed() -> None:
    plain, capped = tiny_model(), tiny_model(output_logits_soft_cap=2.0)
    one, two = (attribute(m, tiny_tokens(3), answer_tokens=ANSWERS, progress=False) for m in (plain, capped))
    assert torch.equal(one.components, two.components) and torch.equal(one.logit_difference, two.logit_difference)


def test_no_large_tensor_is_made() -> None:
    """Beside the weights, nothing has an axis over the vocabulary, or d_model beside another axis of the weights'."""
    model = tiny_model(d_vocab=31, n_heads=3, d_head=4, d_mlp=14, n_ctx=12)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes: set[tuple[int, ...]] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and (storage := out.untyped_storage()).data_ptr() not in weights:
                # A tensor expanded without being copied is none of its shape.
                if storage.nbytes() >= out.nbytes:
                    shapes.add(tuple(out.shape))
            return out

    with Watch():
        attribute(model, tiny_tokens(5), answer_tokens=tiny_tokens(5, 2), progress=False)
    assert (5, 10) in shapes and not [shape for shape in shapes if 31 in shape]
    assert not [s for s in shapes if 10 in s and (3 in s or 4 in s or 14 in s or 12 in s)]


def bad_calls() -> dict[str, tuple[Any, str]]:
    model, tokens = tiny_model(), tiny_tokens(3)
    with_task, task = ioi_task(2)
    broken = tiny_model()
    with torch.no_grad():
        broken.blocks[0].mlp.b_out[0] = torch.nan

    class Other(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    no_mlp, no_unembed, replaced = tiny_model(), tiny_model(), tiny_model()
    no_mlp.blocks[1].mlp = Other()
    no_unembed.unembed = Other()
    replaced.blocks[0].attn.hook_z = Other()
    replaced.setup()
    at_padding = {"attention_mask": torch.arange(7).expand(3, 7) < 4, "positions": torch.tensor([3, 3, 4])}
    given: dict[str, Any] = {"answer_tokens": ANSWERS, "progress": False}
    return {
        "no answers": (lambda: attribute(model, tokens), r"answer_tokens \[prompt, 2\]"),
        "answers out of range": (lambda: attribute(model, tokens, answer_tokens=ANSWERS + 1), "from 0 to 22"),
        "task and answers": (lambda: attribute(with_task, task, answer_tokens=ANSWERS[:2]), "a Task has its answers"),
        "positions": (lambda: attribute(model, tokens, positions=torch.tensor([0, 1, 7]), **given), "to 6 .* to 7"),
        "at padding": (
            lambda: attribute(model, tokens, **at_padding, **given),
            "not at padding",
        ),
        "mask": (lambda: attribute(model, tokens, attention_mask=torch.ones(3, 6), **given), "tokens' shape"),
        "tokens": (lambda: attribute(model, tokens + 22, **given), "between 0 and d_vocab - 1"),
        "too long": (lambda: attribute(model, tiny_tokens(3, 13), **given), "n_ctx = 12"),
        "not finite": (lambda: attribute(broken, tokens, **given), "NaN"),
        "no MLP weights": (lambda: attribute(no_mlp, tokens, **given), "without W_out"),
        "no unembedding": (lambda: attribute(no_unembed, tokens, **given), "without W_U"),
        "a hook point replaced": (lambda: attribute(replaced, tokens, **given), "instead of a hook point"),
        "answers of another model": (lambda: attribute(small_model(n_ctx=64, d_vocab=200), task), "0 to 199; prompt 0"),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_calls())
def test_bad_input_is_told(case: str) -> None:
    call, message = bad_calls()[case]
    with pytest.raises((InvalidInputError, NotFiniteError), match=message):
        call()
