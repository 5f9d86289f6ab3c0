"""What tests of the live explorer share: models of every shape, a folder, and a server in a thread of its own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from small_models import small_model

from headscope import HookedTransformer
from headscope.explorer.serving.queue import Queue
from headscope.explorer.serving.server import Address, Server
from headscope.explorer.serving.sessions import Sessions

PROMPT = "When Mary and John went to the store, John gave"
OTHER = "When John and Mary went to the store, Mary gave"

SHAPES: dict[str, dict[str, Any]] = {
    "LayerNorm": {},
    "attention only": {"attn_only": True},
    "shared keys, rotary": {
        "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 8,
        "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu",
    },
    "parallel": {"parallel_attn_mlp": True},
    "post-norms, capped": {
        "use_normalization_before_and_after": True, "normalization_type": "RMS", "output_logits_soft_cap": 3.0,
    },
    "shortformer": {"positional_embedding_type": "shortformer"},
    "ALiBi in a window": {
        "positional_embedding_type": "alibi", "use_local_attn": True, "window_size": 4,
        "attn_types": ["local", "global", "local"],
    },
    "experts": {
        "num_experts": 4, "experts_per_token": 2, "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS",
        "positional_embedding_type": "rotary", "rotary_dim": 8,
    },
    "layers of two kinds": {"n_layers": 3, "layer_parts": ["attn", "mlp", "attn+mlp"]},
}  # fmt: skip


def live_model(**shape: Any) -> HookedTransformer:
    """Three layers of three heads in float64, every parameter drawn."""
    model: HookedTransformer = small_model(**{"n_layers": 3, "dtype": torch.float64, **shape})
    return model


def folder_of(model: HookedTransformer, path: Path) -> Path:
    """The least that is served as an explorer."""
    cfg = model.cfg
    heads = [[layer, head] for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    config = {"model_name": cfg.model_name, "n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "heads": heads}
    (path / "config.json").write_text(json.dumps(config))
    (path / "scatter_data.json").write_text("[]")
    (path / "index.html").write_text("<!doctype html><title>explorer</title>")
    (path / "heads").mkdir()
    (path / "heads" / "L0H0.js").write_text("headscope.receive('heads/L0H0', {});")
    return path


@contextmanager
def served(folder: Path, sessions: Sessions, queue: Queue | None = None, port: int = 0) -> Iterator[Server]:
    """A server that answers within."""
    server = Server(Address.bind(port), folder, sessions, queue)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
        server.address.listening.close()


def client_of(server: Server, **headers: str) -> httpx.Client:
    """A client with the token, and a connection of its own."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{server.address.port}",
        headers={"X-Headscope-Token": server.address.token, **headers},
        timeout=30,
        verify=False,  # certificates, which plain http has none of, take long to load
    )
