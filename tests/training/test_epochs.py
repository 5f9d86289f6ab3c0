"""TransformerLens's trainer: the same steps, and its options."""

from pathlib import Path
from typing import Any

import pytest
import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import InvalidInputError
from headscope.training.epochs import HookedTransformerTrainConfig, train

# After training on `rows()`: W_E[0, 0], W_Q[0, 0, 0, 0], b_U[3] and W_out[0, 2, 1], from transformer_lens.train 3.9.0.
RECORDED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "Adam": ({}, [-0.3307805, -0.4260334, -0.0474234, 0.1338999]),
    "AdamW": (
        {"optimizer_name": "AdamW", "weight_decay": 0.1, "max_grad_norm": 0.1, "warmup_steps": 4},
        [-0.3068635, -0.4210820, -0.0288380, 0.1193098],
    ),
    "SGD": (
        {"optimizer_name": "SGD", "momentum": 0.9, "weight_decay": 0.1, "lr": 0.1, "max_steps": 1},
        [-0.2816078, -0.3855523, -0.0840104, 0.0993509],
    ),
}


def rows() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 9, (12, 6), generator=torch.Generator().manual_seed(0))
    return [{"tokens": row} for row in tokens]


def model() -> HookedTransformer:
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=1, d_model=8, n_ctx=6, d_head=4, d_vocab=9, d_mlp=16, act_fn="gelu", seed=2, device="cpu"
        )
    )


def config(**options: Any) -> HookedTransformerTrainConfig:
    return HookedTransformerTrainConfig(
        **{"num_epochs": 2, "batch_size": 4, "lr": 0.01, "seed": 7, "print_every": None, **options}
    )


@pytest.mark.parametrize("case", RECORDED)
def test_the_steps_are_those_of_transformer_lens(case: str) -> None:
    options, recorded = RECORDED[case]
    before = torch.get_rng_state()
    trained = model()
    assert train(trained, config(**options), rows()) is trained and trained.training
    assert torch.equal(torch.get_rng_state(), before)
    found = [trained.W_E[0, 0], trained.W_Q[0, 0, 0, 0], trained.b_U[3], trained.W_out[0, 2, 1]]
    assert [each.item() for each in found] == pytest.approx(recorded, rel=1e-4)


def test_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train(model(), config(num_epochs=1, print_every=2, save_every=2, save_dir=str(tmp_path)), rows())
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" Loss")[0] for line in lines] == ["Epoch 1 Samples 4 Step 0", "Epoch 1 Samples 12 Step 2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_0.pt", "model_2.pt"]
    assert torch.equal(torch.load(tmp_path / "model_2.pt")["unembed.W_U"], trained.W_U)


def test_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="wandb=True"):
        train(model(), config(wandb=True), rows())
    with pytest.raises(InvalidInputError, match="'Adam', 'AdamW' or 'SGD'; got 'Lion'"):
        train(model(), config(optimizer_name="Lion"), rows())
