"""What a model's weights make together: biases, composition, counts, devices, gradients on and off."""

import pytest
import torch
from tiny import tiny_model, tiny_tokens

from headscope.errors import InvalidInputError, UnknownNameError


@pytest.mark.parametrize("attn_only", [False, True])
def test_accumulated_bias_is_what_no_input_changes(attn_only: bool) -> None:
    model = tiny_model(n_layers=3, attn_only=attn_only)
    for layer in range(4):
        by_hand = sum((block.attn.b_O for block in model.blocks[:layer]), torch.zeros(10))
        torch.testing.assert_close(model.accumulated_bias(layer, include_mlp_biases=False), by_hand.double())
        for block in [] if attn_only else model.blocks[:layer]:
            by_hand = by_hand + block.mlp.b_out
        torch.testing.assert_close(model.accumulated_bias(layer), by_hand.double())
        if layer < 3:
            wanted = by_hand + model.blocks[layer].attn.b_O
            torch.testing.assert_close(model.accumulated_bias(layer, mlp_input=True), wanted.double())
    with pytest.raises(InvalidInputError, match="between 0 and 2; got 3"):
        model.accumulated_bias(3, mlp_input=True)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores_of_all_heads(mode: str) -> None:
    model = tiny_model(n_layers=3)
    found = model.all_composition_scores(mode)
    assert found.shape == (3, 3, 3, 3)
    for layer in range(3):
        for later in range(3):
            for head, later_head in ((0, 2), (1, 1)):
                first, second = model.blocks[layer].attn, model.blocks[later].attn
                writes = first.W_V[head] @ first.W_O[head]
                reads = {
                    "Q": second.W_Q[later_head] @ second.W_K[later_head].T,
                    "K": second.W_K[later_head] @ second.W_Q[later_head].T,
                    "V": second.W_V[later_head] @ second.W_O[later_head],
                }[mode]
                score = (writes @ reads).norm() / writes.norm() / reads.norm()
                wanted = score if later > layer else torch.zeros_like(score)
                torch.testing.assert_close(found[layer, head, later, later_head], wanted)


def test_counts_and_labels() -> None:
    model = tiny_model()
    assert model.n_params_total == sum(parameter.numel() for parameter in model.parameters())
    assert model.cfg.n_params == 2 * (4 * 10 * 4 * 3 + 2 * 10 * 14)
    assert model.all_head_labels() == ["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2"]


def test_the_config_follows_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    assert model.to(torch.float32) is model and model.cfg.dtype is torch.float32
    assert model(tiny_tokens()).dtype is torch.float32
    assert model.double().cfg.dtype is torch.float64 and model.cpu().cfg.device == "cpu"
    assert model.to("meta").cfg.device == "meta" and model.W_Q.is_meta
    assert capsys.readouterr().out == ""
    model.to(torch.float16, print_details=True)
    assert "torch.float16" in capsys.readouterr().out
    model.to(torch.float32, False)
    assert model.cfg.dtype is torch.float32 and capsys.readouterr().out == ""
    model.to(device_or_dtype=torch.float16)
    assert model.cfg.dtype is torch.float16


def test_gradients_on_and_off() -> None:
    model = tiny_model()
    assert model.freeze("embed", "blocks.1.attn", "unembed.W_U") is model
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "embed.W_E" in frozen and "unembed.W_U" in frozen and "unembed.b_U" not in frozen
    assert {name.split(".")[0] for name in frozen} == {"embed", "unembed", "blocks"}
    assert all(name.startswith("blocks.1.attn.") for name in frozen if name.startswith("blocks"))
    model.unfreeze()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.freeze()
    assert not model(tiny_tokens()).requires_grad
    with pytest.raises(UnknownNameError, match="'embde'. Did you mean 'embed'"):
        model.freeze("embde")
