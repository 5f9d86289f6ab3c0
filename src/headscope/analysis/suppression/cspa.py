"""Copy suppression, looking for tokens that are predicted and holding them back: its share of what a head does.

After McDougall et al. 2023 (arXiv 2310.04625). Copy-suppression-preserving ablation (CSPA) leaves a head nothing but
that. For a destination q let `A[q, k]` be the head's pattern, `v_k` its values and m the mean of its output `z W_O`
over the data. As each row of the pattern sums to one, its output is exactly

    out[q] = m + sum_k c[q, k],        c[q, k] = A[q, k] (v_k W_O - m).

CSPA keeps of it, for the few sources k whose tokens are most predicted at q by what enters the layer, and with the unit
vector b_k that raises the logit of the token at k, what is written against that token:

    cspa[q] = m + sum_kept A[q, k] min(0, (v_k W_O - m) . b_k) b_k.

The pattern is never negative, so the sign is the source's alone: this is one product [pos, pos] by [pos, d_model].
Where a norm comes behind attention (Gemma 2, OLMo 2), `W_O` is that through the norm, and the scale it has at q in the
real run divides all of `out[q]`; its positive sign leaves what is kept as it is. Ablating the head to its mean keeps
nothing. A sink (gpt-oss) counts as one more source, of value zero and without a token, of which nothing is kept. The
share explained is `1 - KL(clean || CSPA) / KL(clean || mean)`.

Variants, for models in which this finds nothing although heads do hold back what they look at:

- `"paper"`: the above.
- `"relative"`: sources are ranked by how far the lens predicts their token above its mean over the data. Where the lens
  predicts " the" and " a" everywhere, these fill the list of those predicted most, and the name that a head attends to
  is never on it. The authors' code passes function words over, by a list of English ones; here their average does it.
  As there, a token counts once among those predicted most, and is kept wherever it stands.
- `"own_logit"`: as `"relative"`, and of what a source writes is kept what moves the logit of its own token as before,
  and the logits of all others as little as can be (least squares): with u_k the token's direction and `C` the mean of
  `u u^T` over all tokens, `min(0, (v_k W_O - m) . u_k) C^-1 u_k / (u_k . C^-1 u_k)`. That is the same projection, but
  orthogonal in the logits. Projected on u_k in the stream, most of what a head writes against one token may turn into
  what lowers (or raises) all words of its kind or frequency, and CSPA may be further from the model than the mean
  ablation is (a share far below zero), although the head does hold back that very token.

If unembeddings point evenly in all directions, `C` is a multiple of the identity, and `"own_logit"` keeps the same
part of a source as `"paper"`; if the lens predicts each token as often as any other, `"relative"` ranks as it does. A
head made by hand, in a model that is so, is given the same share by all three. How near GPT-2 comes to that was not
measured, and published numbers are those of `"paper"`: it stays the default. On SmolLM2-135M, 24 two-name prompts: head
24.4, which attends to names and lowers them, is given -0.3 % by `"paper"`, 14 % by `"relative"` and 56 % by
`"own_logit"`; the name mover 23.0 gets 0 % from each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, check_repeatable
from headscope.analysis.core.components import Component
from headscope.analysis.core.head_lists import chosen_heads, heads_tensor, one_vocabulary
from headscope.analysis.recording.component_means import ComponentMeans, OutputSums
from headscope.analysis.recording.embedding import TokenDirections
from headscope.analysis.recording.record import CleanRuns
from headscope.analysis.storage.accumulator import Accumulator, Totals
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.analysis.suppression.cspa_block import NUMBERS, Against, SuppressionBatch, SuppressionOptions
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.cspa_variants import VARIANTS, LogitCoordinates
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["SuppressionAccumulator", "SuppressionOptions", "copy_suppression_preserving_ablation"]


@streaming()
@torch.no_grad()
def copy_suppression_preserving_ablation(
    model: HookedTransformer,
    data: Any,
    heads: Iterable[object] | None = None,
    *,
    top: float = 0.05,
    variant: Literal["paper", "relative", "own_logit"] = "paper",
    effect: Literal["direct", "patched"] = "direct",
    related: Mapping[int, Sequence[int]] | Int[Tensor, "d_vocab n"] | None = None,
    **run: Unpack[StreamOptions],
) -> CopySuppression:
    """Measure how much of heads' effect on the predictions is copy suppression, as the top of this module defines it.

    Cost: two forward passes, one more of each layer that has such heads, and for each head `4 * d_model * d_vocab`
    operations per position; with `variant="own_logit"` once `2 * d_model^2 * d_vocab` (as much as a head's at
    d_model / 2 positions); with `effect="patched"` also twice the layers from the head's on. Memory: some arrays of
    2048 tokens at a time, for one layer's heads.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`). It is gone through twice.
        heads: `(layer, head)` or `"layer.head"` each; default all.
        top: Share of the sources in sight (rounded up) that are kept at each destination: those whose tokens the
            logit lens of the stream that enters the layer predicts most. Of several with one token, the first (with
            `"paper"`; else all).
        variant: What is kept: see the top of this module.
        effect: `"direct"`: the head's output changes in the final state only, whose norm keeps its scale;
            `"patched"`: where it is written (behind the norm behind attention, if there is one, which keeps its scale),
            and all that follows is computed anew.
        related: For each token, tokens whose unembeddings are kept as well: a mapping, or ids `[d_vocab, n]` (-1 for
            none). What a source writes is projected on an orthonormal basis, its own token first, then each related
            one less what the ones before span; each coefficient is kept where it is negative. Beside the token itself,
            the authors kept the same word with and without a space or a capital, and in other forms.
        **run: Options of every run; see `StreamOptions`.

    A share near zero says nothing where the measure could not have found one: see `CopySuppression.power`.

    With `include_bos`, BOS positions can be destinations and sources, and count in the means.

    Raises:
        InvalidInputError: for a head that does not exist, an option out of range, tokens that do not fit the model, an
            iterator, no position that counts; or where the head's output is not its pattern times its values.
        NotFiniteError: if the model's states are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> found = copy_suppression_preserving_ablation(model, tokens, ["4.0"], progress=False)
        >>> print(f"{found.labels[0]}: {found.share().item():.1%} of its effect")
        4.0: 17.4% of its effect
    """
    _check_causal(model)
    options = SuppressionOptions(chosen_heads(model, heads), top, effect, run["include_bos"], variant)
    table = _related_table(related, one_vocabulary(model))
    check_repeatable(data, "copy-suppression-preserving ablation")
    table_hash = None if table is None else fingerprint({"related": table})
    order = {"means": "data", "suppression": "data"}
    passes = Passes("copy-suppression", model, data, {**asdict(options), "related": table_hash}, order=order, **run)
    if (finished := passes.finished(CopySuppression)) is not None:
        return finished
    sums = _MeanSums(model, options.heads)
    totals = passes.gather("means", Totals(model, sums.measure)).result()
    accumulator = SuppressionAccumulator(
        model,
        options,
        sums.means(totals),
        passes.described,
        lens=sums.lens(totals),
        related=table,
        progress=run["progress"],
    )
    return passes.finish("suppression", accumulator, after="means")


class _MeanSums:
    """Sums that the heads' mean outputs and the mean states of the lens are made of."""

    def __init__(self, model: HookedTransformer, heads: Sequence[Component]) -> None:
        # As the heads read it: behind all hooks there.
        self.read = {layer: f"blocks.{layer}.hook_resid_pre" for layer in sorted({head.layer for head in heads})}
        self.runs = CleanRuns(model, heads, also=self.read.values(), room=0)
        self.outputs, self.readout = OutputSums(self.runs), readout_of(model)
        self.cfg, self.last = model.cfg, model.cfg.n_layers

    def measure(self, batch: Batch, n_before: int) -> dict[str, Tensor]:
        """Return the sums over a batch."""
        run = self.runs.first(batch, n_before)
        states = {layer: run.written[name] for layer, name in self.read.items()} | {self.last: run.final}
        return self.outputs.of_run(run, batch) | {
            f"lens at {layer}": wide(self.readout.normalize(state[batch.counted], self.cfg.eps_of(layer))).sum(0)
            for layer, state in states.items()
        }

    def means(self, sums: Mapping[str, Tensor]) -> ComponentMeans:
        """The heads' mean outputs."""
        return self.outputs.means(sums)

    def lens(self, sums: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The mean of what enters each layer, and of the final state, as the lens reads it."""
        return {layer: sums[f"lens at {layer}"] / sums["n"] for layer in (*self.read, self.last)}


class SuppressionAccumulator(Accumulator[CopySuppression]):
    """CSPA and mean ablation of some heads over a stream of batches.

    Its rows are `numbers [number, batch, pos]`: the clean loss, then of each head the `NUMBERS`.

    Args:
        model: The model.
        options: What to measure.
        means: The heads' means over the data.
        data: What the data is, for titles.
        lens: Means over the data of what enters each layer, and of the final state (`n_layers`), normalized as the
            final norm does. The variants but `"paper"` need them, and so does the power.
        related: Tokens related to each, -1 for none.
        progress: Show a progress bar of each batch's heads.
        begins_at: Number of rows of the data that come before this part of it.

    Raises:
        InvalidInputError: If the variant needs `lens`, and it is not given.
    """

    predicting = True
    options: SuppressionOptions

    def __init__(
        self,
        model: HookedTransformer,
        options: SuppressionOptions,
        means: ComponentMeans,
        data: str,
        *,
        lens: Mapping[int, Tensor] | None = None,
        related: Int[Tensor, "d_vocab n"] | None = None,
        progress: bool = False,
        begins_at: int = 0,
    ) -> None:
        lens = lens or {}
        needed = {*(head.layer for head in options.heads), model.cfg.n_layers}
        if (lens or VARIANTS[options.variant].relative) and not needed <= lens.keys():
            raise InvalidInputError(
                f"lens must hold means of what enters layers {sorted(needed)} (the last is the final state); got "
                f"{sorted(lens) or 'none'}."
            )
        tensors = means.tensors | {f"lens at {layer}": mean for layer, mean in lens.items()}
        tensors |= {} if related is None else {"related tokens": related}
        super().__init__(model, options, data, against=tensors, begins_at=begins_at)
        in_logits = VARIANTS[options.variant].own_logit
        coordinates = LogitCoordinates(TokenDirections(model)) if in_logits else None
        self.measured_against, self.progress = Against(means, lens, related, coordinates), progress

    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        measured = SuppressionBatch(self.model, batch, self.options, self.measured_against)
        numbers = measured.measure(self.progress)
        self.add(batch, int(measured.where.sum()), rows={"numbers": numbers})

    def summary(self, rows: dict[str, Tensor]) -> CopySuppression:
        """Return losses and KL of each head."""
        options, numbers = self.options, rows["numbers"]
        shown = {name: getattr(options, name) for name in ("top", "effect", "variant", "include_bos")}
        info = self.info({**shown, "related": self.measured_against.related is not None})
        loss, by_head = numbers[0].clone(), numbers[1:].unflatten(0, (len(options.heads), len(NUMBERS)))
        named = dict(zip(NUMBERS, by_head.transpose(0, 1).contiguous(), strict=True))
        return CopySuppression(info, heads_tensor(options.heads), loss, **named)


def _related_table(related: Mapping[int, Sequence[int]] | Tensor | None, d_vocab: int) -> Tensor | None:
    """Related tokens as a table, -1 where there are no more."""
    if related is None:
        return None
    if isinstance(related, Tensor):
        table = related.long()
    else:
        longest = max((len(tokens) for tokens in related.values()), default=0)
        table = torch.full((d_vocab, longest), -1)
        for token, others in related.items():
            if not 0 <= token < d_vocab:
                raise InvalidInputError(f"related names token {token}; ids are 0 to d_vocab - 1 = {d_vocab - 1}.")
            table[token, : len(others)] = torch.tensor(list(others), dtype=torch.long)
    if table.ndim != 2 or len(table) != d_vocab:
        raise InvalidInputError(
            f"related must have a row for each of d_vocab = {d_vocab} tokens; got shape {list(table.shape)}."
        )
    if table.numel() and (int(table.min()) < -1 or int(table.max()) >= d_vocab):
        raise InvalidInputError(
            f"related tokens must be ids from 0 to d_vocab - 1 = {d_vocab - 1}, or -1 for none; got "
            f"{int(table.min())} to {int(table.max())}."
        )
    return table


def _check_causal(model: HookedTransformer) -> None:
    if model.cfg.attention_dir != "causal":
        raise InvalidInputError(
            f"{model.cfg.model_name!r} attends in both directions; copy suppression is measured in models that predict "
            "what comes next."
        )
