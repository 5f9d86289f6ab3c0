"""circuit-tracer on headscope, its code unchanged: graphs, interventions, generation, pruning, files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packages import marks
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from headscope import HookedTransformerConfig

pytestmark = [*marks("circuit_tracer"), pytest.mark.usefixtures("alias")]

PROMPT = "Mary and John went to the shop"


def random_transcoders(cfg: Any, reads: str, writes: str, *, skip: bool = False) -> Any:
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    transcoders = {
        layer: SingleLayerTranscoder(cfg.d_model, 32, torch.nn.ReLU(), layer, skip_connection=skip, dtype=torch.float32)
        for layer in range(cfg.n_layers)
    }
    generator = torch.Generator().manual_seed(0)
    for transcoder in transcoders.values():
        for parameter in transcoder.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return TranscoderSet(transcoders, reads, writes, scan="random")


def random_cross_layer_transcoder(cfg: Any) -> Any:
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

    transcoder = CrossLayerTranscoder(
        cfg.n_layers, 32, cfg.d_model, lazy_decoder=False, feature_input_hook="hook_resid_mid",
        feature_output_hook="hook_mlp_out", scan="random", dtype=torch.float32,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in transcoder.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return transcoder


def gemma_like(d_vocab: int) -> HookedTransformerConfig:
    """Post-norms, soft caps, grouped queries, windows: what circuit-tracer's own models have."""
    return HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=32, d_head=8, n_heads=4, n_key_value_heads=2, d_mlp=48, d_vocab=d_vocab,
        act_fn="gelu_pytorch_tanh", normalization_type="RMS", final_rms=True, gated_mlp=True,
        use_normalization_before_and_after=True, positional_embedding_type="rotary", rotary_dim=8,
        attn_scores_soft_cap=50.0, output_logits_soft_cap=30.0, use_local_attn=True, window_size=4,
        attn_types=["global", "local"], initializer_range=0.2, seed=0, model_name="gemma-2-tiny",
        original_architecture="Gemma2ForCausalLM", device="cpu",
    )  # fmt: skip


def check_edges(model: Any, graph: Any) -> None:
    """Each edge is the change of its target when its source is changed, everything that is not linear frozen."""
    edges, n_logits = graph.adjacency_matrix, len(graph.logit_targets)
    features = graph.active_features[graph.selected_features]
    assert len(features) > 20
    at = tuple(features.T)
    with torch.no_grad(), model.zero_softcap():
        before, before_acts = model.get_activations(graph.input_tokens, apply_activation_function=False)
        for node in range(0, len(features), len(features) // 8):
            layer, pos, feature = features[node].tolist()
            doubled = 2 * graph.activation_values[graph.selected_features[node]]
            after, after_acts = model.feature_intervention(
                graph.input_tokens,
                [(layer, pos, feature, doubled)],
                constrained_layers=range(model.cfg.n_layers),
                apply_activation_function=False,
            )
            change = (after - before)[0, -1]
            logits = (change - change.mean())[graph.logit_token_ids]
            torch.testing.assert_close(logits, edges[-n_logits:, node], rtol=1e-4, atol=1e-5)
            acts = (after_acts - before_acts)[at]
            others = torch.arange(len(features)) != node
            torch.testing.assert_close(acts[others], edges[: len(features), node][others], rtol=1e-4, atol=1e-5)


def attributed(model: Any, prompt: str | Tensor = PROMPT) -> Any:
    from circuit_tracer import attribute

    return attribute(prompt, model, max_n_logits=5, desired_logit_prob=0.9, batch_size=16)


def test_a_graph_of_a_saved_model(folder: Path, tmp_path: Path) -> None:
    from circuit_tracer import Graph, ReplacementModel
    from circuit_tracer.graph import compute_graph_scores, prune_graph
    from circuit_tracer.utils import create_graph_files

    cfg = HookedTransformerConfig.from_dict({"n_layers": 2, "d_model": 24, "n_ctx": 1, "d_head": 8, "attn_only": True})
    transcoders = random_transcoders(cfg, "ln2.hook_normalized", "hook_mlp_out")
    model = ReplacementModel.from_pretrained_and_transcoders(str(folder), transcoders, device="cpu")
    graph = attributed(model)
    assert graph.input_string == f"<bos> {PROMPT}"
    check_edges(model, graph)
    pruned = prune_graph(graph)
    assert 8 < pruned.node_mask.sum() < len(graph.adjacency_matrix)
    assert all(0 < score < 1 for score in compute_graph_scores(graph))
    graph.to_pt(str(tmp_path / "graph.pt"))
    again = Graph.from_pt(str(tmp_path / "graph.pt"))
    assert torch.equal(again.adjacency_matrix, graph.adjacency_matrix)
    assert (again.cfg.model_name, again.cfg.tokenizer_name) == ("tiny", str(folder))
    create_graph_files(graph, "tiny-graph", str(tmp_path / "files"))
    assert (tmp_path / "files" / "tiny-graph.json").exists()


@pytest.mark.parametrize(
    ("reads", "writes", "skip"),
    [
        ("ln2.hook_normalized", "hook_mlp_out", False),
        ("mlp.hook_in", "mlp.hook_out", True),
        ("hook_resid_mid", "hook_mlp_out", False),
        ("hook_mlp_in", "hook_mlp_out", False),
    ],
)
def test_graphs_of_a_gemma_like_model(tokenizer: PreTrainedTokenizerFast, reads: str, writes: str, skip: bool) -> None:
    from circuit_tracer import ReplacementModel

    cfg = gemma_like(len(tokenizer))
    transcoders = random_transcoders(cfg, reads, writes, skip=skip)
    model = ReplacementModel.from_config(cfg, transcoders, tokenizer=tokenizer)
    check_edges(model, attributed(model))


def test_cross_layer_transcoders(tokenizer: PreTrainedTokenizerFast) -> None:
    from circuit_tracer import ReplacementModel

    cfg = gemma_like(len(tokenizer))
    model = ReplacementModel.from_config(cfg, random_cross_layer_transcoder(cfg), tokenizer=tokenizer)
    check_edges(model, attributed(model, torch.tensor([0, 5, 8, 9])))


def test_generation_under_an_intervention(folder: Path) -> None:
    from circuit_tracer import ReplacementModel

    cfg = HookedTransformerConfig.from_dict({"n_layers": 2, "d_model": 24, "n_ctx": 1, "d_head": 8, "attn_only": True})
    transcoders = random_transcoders(cfg, "mlp.hook_in", "mlp.hook_out", skip=True)
    model = ReplacementModel.from_pretrained_and_transcoders(str(folder), transcoders, device="cpu")
    intervention, prompt = [(0, slice(1, None), 3, 5.0)], model.to_tokens(PROMPT)[0]
    tokens, logits, acts = model.feature_intervention_generate(
        prompt, intervention, freeze_attention=False, max_new_tokens=4, do_sample=False, verbose=False
    )
    assert tokens.shape == (1, 12) and acts.shape == (2, 11, 32)
    # The whole text at once, with the same intervention everywhere behind the first position.
    whole, _ = model.feature_intervention(tokens[0], intervention, freeze_attention=False)
    torch.testing.assert_close(logits, whole[0, 7:11], rtol=1e-4, atol=1e-4)
    assert whole[0, 7:11].argmax(-1).tolist() == tokens[0, 8:].tolist()
