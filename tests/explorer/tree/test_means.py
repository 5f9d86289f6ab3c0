"""Mean outputs beside a tree's files: read for the model that they are of, and for no other."""

from pathlib import Path

import pytest
import torch
from live import live_model

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import all_components
from headscope.analysis.recording.component_means import OutputSums
from headscope.errors import CheckpointError
from headscope.explorer.measuring.rows import PickedRows, mean_outputs
from headscope.explorer.tree.means import MEANS, read_means, write_means


@torch.no_grad()
def test_means_are_over_the_tokens_that_count() -> None:
    model = live_model()
    tokens = model.to_tokens(["The old dog ran after the ball.", "Then Mary said thank you to John."])[:, :9]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 6:] = False
    found = mean_outputs(model, PickedRows(torch.arange(2), tokens, mask), include_bos=False)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    mask[:, 0] = False  # BOS does not count
    assert found.keys() == set(all_components(model.cfg))
    for part, mean in found.items():
        output = cache["mlp_out", part.layer] if part.head is None else cache["z", part.layer][:, :, part.head]
        torch.testing.assert_close(mean, output[mask].mean(0))


@torch.no_grad()
def test_means_come_back_for_their_own_model(tmp_path: Path) -> None:
    model = live_model()
    tokens = model.to_tokens("The old dog ran after the ball.")
    sums = OutputSums.of_all(model)
    means = sums.means(sums.measure(Batch(tokens, None, torch.ones_like(tokens, dtype=torch.bool)), 0)).over_data
    assert read_means(tmp_path, model) == {}
    write_means(tmp_path, model, means)
    found = read_means(tmp_path, model)
    assert found.keys() == means.keys()
    for part, mean in means.items():
        torch.testing.assert_close(found[part], mean.float())
    head = next(part for part in means if part.label == "1.2")
    torch.testing.assert_close(means[head], model.run_with_cache(tokens)[1]["z", 1][0, :, 2].mean(0))
    model.weight_processing = ("fold_value_biases",)
    assert read_means(tmp_path, model) == {}
    (tmp_path / MEANS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_means(tmp_path, model)
