"""TransformerLens's trainer: epochs over a dataset of token rows, with its options, its defaults and its batches.

For the same weights, seed and data it takes the same steps as TransformerLens 3.9. New code is better served by
`train_language_model`, which resumes, schedules and reports.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["HookedTransformerTrainConfig", "train"]


@dataclass
class HookedTransformerTrainConfig:
    """Options of `train`.

    Args:
        num_epochs: Epochs.
        batch_size: Rows of a batch.
        lr: Learning rate.
        seed: Seed of the order of rows; the global generator is as before afterwards.
        momentum: Of `"SGD"`.
        max_grad_norm: Gradients are scaled down to this norm.
        weight_decay: With `"Adam"` or `"AdamW"`, decoupled from the gradient.
        optimizer_name: `"Adam"`, `"AdamW"` or `"SGD"`. `weight_decay` decides between the first two.
        device: Device to train on; by default the model's own.
        warmup_steps: Steps over which the learning rate rises from zero.
        save_every: Save the weights every so many steps, to `save_dir/model_{step}.pt`.
        save_dir: An existing folder.
        wandb: Only `False`.
        wandb_project_name: Of no use without it.
        print_every: Print the loss every so many steps; `None` prints nothing.
        max_steps: Number of an epoch's last step, from 0.
    """

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"
    device: str | torch.device | None = None
    warmup_steps: int = 0
    save_every: int | None = None
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50
    max_steps: int | None = None


def train(model: HookedTransformer, config: HookedTransformerTrainConfig, dataset: Any) -> HookedTransformer:
    """Train a model on next tokens, in place.

    Args:
        model: The model.
        config: How.
        dataset: Rows of tokens, as a dataset for PyTorch whose items have them under `"tokens"`, `[pos]`.

    Returns:
        The same model.

    Raises:
        InvalidInputError: For an unknown optimizer, or `wandb=True`.

    Example:
        >>> cfg = {"n_layers": 1, "d_model": 8, "n_ctx": 6, "d_head": 4, "d_vocab": 5, "attn_only": True, "seed": 0}
        >>> rows = [{"tokens": (torch.arange(6) + start) % 5} for start in range(20)]
        >>> options = HookedTransformerTrainConfig(num_epochs=2, batch_size=10, lr=0.1, print_every=1)
        >>> _ = train(HookedTransformer(cfg), options, rows)  # doctest: +SKIP
        Epoch 1 Samples 10 Step 0 Loss 1.75
    """
    if config.wandb:
        project = "" if config.wandb_project_name is None else f" for the project {config.wandb_project_name!r}"
        raise InvalidInputError(f"wandb=True: nothing is logged to Weights & Biases here{project}; see print_every.")
    model.to(model.cfg.device if config.device is None else config.device)
    model.train()
    optimizer = _optimizer(model, config)
    warmup = LambdaLR(optimizer, lambda step: min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0)
    # The loader draws the order of rows from the global generator, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        loader = torch.utils.data.DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
        for epoch in tqdm(range(1, config.num_epochs + 1), desc="train", unit="epoch", leave=False):
            _run_epoch(model, config, loader, optimizer, warmup, epoch)
    return model


def _optimizer(model: nn.Module, config: HookedTransformerTrainConfig) -> torch.optim.Optimizer:
    if config.optimizer_name in ("Adam", "AdamW"):
        if config.weight_decay is None:
            return torch.optim.Adam(model.parameters(), lr=config.lr)
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer_name == "SGD":
        decay = config.weight_decay or 0.0
        return torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=decay, momentum=config.momentum)
    raise InvalidInputError(f"optimizer_name must be 'Adam', 'AdamW' or 'SGD'; got {config.optimizer_name!r}.")


def _run_epoch(
    model: HookedTransformer,
    config: HookedTransformerTrainConfig,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    warmup: LambdaLR,
    epoch: int,
) -> None:
    n_rows = 0
    for step, batch in enumerate(loader):
        tokens = batch["tokens"].to(model.input_device)
        loss = model(tokens, return_type="loss")
        loss.backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        warmup.step()
        optimizer.zero_grad()
        n_rows += len(tokens)
        if config.print_every is not None and step % config.print_every == 0:
            print(f"Epoch {epoch} Samples {n_rows} Step {step} Loss {loss.item()}")
        if config.save_every is not None and config.save_dir is not None and step % config.save_every == 0:
            torch.save(model.state_dict(), Path(config.save_dir) / f"model_{step}.pt")
        if config.max_steps is not None and step >= config.max_steps:
            break
