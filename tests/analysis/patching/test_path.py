"""Path patching against three full forward passes with hooks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget
from three_passes import ThreePasses, random_task
from tiny import tiny_model
from torch import Tensor, nn

from headscope import HookedTransformer
from headscope.analysis.patching.path import path_patch, path_patch_sweep
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.prompts import two_runs
from headscope.analysis.prompts.metrics import AnswerMetric, reads
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, NotFiniteError, UnknownNameError
from headscope.model.parts.attention import Attention

SHAPES: dict[str, dict[str, Any]] = {
    "mlps": {},
    "grouped": {"n_heads": 4, "n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True, "normalization_type": "RMS"},
    "attn_only": {"attn_only": True},
    "shortformer": {"positional_embedding_type": "shortformer", "normalization_type": "LNPre"},
    "bidirectional": {"attention_dir": "bidirectional", "output_logits_soft_cap": 2.0, "normalization_type": None},
    "norms on both sides": {"use_normalization_before_and_after": True, "positional_embedding_type": "rotary"},
    "norms behind": {"use_normalization_after_only": True, "normalization_type": "RMS", "use_qk_norm": True},
    "llama": {
        "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "gated_mlp": True,
        "normalization_type": "RMS",
    },
    "a window, ALiBi, capped": {
        "use_local_attn": True, "window_size": 3, "attn_types": ["global", "local", "local"],
        "positional_embedding_type": "alibi", "attn_scores_soft_cap": 2.0,
    },
    "experts": {"num_experts": 3, "experts_per_token": 2, "clip_qkv": 0.4},
}  # fmt: skip


NOISING: dict[str, Any] = {"direction": "noising", "scale": "metric"}


def three_layers(shape: str = "mlps", **fields: Any) -> HookedTransformer:
    return tiny_model(n_layers=3, **SHAPES[shape], **fields)


CASES = (
    (["0.1"], ["2.1.q"]),
    (["embed"], ["1.0.k"]),
    (["0.0", "1.2"], ["1.0.k", "2.2.v"]),
    (["embed", "0.2", "1.1"], ["1.0.q", "1.0.k", "1.0.v", "2.0.q", "2.1.k"]),
    (["1.0", "2.2"], ["final"]),
    (["0.0"], ["mlp1"]),
    (["mlp0"], ["2.1.q", "2.0.k"]),
    (["mlp0", "0.1", "mlp1"], ["mlp1", "2.1.q", "mlp2"]),
    (["embed", "mlp1"], ["final"]),
)


@pytest.mark.parametrize(
    ("shape", "noising", "freeze_mlps"),
    [(shape, each, each) for shape in SHAPES for each in (True, False)]
    + [("mlps", True, False), ("mlps", False, True)],
)
def test_paths_are_those_of_three_passes(shape: str, noising: bool, freeze_mlps: bool) -> None:
    model, task = three_layers(shape), random_task()
    reference = ThreePasses(model, task, noising=noising)
    for senders, receivers in CASES:
        if model.cfg.attn_only and any("mlp" in name for name in (*senders, *receivers)):
            continue
        direction = "noising" if noising else "denoising"
        found = path_patch(
            model,
            task,
            senders=senders,
            receivers=receivers,
            direction=direction,
            scale="metric",
            freeze_mlps=freeze_mlps,
        )
        expected = reference.change(senders, receivers, freeze_mlps=freeze_mlps)
        assert expected.abs().max() > 1e-6, (senders, receivers)
        torch.testing.assert_close(found.per_prompt, expected, atol=1e-11, rtol=1e-7)
        assert float(found) == pytest.approx(float(expected.mean()), abs=1e-11)


@pytest.mark.parametrize("pad_left", [False, True])
def test_a_sweep_is_one_path_after_another(set_budget: SetBudget, pad_left: bool) -> None:
    # A few prompts at a time, and a few senders beside each other.
    set_budget(batch_tokens=30)
    model, task = three_layers(), random_task((6, 4, 5, 6, 3, 6, 6), pad_left=pad_left)
    reference = ThreePasses(model, task)
    for receivers, senders, both in (
        (["2.1.q", "2.1.v"], "components", (pad_left,)),
        (["final"], "heads", (True, False)),
        (["mlp1"], "components", (not pad_left,)),
    ):
        for freeze_mlps in both:
            found = path_patch_sweep(
                model, task, receivers=receivers, senders=senders, freeze_mlps=freeze_mlps, **NOISING, progress=False
            )
            width = 4 if senders == "components" else 3
            assert found.values.shape == (3, width) and found.per_prompt.shape == (3, width, 7)
            for layer in range(3):
                for at in range(width):
                    named = f"mlp{layer}" if at == 3 else f"{layer}.{at}"
                    expected = reference.change([named], receivers, freeze_mlps=freeze_mlps)
                    torch.testing.assert_close(found.per_prompt[layer, at], expected, atol=1e-11, rtol=1e-7)
                    label = found.sender_labels[layer * width + at]
                    assert label == (f"mlp{layer}" if at == 3 else named)
            late = found.values[2] if receivers != ["final"] else found.values[:0]
            assert bool((late == 0).all())
            torch.testing.assert_close(found.values, found.per_prompt.mean(-1))


@pytest.mark.parametrize("noising", [True, False])
def test_prompts_that_begin_at_different_places(noising: bool) -> None:
    """A token that is real in one run alone changes all behind it, though the tokens there are the same."""
    model, task = three_layers("mlps"), random_task((6, 6, 6))
    assert task.corrupted_tokens is not None
    corrupted = torch.where(torch.arange(6) < 4, task.clean_tokens, task.corrupted_tokens)
    task = replace(task, corrupted_tokens=corrupted, corrupted_mask=task.attention_mask & (torch.arange(6) > 0))
    by_hand = ThreePasses(model, task, noising=noising)
    runs = list(zip((task.clean_tokens, corrupted), task.masks, strict=True))
    (base, base_mask), (other, other_mask) = runs if noising else runs[::-1]
    by_hand.given = {"attention_mask": base_mask}
    logits, by_hand.base = model.run_with_cache(base, **by_hand.given)
    by_hand.before, by_hand.other = by_hand.scored(logits), model.run_with_cache(other, attention_mask=other_mask)[1]
    for sender, receiver in (("0.1", "1.0.v"), ("0.2", "2.1.k"), ("0.0", "mlp2")):
        direction: Any = "noising" if noising else "denoising"
        found = path_patch(model, task, senders=sender, receivers=receiver, direction=direction, scale="metric")
        expected = by_hand.change([sender], [receiver], where=task.masks[1])
        torch.testing.assert_close(found.per_prompt, expected, atol=1e-11, rtol=1e-9)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("shape", ["mlps", "bidirectional"])
@pytest.mark.parametrize("n_many", [1, 32])
def test_prompts_run_from_where_they_change(shape: str, n_many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_runs, "_MANY_CELLS", n_many)  # prompts that are alike by themselves, or all together
    model, task = three_layers(shape), random_task((6, 4, 6, 5, 6, 3))
    assert task.corrupted_tokens is not None
    changes_at = torch.tensor([3, 1, 4, 2, 3, 3])  # the last one nowhere before its end
    same = torch.arange(6) < changes_at[:, None]
    task = replace(task, corrupted_tokens=torch.where(same, task.clean_tokens, task.corrupted_tokens))
    scorer = two_runs.Scorer(model, task)
    assert scorer.changes_at.tolist() == changes_at.tolist()
    batches = [rows.tolist() for rows in scorer.batches(100, 6)]
    assert batches == ([[1], [3], [5], [0, 4], [2]] if n_many == 1 else [[0, 1, 2, 3, 4, 5]])
    reference = ThreePasses(model, task)
    for receivers in (["2.1.q", "2.1.v"], ["final"]):
        found = path_patch_sweep(model, task, receivers=receivers, **NOISING, progress=False)
        assert found.per_prompt is not None
        for layer, head in ((0, 1), (1, 2)):
            expected = reference.change([f"{layer}.{head}"], receivers, freeze_mlps=True)
            torch.testing.assert_close(found.per_prompt[layer, head], expected, atol=1e-11, rtol=1e-7)
        assert found.per_prompt[:2, :, :5].abs().max() > 1e-6
        if shape == "mlps":
            assert bool((found.per_prompt[..., 5] == 0).all())


def test_positions_are_those_of_the_senders() -> None:
    model, task = three_layers(), random_task()
    reference = ThreePasses(model, task)
    for positions, at in (
        ("end", task.positions[:, None]),
        ("S2", task.word_idx["S2"][:, None]),
        (1, torch.ones(3, 1, dtype=torch.long)),
        (["S2", 0], torch.stack([task.word_idx["S2"], torch.zeros(3, dtype=torch.long)], 1)),
        (torch.tensor([5, 0, 2]), torch.tensor([[5], [0], [2]])),
    ):
        where = torch.zeros_like(task.attention_mask).scatter(1, at, True)
        for senders, receivers in ((["0.1", "mlp1"], ["2.1.q", "2.2.v"]), (["0.0"], ["final"]), (["embed"], ["mlp0"])):
            found = path_patch(
                model, task, senders=senders, receivers=receivers, positions=positions, freeze_mlps=False, **NOISING
            )
            expected = reference.change(senders, receivers, where=where, freeze_mlps=False)
            torch.testing.assert_close(found.per_prompt, expected, atol=1e-11, rtol=1e-7)
            assert found.info.n_positions == int(where.sum())
    assert path_patch(model, task, senders="0.1", receivers="final", positions=["S2", 0]).positions == "S2, 0"


def test_all_paths_together_are_the_whole_patch() -> None:
    # Into the final state, from everything that writes to it: nothing of the base run is left.
    model, task = three_layers(), random_task()
    everything = ["embed", *(f"{layer}.{head}" for layer in range(3) for head in range(3)), "mlp0", "mlp1", "mlp2"]
    for direction, sign in (("noising", -1.0), ("denoising", 1.0)):
        found = path_patch(model, task, senders=everything, receivers="final", direction=direction)
        assert float(found) == float(found.normalized) == pytest.approx(sign, abs=1e-9)
        assert float(found.change) == pytest.approx(sign * float(found.clean - found.corrupted), abs=1e-9)


def test_senders_that_go_together_and_a_metric_of_ones_own() -> None:
    model, task = three_layers(), random_task()
    pairs = ["0.1", ["0.0", "1.2"], "mlp0+1.1", (1, 0)]
    options: dict[str, Any] = {"receivers": "2.0.q, 2.1.v", "progress": False}
    usual = path_patch_sweep(model, task, senders=pairs, **options)
    assert usual.sender_labels == ("0.1", "0.0+1.2", "mlp0+1.1", "1.0") and usual.values.shape == (4,)
    assert usual.receiver_labels == ("2.0.q", "2.1.v")
    for at, named in enumerate((["0.1"], ["0.0", "1.2"], ["mlp0", "1.1"], ["1.0"])):
        one = path_patch(model, task, senders=named, receivers=["2.0.q", (2, 1, "v")])
        assert float(one) == pytest.approx(float(usual.values[at]), abs=1e-12)
    answers = AnswerMetric.of(task)
    pairs.append("embed")
    for receivers in ("2.0.q, 2.1.v", "final"):
        options["receivers"] = receivers
        usual = path_patch_sweep(model, task, senders=pairs, **options)
        for metric in (task.logit_difference, answers, reads(at_answers(task), task.positions)):
            own = path_patch_sweep(model, task, senders=pairs, metric=metric, **options)
            torch.testing.assert_close(own.values, usual.values, atol=1e-12, rtol=0)
            torch.testing.assert_close((own.clean, own.corrupted), (usual.clean, usual.corrupted))
            assert (own.per_prompt is None) is (metric is not answers)
    everywhere = path_patch(model, task, senders="0.0", receivers="final", metric=lambda logits: logits[:, 1, 3].sum())
    assert float(everywhere) != 0
    last = path_patch(model, task, senders="0.0", receivers="final", positions=0, metric=answers)
    assert float(last) == 0
    with pytest.raises(InvalidInputError, match=r"the metric must give one number.*shape \[3, 6, 23\]"):
        path_patch(model, task, senders="0.0", receivers="final", metric=lambda logits: logits)


def at_answers(task: Task) -> Any:
    return lambda logits: task.logit_difference(logits[:, 0])


def test_an_unembedding_of_ones_own() -> None:
    model, task = three_layers(), random_task()
    expected = path_patch_sweep(model, task, receivers="final", progress=False)
    W_U, b_U = model.W_U.detach(), model.b_U.detach()

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ W_U + b_U

    model.unembed = Other()
    found = path_patch_sweep(model, task, receivers="final", progress=False)
    torch.testing.assert_close(found.values, expected.values)


def test_the_model_is_as_before() -> None:
    model, task = three_layers("grouped"), random_task()
    with torch.no_grad():
        before = model(task.clean_tokens)
        path_patch_sweep(model, task, receivers="2.1.k", freeze_mlps=False, progress=False)
        assert torch.equal(model(task.clean_tokens), before)
    assert not model.cfg.ungroup_grouped_query_attention
    assert not any(point.has_hooks() for point in model.hook_points())
    assert torch.is_grad_enabled() and all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("senders", "receivers", "kind", "said"),
    [
        ("0.0", "2.1.w", UnknownNameError, r"Unknown receiver '2.1.w'. Did you mean '2.1.[qkv]'"),
        ("0.0", "finale", UnknownNameError, "Did you mean 'final'"),
        ("embd", "final", UnknownNameError, "Unknown sender 'embd'. Did you mean 'embed'"),
        ("0.0", "3.1.q", InvalidInputError, "3.1 does not exist: layers of .* are 0 to 2"),
        ("0.5", "final", InvalidInputError, "0.5 does not exist: heads of .* are 0 to 2"),
        ("0.0", "mlp1.q", InvalidInputError, "mlp1 has one input, not q, k and v"),
        ("2.0", "2.1.q", InvalidInputError, "no path leads from 2.0 to 2.1.q: 2.1.q reads the stream before 2.0 w"),
        (["0.0", "mlp2"], ["1.0.k", "mlp2"], InvalidInputError, "no path leads from mlp2 to 1.0.k, mlp2"),
        ("0.0", ["final", "1.0.q"], InvalidInputError, "'final' is a receiver by itself"),
        (["0.0", (0, 0)], "final", InvalidInputError, "sender 0.0 is named twice"),
        ("0.0", ["1.0", "1.0.k"], InvalidInputError, "receiver 1.0.k is named twice"),
        ([], "final", InvalidInputError, "no sender is named"),
        ("0.0", [], InvalidInputError, "no receiver is named"),
    ],
)
def test_ends_that_are_none(senders: Any, receivers: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        path_patch(three_layers(), random_task(), senders=senders, receivers=receivers)


def test_what_cannot_be_patched_is_told() -> None:
    model, task = three_layers(), random_task()

    def patch(**given: Any) -> PathPatchingResult:
        return path_patch(model, **{"task": task, "senders": "0.0", "receivers": "final", **given})

    with pytest.raises(InvalidInputError, match="no path leads from 1.0 to mlp1: mlp1 reads what attention reads"):
        path_patch(three_layers("parallel"), task, senders="1.0", receivers="mlp1")
    with pytest.raises(InvalidInputError, match="no path leads from 2.0"):
        path_patch_sweep(model, task, senders=["0.0", "2.0"], receivers="2.1.q")
    with pytest.raises(InvalidInputError, match="no senders are named"):
        path_patch_sweep(model, task, senders=[], receivers="2.1.q")
    with torch.no_grad():
        model.blocks[1].attn.W_O[0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="final residual stream"):
        patch()


def test_results_print_and_are_kept(tmp_path: Path) -> None:
    model, task = three_layers(), random_task()
    found = path_patch_sweep(model, task, receivers="mlp2", senders="components", positions="end", progress=False)
    again = PathPatchingResult.load(found.save(tmp_path / "paths.safetensors"))
    assert str(again) == str(found) and torch.equal(again.values, found.values)
    assert again.sender_labels == found.sender_labels and again.freeze_mlps is True
    top = found.top(3)
    sizes = found.values.abs().flatten().sort(descending=True)
    assert [score.label for score in top] == [found.sender_labels[at] for at in sizes.indices[:3]]
    assert found.top(1, largest=True)[0].value == float(found.change.max())
    assert found.top(1, largest=False)[0].value == float(found.change.min())
    assert top[0].normalized == pytest.approx(top[0].value / float(found.clean - found.corrupted))
    for said in ("senders -> mlp2; denoising, MLPs frozen, positions: end", "prompt 0", f"{float(found.clean):+.4f}"):
        assert said in str(found)
    frame = found.to_frame()
    evidence = ["error", "low", "high", "p_value", "significant"]
    assert list(frame.columns) == ["sender", "receivers", "change", "normalized", *evidence] and len(frame) == 12
    assert frame.normalized.tolist() == found.values.flatten().tolist()
    assert frame.change.tolist() == found.change.flatten().tolist()
    with pytest.raises(InvalidInputError, match="these are 12 values, not one"):
        float(found)
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        found.top(0)


def test_nothing_to_take_shares_of() -> None:
    model, task = three_layers(), random_task()
    options: dict[str, Any] = {"receivers": "final", "metric": lambda logits: 1.0, "progress": False}
    found = path_patch_sweep(model, task, scale="metric", **options)
    assert float(found.values.abs().max()) == 0 and found.to_frame().normalized.isna().all()
    with pytest.raises(InvalidInputError, match=r"clean and the corrupted metric are both 1\.0000"):
        _ = found.normalized
    with pytest.raises(InvalidInputError, match=r"clean and the corrupted metric are both 1\.0000"):
        path_patch_sweep(model, task, **options)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "attn_only"])
@pytest.mark.parametrize("pad_left", [True, False])
def test_some_positions_alone_are_those_of_three_passes(shape: str, pad_left: bool) -> None:
    model, task = three_layers(shape), random_task((7, 5), pad_left=pad_left)
    reference = ThreePasses(model, task)
    where = torch.zeros_like(task.attention_mask)
    where[torch.arange(2), task.positions - 1] = True
    for receivers in (["1.1.v"], ["1.0.k"], ["2.1.q", "2.0.v"], ["1.1.k", "mlp2"], ["mlp1"]):
        found = path_patch(model, task, senders=["0.1", "embed"], receivers=receivers, positions="S2", **NOISING)
        expected = reference.change(["0.1", "embed"], receivers, where=where)
        torch.testing.assert_close(found.per_prompt, expected, atol=1e-11, rtol=1e-7)
        assert found.runs == "suffix" and "runs: suffix" in str(found)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("attn_only", "bidirectional")])
def test_the_third_pass_runs_what_is_behind_the_receivers(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = three_layers(shape), random_task((7, 5))
    queries: list[int] = []

    def forward(self: Any, x: Tensor, *args: Any, run: Any = Attention.forward, **kwargs: Any) -> Tensor:
        queries.append(x.shape[:2].numel())
        return run(self, x, *args, **kwargs)

    monkeypatch.setattr(Attention, "forward", forward)
    path_patch(model, task, senders="0.1", receivers="1.1.v", positions="S2", **NOISING)
    # Both runs whole; then layer 1 is taken up behind its values, and of the last layer one query is read.
    assert queries == [14] * 6 + [2]
    queries.clear()
    path_patch(model, task, senders="0.1", receivers=["1.1.v", "2.1.q"], positions="S2", **NOISING)
    assert queries == [14] * 6 + [2 * (7 - 3)]  # queries that are set are made at all positions from S2 on
    queries.clear()
    path_patch(model, task, senders="0.1", receivers="final", positions="S2", **NOISING)
    assert queries == [14] * 6


def test_a_name_mover_of_the_demo_writes_the_name() -> None:
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset(N=30, tokenizer=model.tokenizer, prepend_bos=True))
    for direction, sign in (("denoising", 1), ("noising", -1)):
        found = path_patch_sweep(model, task, receivers="final", positions="end", direction=direction, progress=False)
        strongest = found.top(1)[0]
        assert sign * strongest.normalized > 0.2
        alone = path_patch(model, task, senders=strongest.label, receivers="final", direction=direction, scale="metric")
        assert sign * float(alone) > 1


def test_all_senders_are_the_embedding_and_every_component() -> None:
    model, task = tiny_model(), random_task()
    options: dict[str, Any] = {"receivers": "1.0.k", "progress": False}
    every = path_patch_sweep(model, task, senders="all", **options)
    assert every.sender_labels[0] == "embed" and len(every.sender_labels) == 1 + 2 * (3 + 1)
    fed = list(every.sender_labels[:5])
    listed = path_patch_sweep(model, task, senders=fed, **options)
    torch.testing.assert_close(every.values[:5], listed.values)
    assert every.values[:5].abs().min() > 0 and (every.values[5:] == 0).all()
