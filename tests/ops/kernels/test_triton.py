"""The Triton programs under Triton's interpreter, which runs them on the CPU, against plain float64 formulas."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import SetBudget
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install 'headscope[gpu]'")

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import ablate_heads, measure_entropy
from headscope.errors import InvalidInputError
from headscope.ops.changed_predictions import HeadChanges, Prediction, RowChanges, compare
from headscope.ops.devices import Tile
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.interface import BITS, Precision
from headscope.ops.kernels.triton_kernels import INTERPRETED, TritonKernels
from headscope.ops.lens_entropy import lens_entropies
from headscope.ops.lens_problem import Chain, Gains, LensProblem

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="there is a GPU: see the tests marked gpu"),
    # What the interpreter makes numpy say of infinities, which are not hidden.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|All-NaN slice) encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget) -> None:
    monkeypatch.setenv("HEADSCOPE_KERNELS", "triton")
    set_budget(like="cuda")


def entropy_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-partition and entropy of float64 logits in bits, in bits."""
    log_p = (logits / BITS).log_softmax(-1) * BITS
    return (logits / BITS).logsumexp(-1) * BITS, -torch.nan_to_num(log_p.exp2() * log_p, nan=0.0, neginf=0.0).sum(-1)


def read(sums: Tensor) -> tuple[Tensor, Tensor]:
    shift, z, s = sums.double()
    return shift + z.log2(), z.log2() - s / z


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads_on_states(rows: int, tile: int, heads: int, inner: int, spread: float, seed: int) -> tuple[Tensor, ...]:
    left, right = random(heads, rows, inner, seed=seed), random(heads, inner, tile, seed=seed + 1)
    left *= spread / (left @ right).abs().max().clamp(min=1e-6)
    base, final = 5 * random(2, rows, tile, seed=seed + 2)
    return left, right, base, final


@settings(max_examples=15)
@given(
    st.integers(1, 70), st.sampled_from([1, 2, 5, 127, 128, 129, 300]), st.integers(1, 3), st.sampled_from([1, 5, 33]),
    st.sampled_from([1e-3, 3.0, 40.0, 300.0]), st.booleans(), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_heads_are_multiplied_and_summed_in_one_pass(
    rows: int, tile: int, heads: int, inner: int, spread: float, shared: bool, masked: bool, seed: int
) -> None:
    """Rows and tokens that fill no block, a right factor that all heads share, changes that span 600 bits."""
    left, right, base, final = heads_on_states(rows, tile, heads, inner, spread, seed)
    if shared:
        right = right[:1].expand(heads, -1, -1)
    if masked and tile > 1:
        base[:, : tile // 2], final[:, tile // 2 :] = -torch.inf, -torch.inf  # whole blocks, of some sizes
    kernels = TritonKernels()
    states = [kernels.factors(logits.clone(), name) for name, logits in (("base", base), ("final", final))]
    out, total = torch.full((3, 2, heads, rows), torch.nan), torch.full((rows, tile), torch.nan)
    kernels.head_changes(left, kernels.prepared(right), *states, out, total)
    d = left.double() @ right.double()
    largest = 1 + float(d.abs().max())
    assert torch.allclose(total.double(), d.sum(0), atol=3e-6 * largest)
    for sign, logits in enumerate((base.double() + d, final.double() - d)):
        log_z, entropy = entropy_of(logits)
        found_log_z, found_entropy = read(out[:, sign])
        assert torch.allclose(found_log_z, log_z, atol=5e-6 * largest)
        # A logit that is off by e moves the entropy by e times what it weighs and how far it is from the mean.
        assert torch.allclose(found_entropy, entropy, atol=2e-5 * largest)


# Of the sum of absolute products, which the error is a share of.
@pytest.mark.parametrize(
    ("precision", "share"),
    [("float32", 2.0**-21), ("bfloat16x3", 2.0**-15), ("tf32", 2.0**-10), ("bfloat16", 2.0**-7)],
)
def test_the_error_of_each_precision(precision: Precision, share: float) -> None:
    left, right, base, final = heads_on_states(20, 200, 2, 64, 10.0, 3)
    kernels = TritonKernels(precision)
    states = [kernels.factors(logits, name) for name, logits in (("base", base), ("final", final))]
    factors = (left.bfloat16(), right.bfloat16()) if precision == "bfloat16" else (left, right)
    out, total = torch.empty(3, 2, 2, 20), torch.empty(20, 200)
    kernels.head_changes(factors[0], kernels.prepared(factors[1]), *states, out, total)
    sizes = (left.double().abs() @ right.double().abs()).sum(0)
    off = ((total.double() - (left.double() @ right.double()).sum(0)).abs() / sizes).max()
    assert share / 2**7 < off < share, "no better than it says, either: the option is in force"


def make_problem(*, chained: bool, gains: bool = False, soft_cap: float = 0.0, mixed: bool = False) -> LensProblem:
    layers, heads, rows, d_model, d_vocab = 2, 3, 9, 7, 150
    chain = None
    outputs, mlps = random(layers, heads, rows, 3, seed=1), random(layers, rows, d_model, seed=2)
    W_O = random(layers, heads, 3, d_model, seed=3)
    states = list(random(5, rows, d_model, seed=4))
    if chained:
        chain = Chain(random(layers, d_model, seed=5), random(layers, d_model, seed=6), 1 + random(rows).abs())
        for layer in range(layers):
            written = torch.einsum("hre,hed->rd", outputs[layer], W_O[layer])
            states[2 * layer + 1] = states[2 * layer] + written + chain.by[:, None] * chain.attn_rest[layer]
            states[2 * layer + 2] = states[2 * layer + 1] + mlps[layer] + chain.by[:, None] * chain.mlp_rest[layer]
    shapes = (5, rows), (layers, heads + 1, rows), (layers, heads + 1, rows)
    return LensProblem(
        states=torch.stack(states), head_base=(0, None) if mixed else (0, 2), mlp_base=(1, 3),
        heads=outputs[:1] if mixed else outputs, W_O=W_O[:1] if mixed else W_O, mlps=mlps,
        W_U=random(d_model, d_vocab, seed=7), offset=random(d_vocab, seed=8), final_offset=random(d_vocab, seed=9),
        soft_cap=soft_cap, gains=Gains(*(0.5 + random(*shape).abs() for shape in shapes)) if gains else None,
        chain=chain,
    )  # fmt: skip


def in_float64(problem: LensProblem) -> LensProblem:
    fields = {name: value.double() if isinstance(value, Tensor) else value for name, value in vars(problem).items()}
    for name in ("gains", "chain"):
        part = fields[name]
        if part is not None:
            fields[name] = type(part)(*(value.double() for value in vars(part).values()))
    return LensProblem(**fields)


@pytest.mark.parametrize(
    "kind", [{"chained": True}, {"chained": False}, {"chained": False, "mixed": True},
             {"chained": True, "gains": True}, {"chained": False, "soft_cap": 3.0}], ids=str)  # fmt: skip
@pytest.mark.parametrize("small", [False, True])
def test_entropies(kind: dict[str, bool], small: bool, set_budget: SetBudget) -> None:
    """Soft caps and own scales are done too, by forming the logits."""
    problem = make_problem(**kind)
    if small:  # several tiles of rows and of the vocabulary
        set_budget(core_tile=Tile(5, 80), launch_bytes=4)
    assert kernels_for(torch.device("cpu"), torch.float32) is TritonKernels
    found = lens_entropies(problem)
    wanted = lens_entropies(in_float64(problem))  # by PyTorch's operations, which tests/ops/test_lens_entropy.py checks
    for name in ("states", "plus", "minus"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=1e-4, rtol=0.0, equal_nan=True)


def test_precisions_of_entropies() -> None:
    problem = make_problem(chained=True)
    wanted = lens_entropies(in_float64(problem)).plus
    off = {
        precision: float((lens_entropies(problem, precision=precision).plus - wanted).abs().max())
        for precision in ("float32", "bfloat16x3", "tf32", "bfloat16")
    }
    assert off["float32"] < 1e-5 and off["bfloat16x3"] < 5e-4 and off["tf32"] < 1e-2 and off["bfloat16"] < 1e-1, off
    assert off["float32"] < off["bfloat16x3"] < off["tf32"] < off["bfloat16"], off


def test_nan_stays_where_it_is() -> None:
    problem = make_problem(chained=False)
    problem.heads[1, 2, 4, 0] = torch.nan
    found = lens_entropies(problem)
    assert found.plus.isnan().nonzero().tolist() == found.minus.isnan().nonzero().tolist() == [[1, 2, 4]]


def test_losses_and_divergences() -> None:
    rows, d_model, d_vocab = 9, 6, 300
    targets = torch.randint(d_vocab, (rows,), generator=torch.Generator().manual_seed(0))
    clean = Prediction(random(rows, d_model), random(d_model, d_vocab), random(d_vocab), targets)
    clean.offset[40:200] = -torch.inf
    clean.targets[:] = 3
    taken, W_O = random(2, 3, rows, 4, seed=1), random(3, 4, d_model, seed=2)
    taken[0, 0] *= 60  # far out of the range of the short form
    changed = torch.cat([
        (clean.rows - torch.einsum("vhrd,hdm->vhrm", taken, W_O)).flatten(0, 1), random(2, rows, d_model, seed=3)
    ])  # fmt: skip
    log_p, log_q = (
        (each.double() @ clean.W_U.double() + clean.offset.double()).log_softmax(-1) for each in (clean.rows, changed)
    )
    kl = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)
    found = compare(clean, HeadChanges(taken, W_O), RowChanges(clean.rows, changed[6:]))
    for at, some in ((slice(0, 6), found[0]), (slice(6, 8), found[1])):
        torch.testing.assert_close(some.changed_loss, -log_q[at, :, 3], atol=1e-4, rtol=2e-6)
        torch.testing.assert_close(some.kl, kl[at], atol=1e-4, rtol=2e-6)


def test_results_name_the_kernels(set_budget: SetBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = HookedTransformerConfig(
        n_layers=1, n_heads=2, d_model=8, d_head=4, d_vocab=30, n_ctx=8, act_fn="gelu", seed=0, device="cpu"
    )
    model, tokens = HookedTransformer(cfg), torch.tensor([[3, 1, 4, 1, 5]])
    entropy = measure_entropy(model, tokens, progress=False)
    ablation = ablate_heads(model, tokens, heads=[(0, 1)], progress=False)
    assert entropy.info.options["kernels"] == ablation.info.options["kernels"] == "triton"
    assert measure_entropy(model, tokens, precision="tf32", progress=False).info.options["precision"] == "tf32"

    monkeypatch.setenv("HEADSCOPE_KERNELS", "torch")
    plain = measure_entropy(model, tokens, progress=False)
    assert plain.info.options["kernels"] == "torch"
    for name in ("resid", "diff", "marginal"):
        torch.testing.assert_close(getattr(entropy, name), getattr(plain, name), atol=1e-4, rtol=0.0)
    with pytest.raises(InvalidInputError, match=r"precision='tf32' needs the triton kernels.*headscope\[gpu\].*torch"):
        measure_entropy(model, tokens, precision="tf32", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision"), [(80, "float32"), (90, "tf32"), (90, "bfloat16x3"), (90, "bfloat16")]
)
def test_the_programs_compile_for_a_gpu(architecture: int, precision: Precision) -> None:
    """Triton's compiler refuses code that its interpreter runs; it needs no GPU to say so."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(architecture), precision]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["changes", "changes", "removals", "factors"]


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from headscope.ops.kernels import programs

architecture, precision = int(sys.argv[1]), sys.argv[2]
factor = "*bf16" if precision == "bfloat16" else "*fp32"
tensors = {name: "*fp32" for name in ("added", "base", "final", "total", "out", "removed", "clean", "weights", "shift")}
tensors |= {"left": factor, "right": factor, "logits": "*fp32"}
blocks = dict(ROWS=64, COLUMNS=128)
product = dict(PRECISION=precision, EMULATED=False, INNER=32, **blocks)
for program, constants in [
    (programs.changes, dict(PRODUCT=True, TOTAL=True, **product)),
    (programs.changes, dict(PRODUCT=False, TOTAL=False, **product)),
    (programs.removals, blocks),
    (programs.factors, dict(MASKED=-1e4, COLUMNS=1024)),
]:
    types = {
        name: "constexpr" if name in constants else tensors.get(name, "i32") for name in program.arg_names
    }
    source = ASTSource(fn=program, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
    print(program.__name__)
"""
