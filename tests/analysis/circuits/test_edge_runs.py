"""Runs of circuits against a loop over senders for every reader, through the model's hook points."""

from functools import partial
from typing import Any

import pytest
import torch
from edges_by_hand import SHAPES, EdgesByHand, three_layers
from families_table import VOCABULARY, hf_model
from sizes import SetBudget
from three_passes import random_task

from headscope import HookedTransformer
from headscope.analysis.circuits.edge_runs import CircuitRuns
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.prompts.metrics import reads
from headscope.errors import InvalidInputError, UnknownNameError


def some_edges(graph: Graph, share: float, *, seed: int = 0) -> torch.Tensor:
    drawn = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(seed)) < share
    return drawn & graph.allowed


@pytest.mark.parametrize("shape", SHAPES)
def test_circuits_are_those_of_a_loop_over_senders(shape: str) -> None:
    model = three_layers(shape)
    task = random_task(pad_left=shape == "grouped, rotary")
    by_hand = EdgesByHand(model, task)
    kept = torch.stack([some_edges(by_hand.graph, share, seed=at) for at, share in enumerate((0.5, 0.15, 0.9))])
    for ablation in ("patch", "mean", "zero") if shape in ("mlps", "norms behind", "grouped, rotary") else ("patch",):
        found = CircuitRuns(model, task, ablation=ablation).measure(kept)
        expected = torch.stack([by_hand.run(each, ablation) for each in kept])
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)
        assert expected.std(0).min() > 1e-4


def test_a_mixer_is_a_sender_and_a_receiver() -> None:
    model = HookedTransformer.from_hf(hf_model("falcon_h1"), dtype="float64")
    task = random_task(d_vocab=VOCABULARY)
    by_hand = EdgesByHand(model, task)
    assert {"mixer0", "mlp0", "0.0"} <= set(by_hand.graph.sender_labels) and "mixer1" in by_hand.graph.receiver_labels
    for share in (0.5, 0.8):
        kept = some_edges(by_hand.graph, share)
        found = CircuitRuns(model, task).measure(kept)
        torch.testing.assert_close(found, by_hand.run(kept), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(shape: str) -> None:
    model, task = three_layers(shape), random_task()
    runs = CircuitRuns(model, task)
    options = {"attention_mask": task.attention_mask}
    clean, corrupted = (
        task.logit_difference(model(tokens, **options), per_prompt=True).detach()
        for tokens in (task.clean_tokens, task.corrupted_tokens)
    )
    torch.testing.assert_close(runs.measure(runs.graph.allowed), clean, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(runs.measure(runs.graph.allowed & False), corrupted, atol=1e-11, rtol=1e-9)
    for ablation in ("mean", "zero"):
        torch.testing.assert_close(CircuitRuns(model, task, ablation=ablation).measure(runs.graph.allowed), clean)


def test_a_circuit_of_nodes_is_a_run_with_the_others_ablated() -> None:
    model, task = three_layers(), random_task()
    runs = CircuitRuns(model, task)
    options = {"attention_mask": task.attention_mask}
    cache = model.run_with_cache(task.corrupted_tokens, **options)[1]

    def of_corrupted(value: torch.Tensor, hook: Any, part: Any) -> torch.Tensor:
        value = value.clone()
        value[:, :, part] = cache[hook.name][:, :, part]
        return value

    for left_out, name, part in (
        ("0.1", "blocks.0.attn.hook_z", 1),
        ("2.0", "blocks.2.attn.hook_z", 0),
        ("mlp1", "blocks.1.hook_mlp_out", slice(None)),
    ):
        kept = runs.graph.of_nodes(label for label in runs.graph.sender_labels[1:] if label != left_out)
        hooks = [(name, partial(of_corrupted, part=part))]
        logits = model.run_with_hooks(task.clean_tokens, fwd_hooks=hooks, **options)
        torch.testing.assert_close(runs.measure(kept), task.logit_difference(logits, per_prompt=True).detach())


def test_what_no_path_goes_along_changes_nothing() -> None:
    model, task = three_layers(), random_task()
    runs = CircuitRuns(model, task)
    for seed in range(3):
        kept = some_edges(runs.graph, 0.12, seed=seed)
        pruned = runs.graph.pruned(kept)
        assert pruned.sum() < kept.sum() and not bool((pruned & ~kept).any())
        assert torch.equal(runs.graph.pruned(pruned), pruned)
        torch.testing.assert_close(runs.measure(kept), runs.measure(pruned), atol=1e-12, rtol=1e-10)
        assert set(runs.graph.nodes_of(kept)) == set(runs.graph.nodes_of(pruned))


def test_prompts_in_batches_and_metrics_of_ones_own(set_budget: SetBudget) -> None:
    model, task = three_layers(), random_task((6, 4, 5, 6, 3), pad_left=True)
    kept = some_edges(CircuitRuns(model, task).graph, 0.5)
    together = {ablation: CircuitRuns(model, task, ablation=ablation).measure(kept) for ablation in ("patch", "mean")}

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 3].square().mean()

    alone = CircuitRuns(model, task, metric=metric).measure(torch.stack([kept, kept]))
    set_budget(batch_tokens=12, kept_bytes=3000)
    for ablation, expected in together.items():
        torch.testing.assert_close(CircuitRuns(model, task, ablation=ablation).measure(kept), expected)
    few = CircuitRuns(model, task, metric=reads(metric, -1)).measure(kept)
    assert alone.shape == (2,) and few.shape == ()
    torch.testing.assert_close(alone, few.expand(2))


def test_graphs_have_the_edges_of_their_models() -> None:
    plain, parallel = (Graph.of(three_layers(shape).cfg) for shape in ("mlps", "parallel"))
    for graph, beside in ((plain, True), (parallel, False)):
        at = graph.receiver_labels.index("mlp1")
        assert bool(graph.allowed[graph.sender_labels.index("1.2"), at]) is beside
        assert bool(graph.allowed[graph.sender_labels.index("0.2"), at])
        assert not bool(graph.allowed[graph.sender_labels.index("mlp1"), at])
        assert bool(graph.allowed[:, -1].all()) and graph.receiver_labels[-1] == "final"
    named = ("0.2 -> mlp1", "mlp1 -> 2.0.q", "mlp1 -> 2.0.k", "mlp1 -> 2.0.v")
    assert plain.labels_of(plain.of_edges(["0.2->mlp1", ("mlp1", "2.0")])) == named
    grouped = Graph.of(three_layers("grouped, rotary").cfg)
    assert [label for label in grouped.receiver_labels if label.startswith("2.")][4:8] == [f"2.{h}.k" for h in range(4)]
    assert grouped.receiver_labels[grouped.readers(2, "attn", "v")] == tuple(f"2.{head}.v" for head in range(4))
    assert grouped.sender_labels[grouped.writers(1, "attn")] == tuple(f"1.{head}" for head in range(4))


def test_what_is_no_circuit_is_refused() -> None:
    model, task = three_layers(), random_task()
    runs = CircuitRuns(model, task)
    graph = runs.graph
    with pytest.raises(InvalidInputError, match=r"mask of edges, bool \[sender, receiver\] = \[13, 31\]"):
        runs.measure(graph.allowed[:, 1:])
    with pytest.raises(InvalidInputError, match=r"no edge from 0\.0 to 0\.0\.q, which reads before"):
        runs.measure(torch.ones_like(graph.allowed))
    with pytest.raises(InvalidInputError, match=r"no edge from mlp1 to 1\.0\.q"):
        graph.of_edges(["mlp1 -> 1.0.q"])
    with pytest.raises(InvalidInputError, match="an edge has two ends"):
        graph.of_edges(["mlp1"])
    with pytest.raises(UnknownNameError, match="Unknown receiver '9.0'"):
        graph.of_edges([("mlp1", "9.0")])
    with pytest.raises(UnknownNameError, match="Unknown sender 'mlp7'"):
        graph.of_edges([("mlp7", "final")])
    with pytest.raises(UnknownNameError, match="Unknown component"):
        graph.of_nodes(["mlp7"])
    with model.hooks([("blocks.1.hook_mlp_out", lambda value, hook: 0 * value)]):
        with pytest.raises(InvalidInputError, match=r"hooks on blocks\.1\.hook_mlp_out"):
            CircuitRuns(model, task)
    model.blocks[1].hook_resid_mid = torch.nn.Identity()
    model.setup()
    with pytest.raises(InvalidInputError, match=r"Identity stands at blocks\.1\.hook_resid_mid"):
        CircuitRuns(model, task)
