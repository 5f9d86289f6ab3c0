"""Recipes: for each toy task, a model, its data, and training options that solve it.

Each takes the seed of the initial weights, of the data and of its order, the arguments of the task's dataset, and
fields of the model's config (`n_heads`, `d_head`, `device`, ...). The tests check the results each one reaches, the
longer runs under the marker `slow`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headscope.data.tasks import InductionDataset, ModularAdditionDataset, PalindromeDataset, SkipTrigramDataset
from headscope.data.tasks.base import TaskDataset
from headscope.errors import unknown_name
from headscope.model.transformer import HookedTransformer
from headscope.training import toy_configs
from headscope.training.toy import TrainConfig

__all__ = [
    "NOTEBOOK_TRAINING",
    "ToyTask",
    "induction_task",
    "modular_addition_task",
    "palindrome_task",
    "skip_trigram_task",
    "toy_task",
]

NOTEBOOK_TRAINING = TrainConfig(
    epochs=60,
    batch_size=10_000,
    optimizer="adam",
    lr=1e-3,
    warmup=0,
    schedule="constant",
    weight_decay=0.0,
    betas=(0.9, 0.999),
    max_grad_norm=None,
)
"""Training options of the notebook this task comes from, on 100,000 samples: its learning rate is too low."""


@dataclass(frozen=True)
class ToyTask:
    """Arguments of `train`.

    Attributes:
        model: The untrained model.
        data: Training data.
        validation: Held-out data: other draws, or another part of the table.
        training: Training options.
    """

    model: HookedTransformer
    data: TaskDataset
    validation: TaskDataset
    training: TrainConfig


def skip_trigram_task(
    seed: int = 0, *, size: int = 100_000, prob: int = 2, prompt_length: int = 4, **fields: Any
) -> ToyTask:
    """Three heads of width 1 that look up a pair of operands in a table; solved in seconds.

    Example:
        >>> task = skip_trigram_task(seed=1, n_heads=2)
        >>> task.model.cfg.n_heads, len(task.data)
        (2, 100000)
    """
    data = SkipTrigramDataset(size, prob=prob, prompt_length=prompt_length, seed=seed)
    cfg = toy_configs.skip_trigram(**{"seed": seed, "n_ctx": prompt_length, **fields})
    training = TrainConfig(
        epochs=4,
        batch_size=500,
        evaluate_every=50,
        lr=0.03,
        warmup=50,
        final_lr=0.0,
        weight_decay=0.0,
        seed=seed,
        threads=1,
    )
    return ToyTask(toy_configs.one_hot(HookedTransformer(cfg)), data, data.held_out(10_000), training)


def induction_task(seed: int = 0, *, size: int = 57_600, length: int = 32, d_vocab: int = 64, **fields: Any) -> ToyTask:
    """Two layers of attention on repeated random tokens; an induction head forms within a minute.

    Example:
        >>> induction_task(size=100).data.answer_positions
        range(0, 31)
    """
    data = InductionDataset(size, length=length, d_vocab=d_vocab, seed=seed)
    cfg = toy_configs.induction(d_vocab, length, **{"seed": seed, **fields})
    training = TrainConfig(
        epochs=1, batch_size=64, evaluate_every=100, lr=3e-3, warmup=100, weight_decay=0.01, seed=seed, threads=1
    )
    return ToyTask(toy_configs.easy_positions(HookedTransformer(cfg)), data, data.held_out(1000), training)


def modular_addition_task(seed: int = 0, *, p: int = 113, fraction: float = 0.3, **fields: Any) -> ToyTask:
    """One small layer that memorizes 30 % of an addition table, and then learns to add.

    The model is half as wide as that of Nanda et al. 2023, and trained at five times the learning rate with three times
    the weight decay, so that it takes hundreds of steps instead of ten thousand. With less decay, some seeds never get
    beyond memorization. A smaller table needs a larger fraction: half of it with `p=47`.

    Example:
        >>> task = modular_addition_task(p=11)
        >>> len(task.data), len(task.validation)
        (36, 85)
    """
    data = ModularAdditionDataset(p, fraction=fraction, seed=seed)
    cfg = toy_configs.modular_addition(p, **{"seed": seed, "d_model": 64, "d_head": 16, "d_mlp": 256, **fields})
    training = TrainConfig(
        steps=700,
        batch_size=len(data),
        evaluate_every=20,
        lr=5e-3,
        warmup=10,
        final_lr=0.1,
        weight_decay=3.0,
        max_grad_norm=None,
        seed=seed,
    )
    return ToyTask(HookedTransformer(cfg), data, data.held_out(), training)


def palindrome_task(seed: int = 0, *, size: int = 50_000, half: int = 4, n_symbols: int = 8, **fields: Any) -> ToyTask:
    """Two layers that recognize palindromes.

    Example:
        >>> palindrome_task(size=100, half=3).data.n_ctx
        7
    """
    data = PalindromeDataset(size, half=half, n_symbols=n_symbols, seed=seed)
    cfg = toy_configs.palindrome(n_symbols, half, **{"seed": seed, **fields})
    training = TrainConfig(epochs=4, batch_size=128, lr=2e-3, warmup=100, weight_decay=0.01, seed=seed)
    return ToyTask(HookedTransformer(cfg), data, data.held_out(2000), training)


_MAKERS: dict[str, Callable[..., ToyTask]] = {
    SkipTrigramDataset.task: skip_trigram_task,
    InductionDataset.task: induction_task,
    ModularAdditionDataset.task: modular_addition_task,
    PalindromeDataset.task: palindrome_task,
}


def toy_task(name: str, seed: int = 0, **options: Any) -> ToyTask:
    """Return the recipe of `"skip-trigram"`, `"induction"`, `"modular-addition"` or `"palindrome"`.

    Args:
        name: The task's name.
        seed: Seed of everything random.
        options: Further arguments of the recipe.

    Raises:
        UnknownNameError: If there is no such task.

    Example:
        >>> toy_task("skip-trigram", d_head=2).model.cfg.d_head
        2
    """
    if name not in _MAKERS:
        raise unknown_name("toy task", name, _MAKERS)
    return _MAKERS[name](seed, **options)
