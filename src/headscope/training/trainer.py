"""Optimizer and step shared by all training loops, and a small language-model loop built on them.

The loop needs little of the model: `model(tokens, return_type="loss")` gives the mean next-token loss in nats, and
parameters come from `named_parameters`. Batches come from any iterable, so data may be generated on the fly.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from headscope.analysis.core.progress import hiding
from headscope.analysis.core.result import check_option
from headscope.errors import InvalidInputError, NotFiniteError, check_at_least

__all__ = [
    "LanguageTrainConfig",
    "OptimizerConfig",
    "TrainHistory",
    "make_optimizer",
    "take_step",
    "train_language_model",
]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
        lr: Peak learning rate.
        warmup: Steps of linear warmup to `lr`.
        schedule: Decay after that: `"cosine"`, `"linear"`, or none (`"constant"`).
        final_lr: Final learning rate, as a fraction of `lr`.
        optimizer: `"adamw"`, or `"adam"`, where weight decay is part of the gradient.
        weight_decay: Weight decay of the matrices; biases and norm weights have none.
        betas: Decay rates of the running means of gradients and of their squares.
        max_grad_norm: Norm that gradients are clipped to; `None` for no clipping.

    Raises:
        InvalidInputError: If a number is out of its range, or a choice does not exist.
    """

    lr: float = 1e-3
    warmup: int = 100
    schedule: str = "cosine"
    final_lr: float = 0.05
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, warmup=self.warmup)
        if not self.lr > 0:
            raise InvalidInputError(f"lr is {self.lr}; it must be above 0.")
        if self.weight_decay < 0:
            raise InvalidInputError(f"weight_decay is {self.weight_decay}; it must be 0 or more.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise InvalidInputError(f"max_grad_norm is {self.max_grad_norm}; it must be above 0, or None.")
        if not 0 <= self.final_lr <= 1:
            raise InvalidInputError(f"final_lr is {self.final_lr}; it is a fraction of lr, between 0 and 1.")
        check_option("schedule", self.schedule, ("cosine", "linear", "constant"))
        check_option("optimizer", self.optimizer, ("adamw", "adam"))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, in a run of `steps`."""
        warmup = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return self.lr * warmup
        progress = max(0, step - self.warmup) / max(1, steps - self.warmup)
        decay = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * warmup * (self.final_lr + (1 - self.final_lr) * decay)


@dataclass(frozen=True)
class LanguageTrainConfig(OptimizerConfig):
    """Options of training a language model, in addition to those of `OptimizerConfig`.

    Attributes:
        steps: Optimizer steps, one batch each.

    Raises:
        InvalidInputError: If a number is out of its range.
    """

    steps: int

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        super().__post_init__()

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        Example:
            >>> cfg = LanguageTrainConfig(steps=100, lr=1.0, warmup=10, final_lr=0.0)
            >>> cfg.lr_at(4), cfg.lr_at(10), round(cfg.lr_at(55), 3)
            (0.5, 1.0, 0.5)
        """
        return self.rate(step, self.steps)


@dataclass(frozen=True)
class TrainHistory:
    """Loss and learning rate along a training run.

    Attributes:
        loss: Mean next-token loss of each step's batch before the step, in nats.
        lr: Learning rate of each step.
        n_tokens: Tokens seen.
        seconds: Wall time.
    """

    loss: Float[Tensor, " step"]
    lr: Float[Tensor, " step"]
    n_tokens: int
    seconds: float


def train_language_model(
    model: nn.Module,
    batches: Iterable[Int[Tensor, "batch pos"]],
    cfg: LanguageTrainConfig,
    *,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainHistory:
    """Train `model` in place, one batch a step.

    Args:
        model: A `HookedTransformer`, or any module with its `return_type="loss"`.
        batches: Token batches; at least `cfg.steps` of them.
        cfg: Training options.
        progress: Show a progress bar with the current loss.
        on_step: Called after each step with its number, counted from 1.

    Raises:
        InvalidInputError: If the batches run out.
        NotFiniteError: If the loss becomes NaN or infinite.
    """
    optimizer = make_optimizer(model, cfg)
    losses, n_tokens, start = [], 0, time.perf_counter()
    rates = [cfg.lr_at(step) for step in range(cfg.steps)]
    device = next(model.parameters()).device
    stream = iter(batches)
    model.train()
    try:
        with tqdm(total=cfg.steps, desc="train", **hiding(not progress)) as bar:
            for step, rate in enumerate(rates):
                tokens = next(stream, None)
                if tokens is None:
                    raise InvalidInputError(f"The batches ran out after {step} of {cfg.steps} steps.")
                loss = partial(model, tokens.to(device), return_type="loss")
                losses.append(take_step(model, optimizer, loss, cfg, lr=rate, step=step))
                n_tokens += tokens.numel()
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update()
                if on_step is not None:
                    on_step(step + 1)
    finally:
        model.eval()
    return TrainHistory(torch.tensor(losses), torch.tensor(rates), n_tokens, time.perf_counter() - start)


def make_optimizer(model: nn.Module, cfg: OptimizerConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """Make the optimizer of the trainable parameters.

    Args:
        model: The model to train.
        cfg: Optimizer options.
        fused: Use one kernel for all parameters: faster for small ones, with slightly different rounding.
    """
    # Weights are told from biases by name, since per-head biases are matrices too.
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": cfg.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if name.rsplit(".", 1)[-1].startswith("W_") else 1]["params"].append(parameter)
    optimizer = torch.optim.AdamW if cfg.optimizer == "adamw" else torch.optim.Adam
    return optimizer([g for g in groups if g["params"]], lr=cfg.lr, betas=cfg.betas, fused=fused or None)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Float[Tensor, ""]],
    cfg: OptimizerConfig,
    *,
    lr: float,
    step: int,
) -> float:
    """Take one optimizer step on `loss()`, and return its value before the step.

    Raises:
        NotFiniteError: If it is NaN or infinite; the parameters are unchanged.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss_before = loss()
    value = loss_before.item()
    if not math.isfinite(value):
        raise NotFiniteError(
            f"The loss is {value} at step {step + 1}; lower lr ({cfg.lr}) or max_grad_norm ({cfg.max_grad_norm}).",
            code="HS-FINITE-03",
        )
    loss_before.backward()
    if cfg.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
    optimizer.step()
    return value
