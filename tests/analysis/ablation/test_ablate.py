"""`ablate_heads` against full forward passes with hooks and explicit logits."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from means import component_means
from sizes import SetBudget
from small_models import save_checkpoint, small_model, small_tokenizer
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.ablation.ablate import AblationAccumulator, AblationOptions, ablate_heads
from headscope.analysis.ablation.replacements import Replacements
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.batches import Batch, iterate_batches
from headscope.analysis.core.components import component_sets, components
from headscope.analysis.core.stats import estimates
from headscope.analysis.recording import record as clean_run
from headscope.errors import InvalidInputError, NotFiniteError

pytestmark = pytest.mark.usefixtures("no_gradients")


LOSSES = ("loss", "loss_diff", "kl")
VALUES, EFFECTS = ("zero", "mean"), ("patched", "direct", "indirect")


def measure(model: HookedTransformer, data: Any, **options: Any) -> AblationResult:
    return ablate_heads(model, data, **{"progress": False, "kl": True, "values": VALUES, "effects": EFFECTS, **options})


class Naive:
    """One ablation at a time: full forward passes with hooks, explicit logits, float64 at the end."""

    def __init__(self, model: HookedTransformer, tokens: Tensor, mask: Tensor | None, counted: Tensor) -> None:
        self.model, self.tokens, self.mask, self.counted = model, tokens, mask, counted
        names = ("attn.hook_z", "hook_mlp_out", "hook_resid_post")
        _, self.cache = model.run_with_cache(
            tokens, attention_mask=mask, names_filter=lambda name: name.endswith(names) or "ln_final" in name
        )
        self.final = self.cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        self.log_probs = self.read(self.final)

    def read(self, final: Tensor, scale_of: Tensor | None = None) -> Tensor:
        """Log-probabilities of final states, by the model's own norm or with the scale of other states."""
        if scale_of is None:
            logits = self.model.unembed(self.model.ln_final(final))
        else:
            norm = dict(self.model.ln_final.named_parameters())
            centered = final - final.mean(-1, keepdim=True)
            theirs = scale_of - scale_of.mean(-1, keepdim=True)
            scale = (theirs.square().mean(-1, keepdim=True) + self.model.cfg.eps).sqrt()
            logits = centered / scale * norm.get("w", 1.0) + norm.get("b", 0.0)
            logits = logits @ self.model.W_U + self.model.b_U
        return logits.double().log_softmax(-1)

    def loss(self, log_probs: Tensor) -> Tensor:
        return -log_probs[:, :-1].gather(-1, self.tokens[:, 1:, None])[..., 0]

    def kl(self, log_probs: Tensor) -> Tensor:
        return (self.log_probs.exp() * (self.log_probs - log_probs)).sum(-1)[:, :-1]

    def output(self, component: Any) -> Tensor:
        if component.head is None:
            return self.cache[f"blocks.{component.layer}.hook_mlp_out"]
        return self.cache[f"blocks.{component.layer}.attn.hook_z"][:, :, component.head]

    def replacement(self, component: Any, value: str) -> Tensor:
        output = self.output(component)
        return output[self.counted].mean(0) if value == "mean" else torch.zeros_like(output[0, 0])

    def contribution(self, together: Any, value: str) -> Tensor:
        total = torch.zeros_like(self.final)
        for component in together:
            taken = self.output(component) - self.replacement(component, value)
            W_O = None if component.head is None else self.model.W_O[component.layer, component.head]
            total = total + (taken if W_O is None else taken @ W_O)
        return total

    def run(self, together: Any, value: str, excluded: Any = ()) -> Tensor:
        """The final state of a full run with hooks."""

        def hook_for(component: Any, instead: Tensor) -> Any:
            def edit(activation: Tensor, hook: Any) -> Tensor:
                if component.head is None:
                    return instead.expand_as(activation)
                activation = activation.clone()
                activation[:, :, component.head] = instead
                return activation

            return edit

        edits = [(component, self.output(component)) for component in excluded]
        edits += [(component, self.replacement(component, value)) for component in together]
        kinds = {None: "hook_mlp_out"}
        hooks = [
            (f"blocks.{each.layer}.{kinds.get(each.head, 'attn.hook_z')}", hook_for(each, instead))
            for each, instead in edits
        ]
        kept: list[Tensor] = []
        last = f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"
        hooks.append((last, lambda activation, hook: kept.append(activation.clone())))
        self.model.run_with_hooks(self.tokens, attention_mask=self.mask, fwd_hooks=hooks)
        return kept[0]

    def measure(self, together: Any, value: str, effect: str, excluded: Any = (), own: bool = False) -> Tensor:
        """Log-probabilities after an ablation."""
        removed = self.contribution(together, value)
        scale_of = None if own else self.final
        if effect == "direct":
            return self.read(self.final - removed, scale_of)
        if effect == "patched":
            return self.read(self.run(together, value))
        return self.read(self.run(together, value, excluded) + removed, scale_of)


def padded_tokens() -> tuple[Tensor, Tensor]:
    tokens = tiny_tokens(3, 9)
    mask = torch.ones_like(tokens)
    mask[1, 6:], mask[2, :3] = 0, 0
    return tokens, mask


def compare(
    model: HookedTransformer, heads: Any, tolerance: float, *, excluding: Any = (), **options: Any
) -> AblationResult:
    """With right- and left-padded rows."""
    tokens, mask = padded_tokens()
    found = measure(model, tokens, heads=heads, attention_mask=mask, excluding=excluding, **options)
    counted = mask.bool()
    naive = Naive(model, tokens, counted, counted)
    predicting = counted[:, :-1] & counted[:, 1:]
    assert torch.equal(~found.loss.isnan(), predicting)
    assert torch.allclose(found.loss[predicting].double(), naive.loss(naive.log_probs)[predicting], atol=tolerance)
    excluded = components(model.cfg, excluding)
    for (v, value), (e, effect), (c, together) in itertools.product(
        enumerate(found.values), enumerate(found.effects), enumerate(component_sets(model.cfg, heads))
    ):
        changed = naive.measure(together, value, effect, excluded, own=options.get("scale") == "own")
        wanted = {"loss_diff": naive.loss(changed) - naive.loss(naive.log_probs), "kl": naive.kl(changed)}
        for name, right in wanted.items():
            mine = getattr(found, name)[v, e, c]
            assert torch.equal(mine.isnan(), ~predicting)
            off = float((mine.double() - right)[predicting].abs().max())
            assert off <= tolerance, (name, value, effect, together, off)
        # What is last has no indirect effect; all else must have some, or nothing was compared.
        if effect != "indirect" or together[0].layer == 0:
            assert float(wanted["kl"][predicting].max()) > 10 * tolerance
    return found


SETS: list[Any] = [(0, 0), (1, 2), "0.1", "mlp0", "mlp1", [(0, 2), (1, 0)], [(1, 1), "mlp0"]]


# Results are kept in float32: losses of up to 10 nats are rounded by 1e-6.
@pytest.mark.parametrize("scale", ["final", "own"])
@pytest.mark.parametrize("norm", ["LN", "LNPre"])
def test_every_way_equals_full_runs(norm: str, scale: str) -> None:
    compare(tiny_model(normalization_type=norm), SETS, 5e-6, scale=scale)


def test_small_batches_and_tiles(set_budget: SetBudget) -> None:
    """Batches of a row each, and patched runs held two at a time."""
    whole = compare(tiny_model(), SETS, 5e-6)
    tokens, mask = padded_tokens()
    set_budget(batch_tokens=20, held_rows=9)
    split = measure(tiny_model(), tokens, heads=SETS, attention_mask=mask)
    for name in LOSSES:
        assert torch.allclose(getattr(split, name), getattr(whole, name), atol=1e-6, equal_nan=True), name


@pytest.mark.parametrize("fields", [{"attn_only": True, "normalization_type": None}, {"parallel_attn_mlp": True}])
def test_other_blocks(fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    if model.cfg.normalization_type is None:
        found = measure(model, tiny_tokens(), heads=["0.0", "1.1"], effects=("patched",))
        naive = Naive(model, tiny_tokens(), None, torch.ones(2, 7, dtype=torch.bool))
        for c, together in enumerate(component_sets(model.cfg, ["0.0", "1.1"])):
            wanted = naive.loss(naive.measure(together, "mean", "patched")) - naive.loss(naive.log_probs)
            assert torch.allclose(found.loss_diff[1, 0, c].double(), wanted, atol=5e-6)
    else:
        compare(model, ["0.0", "1.1", "mlp0"], 5e-6)


def test_paths_through_excluded_heads_are_closed() -> None:
    heads = ["0.0", "0.1", "1.1"]
    model = tiny_model()
    without = compare(model, heads, 5e-6, excluding=["1.0", (1, 2)])
    with_all = compare(model, heads, 5e-6)
    place = EFFECTS.index("indirect")
    changed = (without.loss_diff - with_all.loss_diff)[:, place, :2].abs().nan_to_num()
    assert float(changed.max()) > 1e-3  # they do matter
    assert torch.allclose(
        without.loss_diff[:, :place], with_all.loss_diff[:, :place], equal_nan=True, atol=1e-6, rtol=0
    )
    # Without excluded heads, the last layer's heads act directly or not at all, but for the MLP after them.
    only = compare(model, ["1.1"], 5e-6, effects=("indirect",), excluding=["1.0"])
    assert only.effects == ("indirect",)


def test_clean_runs_are_kept_from_the_means_for_the_losses(
    monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget
) -> None:
    model, tokens = tiny_model(), tiny_tokens()
    seen: list[int] = []
    original = clean_run.clean_run

    def counted(*arguments: Any) -> Any:
        seen.append(1)
        return original(*arguments)

    monkeypatch.setattr(clean_run, "clean_run", counted)
    batches = [tokens, tiny_tokens(3, 5, seed=2)]
    kept = measure(model, batches, heads=["0.1", "1.2"])
    assert len(seen) == 2
    set_budget(kept_bytes=0)
    anew = measure(model, batches, heads=["0.1", "1.2"])
    assert len(seen) == 6
    for name in LOSSES:
        assert torch.equal(getattr(kept, name).nan_to_num(-9.0), getattr(anew, name).nan_to_num(-9.0))


def test_a_processed_and_an_unprocessed_model(tmp_path: Path) -> None:
    """float32, within 1e-4; the demo path from a checkpoint, LayerNorm folded or not."""
    save_checkpoint(tmp_path)
    tokens = torch.randint(0, len(small_tokenizer()), (3, 9), generator=torch.Generator().manual_seed(0))
    for load in (HookedTransformer.from_pretrained, HookedTransformer.from_pretrained_no_processing):
        model = load(str(tmp_path))
        found = measure(model, tokens, heads=["0.0", "1.2", "mlp0"], include_bos=True)
        naive = Naive(model, tokens, None, torch.ones_like(tokens, dtype=torch.bool))
        for (v, value), (e, effect), (c, together) in itertools.product(
            enumerate(VALUES), enumerate(EFFECTS), enumerate(component_sets(model.cfg, found.component_labels))
        ):
            changed = naive.measure(together, value, effect)
            wanted = naive.loss(changed) - naive.loss(naive.log_probs)
            assert float((found.loss_diff[v, e, c].double() - wanted).abs().max()) <= 1e-4


def test_heads_in_one_call_are_isolated() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    both = measure(model, tokens, heads=["0.1", "1.2"])
    for place, head in enumerate(("0.1", "1.2")):
        alone = measure(model, tokens, heads=[head])
        for name in ("loss_diff", "kl"):
            assert torch.allclose(getattr(both, name)[:, :, place], getattr(alone, name)[:, :, 0], atol=1e-6)


def test_all_heads_by_default() -> None:
    found = ablate_heads(tiny_model(), tiny_tokens(), progress=False)
    assert found.component_labels == ("0.0", "0.1", "0.2", "1.0", "1.1", "1.2")
    assert (found.values, found.effects, found.kl) == (("zero", "mean"), ("patched", "direct"), None)
    assert found.loss_diff.shape == (2, 2, 6, 2, 6)


def test_means_at_each_position() -> None:
    """The mean of rows of different lengths, at each position; a text of one row is then not changed at all."""
    model = tiny_model()
    tokens, mask = padded_tokens()
    naive = Naive(model, tokens, mask.bool(), mask.bool())
    z = naive.output(components(model.cfg, ["0.1"])[0])
    weights = mask.double()[..., None]
    instead = (z * weights).sum(0) / weights.sum(0)
    found = measure(
        model, tokens, heads=["0.1"], values=["mean"], effects=["direct"], mean_over="position", attention_mask=mask
    )
    changed = naive.read(naive.final - (z - instead) @ model.W_O[0, 1], naive.final)
    wanted = (naive.loss(changed) - naive.loss(naive.log_probs)).float()
    known = ~found.loss.isnan()
    assert torch.allclose(found.of()[known], wanted[known], atol=5e-6)
    alone = measure(model, tokens[:1], values=["mean"], mean_over="position")
    assert float(alone.loss_diff.abs().max()) < 1e-6


def test_means_over_a_reference() -> None:
    model, tokens, other = tiny_model(), tiny_tokens(), tiny_tokens(4, 8, seed=9)
    found = measure(model, tokens, heads=["1.0"], values=["mean"], effects=["direct"], reference=other)
    means = component_means(model, iterate_batches(model, other, progress=False))
    naive = Naive(model, tokens, None, torch.ones_like(tokens, dtype=torch.bool))
    taken = naive.output(components(model.cfg, ["1.0"])[0]) - means.z[1, 0]
    changed = naive.read(naive.final - taken @ model.W_O[1, 0], naive.final)
    wanted = naive.loss(changed) - naive.loss(naive.log_probs)
    assert torch.allclose(found.of().double(), wanted, atol=5e-6)
    assert not torch.allclose(found.of(), measure(model, tokens, heads=["1.0"], values=["mean"]).of(effect="direct"))


def test_resampling() -> None:
    model, tokens = tiny_model(), tiny_tokens(3, 7)
    found = measure(model, tokens, heads=["0.1"], values=["resample"], effects=["direct"], seed=4)
    naive = Naive(model, tokens, None, torch.ones_like(tokens, dtype=torch.bool))
    z = naive.output(components(model.cfg, ["0.1"])[0])
    by_shift = []
    for by in (1, 2):
        changed = naive.read(naive.final - (z - z.roll(by, dims=0)) @ model.W_O[0, 1], naive.final)
        by_shift.append((naive.loss(changed) - naive.loss(naive.log_probs)).float())
    assert sum(torch.allclose(found.of(), wanted, atol=5e-6) for wanted in by_shift) == 1
    assert torch.equal(
        found.of(), measure(model, tokens, heads=["0.1"], values=["resample"], seed=4).of(effect="direct")
    )
    seeds = {
        tuple(
            measure(model, tokens, heads=["0.1"], values=["resample"], effects=["direct"], seed=seed)
            .of()
            .flatten()
            .tolist()
        )
        for seed in range(6)
    }
    assert len(seeds) == 2

    # From a reference of the data's own rows, one of them alone: then every row gets that one's output.
    one = tokens[:1]
    drawn = measure(model, tokens, heads=["0.1"], values=["resample"], effects=["direct"], reference=one)
    changed = naive.read(naive.final - (z - z[:1]) @ model.W_O[0, 1], naive.final)
    wanted = (naive.loss(changed) - naive.loss(naive.log_probs)).float()
    assert torch.allclose(drawn.of(), wanted, atol=5e-6)
    assert float(drawn.of()[0].abs().max()) < 1e-6


def test_hooks_of_the_user_stay_in_force() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    seen: list[int] = []

    def double(activation: Tensor, hook: Any) -> Tensor:
        seen.append(len(activation))
        return 2 * activation

    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", double)]):
        found = measure(model, tokens, heads=["0.0", "0.1"])
        naive = Naive(model, tokens, None, torch.ones_like(tokens, dtype=torch.bool))
        for c, together in enumerate(component_sets(model.cfg, ["0.0", "0.1"])):
            wanted = naive.loss(naive.measure(together, "zero", "patched")) - naive.loss(naive.log_probs)
            assert torch.allclose(found.loss_diff[0, 0, c].double(), wanted, atol=5e-6)
    assert set(seen) == {2}  # runs are not laid side by side under them
    assert not any(point.has_hooks() for point in model.hook_dict.values())


@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_in", "attn.hook_q"])
@pytest.mark.parametrize("in_place", [False, True])
def test_hooks_where_a_patched_run_resumes_run_once(point: str, in_place: bool) -> None:
    model, tokens = tiny_model(), tiny_tokens()

    def steer(activation: Tensor, hook: Any) -> Tensor | None:
        if not in_place:
            return 1.5 * activation + 1
        activation.mul_(1.5).add_(1)
        return None

    model.add_perma_hook(f"blocks.1.{point}", steer)
    found = measure(model, tokens, heads=["1.0", "0.1"], values=["zero"], effects=["patched"])
    naive = Naive(model, tokens, None, torch.ones_like(tokens, dtype=torch.bool))
    for c, together in enumerate(component_sets(model.cfg, ["1.0", "0.1"])):
        wanted = naive.loss(naive.measure(together, "zero", "patched")) - naive.loss(naive.log_probs)
        torch.testing.assert_close(found.loss_diff[0, 0, c].double(), wanted, atol=5e-6, rtol=0)


def test_resampling_puts_no_padding_in() -> None:
    model = small_model()
    data = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]])
    reference = torch.tensor([[0, 5, 6, 7, 8, 0], [0, 5, 6, 0, 0, 0]])
    with pytest.raises(InvalidInputError, match="hold padding among their first 4 tokens"):
        for seed in range(8):
            measure(model, data, values=["resample"], reference=reference, seed=seed)
    measure(model, data, values=["resample"], reference=reference[:1])


def test_padding_on_the_left_is_no_context() -> None:
    model = small_model()
    tokens, mask = torch.tensor([[0, 0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    places = measure(model, tokens, attention_mask=mask).top_positions(9, component="0.0")
    words = [model.tokenizer.decode([token]) for token in (0, 5, 6)]
    assert {place.pos: place.context for place in places} == {3: "".join(words[:2]), 4: "".join(words)}


def test_means_and_errors() -> None:
    model, tokens = tiny_model(), tiny_tokens(12, 9)
    every = measure(model, tokens)
    means = measure(model, tokens, reduce="mean")
    assert means.tokens is None and means.loss_diff.shape == (2, 3, 6)
    for name in LOSSES:
        assert torch.allclose(getattr(means, name), getattr(every.mean(), name), atol=1e-6)
    errors = estimates(every.loss_diff).errors
    assert bool((errors > 0).all()) and torch.allclose(means.loss_diff_error.double(), errors, atol=1e-8, rtol=1e-5)
    assert torch.equal(means.loss_diff_error, every.loss_diff_error)
    assert means.mean() is means
    frame = means.to_frame()
    assert list(frame.columns) == ["component", "value", "effect", "loss_diff", "error", "kl"]
    assert len(frame) == 36 and frame.loss_diff[0] == float(means.loss_diff[0, 0, 0])


def test_ranking_and_positions() -> None:
    model = small_model()
    texts = ["Mary and John went to the store", "The old dog ran"]
    tokens = model.to_tokens(texts)
    found = measure(model, tokens, heads=["0.1", "1.0"])
    scores = found.top(2, value="mean", effect="direct")
    means = found.mean().loss_diff[1, 1]
    assert [score.label for score in scores] == [
        found.component_labels[int(at)] for at in means.argsort(descending=True)
    ]
    assert scores[0].loss_diff == float(means.max()) and "±" in str(scores)
    for largest in (True, False):
        places = found.top_positions(3, component=(1, 0), effect="direct", largest=largest, before=4)
        values = found.of("1.0", effect="direct")
        known = values[~values.isnan()].sort(descending=largest).values
        assert [place.loss_diff for place in places] == known[:3].tolist()
        for place in places:
            row = tokens[place.row].tolist()
            assert place.context == "".join(
                model.to_str_tokens(tokens[place.row, max(0, place.pos - 4) : place.pos + 1])
            )
            assert place.next_token == model.to_string([row[place.pos + 1]])
            before = model(tokens).softmax(-1)[place.row, place.pos, row[place.pos + 1]]
            assert place.before == pytest.approx(float(before), abs=1e-5)
            assert place.after == pytest.approx(
                place.before * float(torch.exp(torch.tensor(-place.loss_diff))), rel=1e-4
            )
    assert "when ablated" in str(places)


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = measure(tiny_model(), tiny_tokens())
    loaded = AblationResult.load(found.save(tmp_path / "ablation.safetensors"))
    for field in dataclasses.fields(found):
        mine, theirs = getattr(found, field.name), getattr(loaded, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs, field.name
    assert "help most" in str(found) and loaded.top_positions(1, component="0.0") == found.top_positions(
        1, component="0.0"
    )
    means = measure(tiny_model(), tiny_tokens(), reduce="mean")
    assert AblationResult.load(means.save(tmp_path / "means.safetensors")).tokens is None


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    model = tiny_model()
    data = [tiny_tokens(2, length, seed=length) for length in (7, 5, 9, 4)]
    options = {"heads": ["0.0", "1.1"], "values": ("zero", "mean", "resample"), "describe": "d"}
    whole = measure(model, data, **options)

    class Stop(Exception):
        pass

    def stopping() -> Any:
        for number, batch in enumerate(data):
            if number == 2:
                raise Stop
            yield batch

    class Stopping:
        def __iter__(self) -> Any:
            return stopping()

    # The means are gathered first; then the run stops between two flushes.
    out = tmp_path / "run"
    with pytest.raises(Stop):
        measure(model, Stopping(), **options, out=out)
    found = measure(model, data, **options, out=out, resume=True)
    for name in (*LOSSES, "loss_diff_error", "tokens"):
        assert torch.equal(getattr(found, name).nan_to_num(-9.0), getattr(whole, name).nan_to_num(-9.0)), name
    assert found.info == whole.info
    again = measure(model, data, **options, out=out, resume=True)
    assert torch.equal(again.loss_diff.nan_to_num(-9.0), whole.loss_diff.nan_to_num(-9.0))
    with pytest.raises(InvalidInputError, match="holds another run"):
        measure(model, data, **{**options, "heads": ["0.0"]}, out=out, resume=True)


def test_accumulators_merge() -> None:
    model, tokens = tiny_model(), tiny_tokens(4, 7)
    options = AblationOptions(("0.0", "1.2"), ("zero",), ("patched", "direct"), kl=True)
    parts = frozenset(components(model.cfg, options.components))
    batches = [
        Batch(tokens[rows], None, torch.ones_like(tokens[rows], dtype=torch.bool))
        for rows in (slice(0, 1), slice(1, 4))
    ]

    def gathered(some: list[Batch]) -> AblationAccumulator:
        accumulator = AblationAccumulator(model, options, Replacements(parts, ("zero",)), "d")
        for batch in some:
            accumulator.update(batch)
        return accumulator

    together, first, second = gathered(batches), gathered(batches[:1]), gathered(batches[1:])
    again = AblationAccumulator.from_state(first.state(), model, options, first.replacements, "d")
    again.merge(second)
    assert torch.equal(again.result().loss_diff, together.result().loss_diff)
    assert torch.allclose(again.result().loss_diff_error, together.result().loss_diff_error, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["2.0"]}, "2.0 does not exist"),
        ({"heads": []}, "no components are named"),
        ({"values": ["median"]}, "values must be one of 'zero', 'mean', 'resample'; got 'median'"),
        ({"values": []}, "values must be different ones of"),
        ({"effects": ["direct", "direct"]}, "effects must be different ones"),
        ({"effects": ["total"]}, "effects must be one of"),
        ({"effects": ["direct"], "excluding": ["1.0"]}, "add 'indirect' to effects"),
        ({"excluding": ["mlp0"]}, "excluding names heads, not MLPs"),
        ({"mean_over": "row"}, "mean_over must be one of"),
        ({"scale": "mine"}, "scale must be one of"),
        ({"reduce": "sum"}, "reduce must be one of"),
        ({"values": ["resample"], "reference": "text"}, "draws rows of a reference of tokens"),
        ({"values": ["resample"], "reference": torch.zeros(2, 3, dtype=torch.long)}, "must be at least as long"),
        ({"resume": True}, "say which by out"),
        ({"flush_every": 0}, "flush_every must be at least 1"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidInputError, TypeError)) as caught:
        measure(tiny_model(), tiny_tokens(), **options)
    # The type checker of the tests may be first to refuse a name that is not among a Literal's.
    assert re.search(message, str(caught.value)) or f"parameter {next(iter(options))}=" in str(caught.value)


def test_data_that_will_not_do_is_told() -> None:
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="no position counts"):
        measure(model, tiny_tokens(2, 1), values=["zero"])
    with pytest.raises(InvalidInputError, match="used up after the first time"):
        measure(model, iter([tiny_tokens()]))
    with pytest.raises(InvalidInputError, match="a row is alone in its batch"):
        measure(model, tiny_tokens(1, 5), values=["resample"])
    tokens, mask = padded_tokens()
    with pytest.raises(InvalidInputError, match="these rows hold padding"):
        measure(model, tokens, attention_mask=mask, values=["resample"])
    found = measure(model, tiny_tokens(), heads=["0.0"], reduce="mean")
    with pytest.raises(InvalidInputError, match="holds means only"):
        found.top_positions()
    both = measure(model, tiny_tokens(), heads=["0.0", "0.1"])
    with pytest.raises(InvalidInputError, match="2 components, 0.0, 0.1, ...; say which one: component='0.0'"):
        both.top_positions()
    with torch.no_grad():
        model.blocks[1].attn.W_O[0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        measure(model, tiny_tokens(), heads=["0.0"])
