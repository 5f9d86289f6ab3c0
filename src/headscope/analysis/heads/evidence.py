"""Evidence for head types that needs no task: what heads write where tokens repeat, copying, composition.

A *control* is the same number for the same head where what defines the kind is taken out. With it, a label says more
than "this head pays some attention there": a head that looks a fixed distance back, or at everything alike, has a
control as high as its score.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.core.stats import (
    Estimate,
    estimates_of_moments,
    estimates_over_prompts,
    row_moments,
    threshold,
)
from headscope.analysis.heads.scores import SCORES, defining_keys
from headscope.analysis.recording.embedding import (
    TokenDirections,
    direct_effects,
    effective_embedding,
    norm_weight,
    token_embedding,
)
from headscope.analysis.recording.lens_states import lens_states
from headscope.analysis.storage.accumulator import Measure
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.arrays import stack_padded
from headscope.ops.composition import composition_scores
from headscope.ops.factored import FactoredMatrix

__all__ = [
    "Condition",
    "HeadKind",
    "Measured",
    "copying_scores",
    "k_composition",
    "repeat_evidence",
    "repeat_moments",
]


@dataclass(frozen=True)
class Measured:
    """A number of every head, with its control; NaN where nothing was measured.

    Attributes:
        scores: The numbers.
        controls: The same where what defines the kind is taken out.
        errors: Standard error of their difference.
        freedom: Degrees of freedom of that error.
    """

    scores: Float[Tensor, "*kind layer head"]
    controls: Float[Tensor, "*kind layer head"]
    errors: Float[Tensor, "*kind layer head"]
    freedom: Float[Tensor, "*kind layer head"]

    @classmethod
    def nothing(cls, n_layers: int, n_heads: int) -> "Measured":
        """One kind that was not measured."""
        return cls(*torch.full((4, n_layers, n_heads), math.nan, device="cpu"))

    @classmethod
    def beside(
        cls,
        values: Float[Tensor, "prompt layer head"],
        control: Float[Tensor, "prompt layer head"],
        clusters: Int[Tensor, " prompt"] | None,
    ) -> "Measured":
        """Means over prompts, and the error of their difference over clusters of them."""
        margin = estimates_over_prompts(values - control, clusters)
        parts = (values.mean(0), control.mean(0), margin.errors, margin.freedom)
        return cls(*(part.float() for part in parts))

    @classmethod
    def lowest(cls, several: Sequence["Measured"]) -> "Measured":
        """The lowest of several scores, head by head, with its control and error; NaN if one is."""
        at = torch.stack([each.scores.nan_to_num(-math.inf) for each in several]).argmin(0, keepdim=True)
        return cls(
            *(torch.stack([getattr(each, part.name) for each in several]).gather(0, at)[0] for part in fields(cls))
        )

    def __getitem__(self, at: int) -> "Measured":
        return Measured(*(getattr(self, each.name)[at] for each in fields(self)))


@dataclass(frozen=True)
class Condition:
    """A number that a head of a kind must have.

    Attributes:
        measured: The number of every head, with its control.
        least: What it and its excess over the control must reach.
        of_the_rest: The number is a share, which exceeds a control c by at most 1 - c: so much of that is asked for, as
            in Cohen's kappa. Where half of all keys in sight define a kind, no head could exceed that by a half.
        confirms: It is asked beside another that makes the kind, and so it is tested by itself.
    """

    measured: Measured
    least: float
    of_the_rest: bool = False
    confirms: bool = False

    def holds(self, among: int, level: float) -> Bool[Tensor, "layer head"]:
        """Tell where the number and its excess are high enough, the excess significantly above zero.

        Args:
            among: How many such numbers are looked at.
            level: The level for all of them.
        """
        bound = threshold(1 if self.confirms else among, self.measured.freedom, level)
        return self.high() & (self.measured.scores - self.measured.controls > bound * self.measured.errors)

    def high(self) -> Bool[Tensor, "layer head"]:
        """Tell where the number and its excess are high enough, sure or not."""
        scores, controls = self.measured.scores, self.measured.controls
        room = 1 - controls if self.of_the_rest else torch.ones_like(controls)
        return (scores >= self.least) & (scores - controls >= self.least * room)


@dataclass(frozen=True)
class HeadKind:
    """A kind of head: numbers that must all be high enough.

    They are tested at the same level, and none is corrected for the others, since one that fails is enough (an
    intersection-union test: Berger 1982).

    Attributes:
        name: The kind.
        shown: The number that stands for the kind.
        conditions: What makes a head one of the kind.
        unless: Heads that are of another kind that has the same marks; `None` for none.
    """

    name: str
    shown: Measured
    conditions: tuple[Condition, ...]
    unless: Bool[Tensor, "layer head"] | None = None

    @classmethod
    def by_weakest(
        cls, name: str, conditions: Sequence[Condition], unless: Bool[Tensor, "layer head"] | None = None
    ) -> "HeadKind":
        """A kind that its lowest number stands for, head by head; all are of one unit."""
        return cls(name, Measured.lowest([each.measured for each in conditions]), tuple(conditions), unless)

    @property
    def least(self) -> float:
        """The least that the number that is shown must reach."""
        return self.conditions[0].least

    def n_tests(self) -> int:
        """Number of heads that were measured."""
        return int((~self.shown.scores.isnan()).sum())

    def labelled(self, n_kinds: int, level: float) -> Bool[Tensor, "layer head"]:
        """Tell which heads are of the kind, at a level for all kinds together, shared out among them alike."""
        among = n_kinds * self.n_tests()
        return self._where(lambda each: each.holds(among, level))

    def reached(self) -> Bool[Tensor, "layer head"]:
        """Tell which heads would be of the kind if all numbers were sure."""
        return self._where(Condition.high)

    def _where(self, holds: Callable[[Condition], Tensor]) -> Bool[Tensor, "layer head"]:
        """Tell for which heads all conditions hold."""
        found = torch.stack([holds(each) for each in self.conditions]).all(0)
        return found if self.unless is None else found & ~self.unless


def repeat_moments(model: HookedTransformer) -> Measure:
    """Return a function that sums direct effects where tokens repeat, for `repeat_evidence`."""
    directions, readout = TokenDirections(model), readout_of(model)

    def measure(batch: Batch, n_before: int) -> dict[str, Tensor]:
        where = _repeats(batch)
        rows = where.nonzero()[:, 0]
        if not len(rows):
            return {}
        states = lens_states(model, Batch(batch.tokens, batch.attention_mask, where))
        toward = torch.stack([directions.of(batch.tokens.roll(-ahead, dims=1)[where]) for ahead in (1, 2)])
        final = states.resid[-1]
        logits = ((final / readout.scale(final)) * (toward[0] - toward[1]).to(final.dtype)).sum(-1)
        against = (-direct_effects(model, states, toward)).unbind(2)
        return {
            "heads": row_moments(torch.stack([*against, against[0] - against[1]]), rows),
            "model": row_moments(logits, rows),
        }

    return measure


def repeat_evidence(model: HookedTransformer, sums: Mapping[str, Tensor]) -> tuple[Measured, Estimate]:
    """Measure how each head writes against the token that induction predicts, where that token does come next.

    Score: minus the head's direct effect on that token's logit, above the mean over tokens. Control: the same for
    another token of the row, the one after it. In logits.

    Returns:
        The evidence, and what the whole model gives the expected token above the other; NaN if nothing of the data
        repeats.
    """
    if not sums:
        return Measured.nothing(model.cfg.n_layers, model.cfg.n_heads), Estimate(math.nan, math.nan, 0)
    heads, whole = (estimates_of_moments(sums[name]) for name in ("heads", "model"))
    scores, controls = heads.values[:2].float()
    return Measured(scores, controls, heads.errors[2].float(), heads.freedom[2]), whole[()]


def _repeats(batch: Batch) -> Bool[Tensor, "row pos"]:
    """Queries whose next token followed an earlier copy of theirs, and whose next but one is real too."""
    followers = defining_keys(batch)[SCORES.index("induction")]
    after = batch.tokens.roll(-1, dims=1)
    told = (followers & (batch.tokens[:, None, :] == after[:, :, None])).any(-1)
    real = torch.ones_like(told) if batch.attention_mask is None else batch.attention_mask.bool()
    for ahead in (1, 2):
        told = told & real.roll(-ahead, dims=1)
        told[:, -ahead:] = False
    return told & (after != batch.tokens.roll(-2, dims=1))


@torch.no_grad()
def copying_scores(model: HookedTransformer) -> Float[Tensor, "layer head"]:
    """Score how far each head's OV circuit copies: 1 raises the logit of whatever is attended to, -1 lowers it.

    The sum of the eigenvalues of the full OV circuit `W_E W_V W_O W_U` over the sum of their magnitudes (Elhage et al.
    2021, "Summarizing OV/QK matrices"). Random heads are near 0. Tokens are embedded by `effective_embedding`, those
    of the first layer by `W_E`, and normalized; nothing of size `d_vocab` by `d_vocab` is made. Of a norm behind
    attention only the weight takes part; gates on heads' outputs (`cfg.gated_attn`), which depend on the text, count
    as open.

    Raises:
        InvalidInputError: If the model does not read and predict the same vocabulary.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> [round(score, 2) for score in copying_scores(model)[1].tolist()]  # its name and induction heads
        [1.0, 0.98, 1.0, 1.0]
    """
    readout, cfg = readout_of(model), model.cfg
    kind = torch.promote_types(model.W_U.dtype, torch.float32)
    W_U = readout.W_U.detach().to(kind)
    W_U = W_U - W_U.mean(-1, keepdim=True)
    found = torch.full((cfg.n_layers, cfg.n_heads), math.nan, device="cpu")
    onto: Tensor | None = None
    for layer in cfg.layers_with("attn"):
        block: Any = model.blocks[layer]
        if onto is None or layer == 1:  # later layers find what the second does
            read = (token_embedding(model) if layer == 0 else effective_embedding(model)).to(kind)
            onto = W_U @ _normalized(model, read, layer)
        weight = norm_weight(model, layer, "w")
        W_V, W_O = (each.detach().to(kind) for each in (block.attn.W_V, model.output_weight(layer)))
        W_V = W_V if weight is None else W_V * weight.detach().to(kind)[:, None]
        # The eigenvalues of a product are those of its factors in turn, up to zeros.
        values = torch.linalg.eigvals(readout.direction(W_O) @ onto @ W_V)
        found[layer] = (values.real.sum(-1) / values.abs().sum(-1)).float().cpu()
    return found


def _normalized(
    model: HookedTransformer, x: Float[Tensor, "d_vocab d_model"], layer: int
) -> Float[Tensor, "d_vocab d_model"]:
    cfg = model.cfg
    if not cfg.has_pre_norms:
        return x
    x = x - x.mean(-1, keepdim=True) if cfg.centered_norm else x
    return x / (x.square().mean(-1, keepdim=True) + cfg.eps_of(layer)).sqrt()


@torch.no_grad()
def k_composition(model: HookedTransformer, heads: list[tuple[int, int]]) -> Float[Tensor, "reader layer head"]:
    """K-composition of some heads with each earlier head; NaN where a head is not earlier.

    `|W_OV1 W_QK2^T| / (|W_OV1| |W_QK2|)`, K-composition in Elhage et al. 2021; near `1 / sqrt(d_model)` for unrelated
    heads. An induction head reads what a previous-token head writes. All NaN with latent attention, where no matrix
    makes a key of the stream.
    """
    cfg = model.cfg
    blocks: Any = model.blocks
    if not (heads and all(blocks[layer].attn.reads_linearly for layer in cfg.layers_with("attn"))):
        return torch.full((len(heads), cfg.n_layers, cfg.n_heads), math.nan, device="cpu")
    layers, numbers = (torch.tensor(each, device="cpu") for each in zip(*heads, strict=True))
    W_Q, W_K, W_V = (stack_padded(model.per_layer("attn", f"W_{name}")).detach().float() for name in ("Q", "K", "V"))
    at = torch.tensor([cfg.layers_with("attn").index(layer) for layer, _ in heads], device="cpu"), numbers
    writes = FactoredMatrix(W_V, model.output_weights().float())
    scores = composition_scores(writes, FactoredMatrix(W_K[at], W_Q[at].transpose(-2, -1)))
    scores = over_layers(cfg, scores).permute(2, 0, 1).cpu()
    earlier = torch.arange(cfg.n_layers, device="cpu") < layers[:, None]
    return torch.where(earlier[:, :, None], scores, math.nan)
