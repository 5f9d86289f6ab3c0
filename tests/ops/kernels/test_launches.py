"""The schedule of an accelerator, run on the CPU: how many operators it calls, and that it waits for none of them.

Counts do not depend on the width of a model, so narrow ones of GPT-2 small's layers, heads, rows and vocabulary tiles
stand for it: `tile_of` cuts their vocabulary into as many tiles, since the bytes of a launch are scaled down with it.
"""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sizes import SetBudget
from torch.utils._python_dispatch import TorchDispatchMode

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import ablate_heads, measure_entropy
from headscope.ops.changed_predictions import HeadChanges, Prediction, RowChanges, compare
from headscope.ops.devices import Budget, budget
from headscope.ops.lens_entropy import lens_entropies
from headscope.ops.lens_problem import LensProblem
from headscope.ops.lens_top import TopProblem, lens_top

LAYERS, HEADS, ROWS, D_VOCAB = 12, 12, 1024, 50257
H200 = Budget.of_accelerator(140 * 2**30)
# A launch on a GPU is some 5 us: 4,000 are 20 ms.
MOST = 4000
# What makes the host wait for a GPU: a value read, a size that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Calls(TorchDispatchMode):
    """Counts operators, views left out, and those that would wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.named: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view:
            self.named[name] += 1
        by_mask = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if by_mask or name in WAITS:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.named.total()


def counted(work: Callable[[], object]) -> Calls:
    with Calls() as calls:
        work()
    return calls


def narrow(set_budget: SetBudget, rows: int, d_vocab: int) -> None:
    """Compute with an H200's budget, scaled to fewer logits: as many tiles, of as many launches."""
    scale = (rows * d_vocab) / (ROWS * D_VOCAB)
    step = max(1, round(512 * d_vocab / D_VOCAB))
    set_budget(like="cuda", launch_bytes=int(H200.launch_bytes * scale), core_tile=H200.core_tile._replace(vocab=step))
    tiles = [
        -(-vocab // sizes.tile_of(n, vocab, per_row=HEADS + 1).vocab)
        for sizes, n, vocab in ((H200, ROWS, D_VOCAB), (Budget.of("cpu"), rows, d_vocab))
    ]
    assert tiles[0] == tiles[1] == 5


def model(d_head: int, d_vocab: int) -> HookedTransformer:
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=LAYERS, n_heads=HEADS, d_head=d_head, d_model=HEADS * d_head, d_mlp=4 * HEADS * d_head,
            d_vocab=d_vocab, n_ctx=ROWS + 1, act_fn="gelu_new", normalization_type="LNPre", seed=0, device="cpu",
        )
    )  # fmt: skip


def entropy_calls(d_head: int, rows: int, d_vocab: int, **options: Any) -> Calls:
    tokens = torch.randint(d_vocab, (1, rows), generator=torch.Generator().manual_seed(0))
    small = model(d_head, d_vocab)
    return counted(lambda: measure_entropy(small, tokens, progress=False, include_bos=True, **options))


def entropy_problem(layers: int) -> LensProblem:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return LensProblem(
        states=random(2 * layers + 1, 32, 24),
        head_base=tuple(range(0, 2 * layers, 2)),
        mlp_base=tuple(range(1, 2 * layers, 2)),
        heads=random(layers, HEADS, 32, 2),
        W_O=random(layers, HEADS, 2, 24),
        mlps=random(layers, 32, 24),
        W_U=random(24, 1571),
        offset=random(1571),
        final_offset=random(1571),
    )


def changes(n_heads: int) -> tuple[Prediction, HeadChanges, RowChanges]:
    """Two values for each head, and as many changed states."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    targets = torch.randint(1571, (32,), generator=generator)
    clean = Prediction(random(32, 24), random(24, 1571), random(1571), targets)
    heads = HeadChanges(random(2, n_heads, 32, 2), random(n_heads, 2, 24))
    return clean, heads, RowChanges(clean.rows, random(2 * n_heads, 32, 24))


@pytest.fixture(autouse=True)
def _chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSCOPE_KERNELS", raising=False)
    # A CPU's products may be oneDNN's, one call for each head; an accelerator's never are.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


# Own scales form each changed state's logits. That is the most any options take.
@pytest.mark.parametrize("options", [{}, {"baseline": "mean"}, {"scale": "own"}], ids=str)
def test_entropy_takes_few_launches(options: dict[str, Any], set_budget: SetBudget) -> None:
    narrow(set_budget, rows=32, d_vocab=1571)
    calls = entropy_calls(2, 32, 1571, **options)
    assert calls.total <= MOST, calls.named.most_common(12)
    assert calls.waits.total() <= 20, calls.waits


@pytest.mark.slow
def test_entropy_takes_few_launches_at_the_real_size(set_budget: SetBudget) -> None:
    set_budget(like="cuda", launch_bytes=H200.launch_bytes, core_tile=H200.core_tile)
    real = entropy_calls(64, ROWS, D_VOCAB)
    assert real.total <= MOST, real.named.most_common(12)
    narrow(set_budget, rows=32, d_vocab=1571)
    assert entropy_calls(2, 32, 1571).named == real.named


def test_ablating_all_heads_takes_few_launches(set_budget: SetBudget) -> None:
    """Their direct effects with zero and with the mean, from the tokens to the result."""
    rows, d_vocab = 33, 1571
    narrow(set_budget, rows, d_vocab)
    tokens = torch.randint(d_vocab, (1, rows), generator=torch.Generator().manual_seed(0))
    small = model(2, d_vocab)
    calls = counted(lambda: ablate_heads(small, tokens, effects=["direct"], progress=False))
    assert calls.total <= MOST, calls.named.most_common(12)
    assert calls.waits.total() <= 20, calls.waits


@pytest.mark.parametrize("n_heads", [HEADS, LAYERS * HEADS])
def test_ablation_takes_few_launches(n_heads: int, set_budget: SetBudget) -> None:
    """Each sixteen changes in each of a few tiles take a dozen calls, and each tile some fifty more."""
    narrow(set_budget, rows=32, d_vocab=1571)
    clean, heads, rows = changes(n_heads)
    tile = Budget.of("cpu").tile_of(32, 1571, per_row=Budget.of("cpu").changes)
    n_tiles = -(-1571 // tile.vocab)
    assert n_tiles == 7
    for some in (heads, rows):
        calls = counted(lambda some=some: compare(clean, some))
        most = 40 + n_tiles * (60 + 12 * -(-2 * n_heads // 16))
        assert calls.total <= most <= 2000, (calls.total, calls.named.most_common(12))
    assert calls.total > n_tiles * 10


@pytest.mark.parametrize("layers", [1, 6])
def test_nothing_is_waited_for_between_tiles_and_layers(layers: int, set_budget: SetBudget) -> None:
    narrow(set_budget, rows=32, d_vocab=1571)
    problem = entropy_problem(layers)
    clean, heads, rows = changes(layers)
    top = TopProblem(**vars(clean), heads=problem.heads, W_O=problem.W_O)
    works = lambda: lens_entropies(problem), lambda: compare(clean, heads, rows), lambda: lens_top(top, k=3)
    for work in works:
        few, many = {}, {}
        for waits, sizes in ((few, {}), (many, {"launch_bytes": 2**17})):
            with budget(**sizes):
                calls = counted(work)
            waits.update(calls.waits)
        assert few == many, "it does not depend on the number of tiles"
        assert sum(many.values()) <= 1, many  # whether the targets are tokens
