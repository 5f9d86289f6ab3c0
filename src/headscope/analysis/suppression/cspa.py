"""Copy suppression, looking for tokens that are predicted and holding them back: its share of what a head does.

After McDougall et al. 2023 (arXiv 2310.04625). Copy-suppression-preserving ablation (CSPA) leaves a head nothing but
that. For a destination q let `A[q, k]` be the head's pattern, `v_k` its values and m the mean of its output `z W_O`
over the data. As each row of the pattern sums to one, its output is exactly

    out[q] = m + sum_k c[q, k],        c[q, k] = A[q, k] (v_k W_O - m).

CSPA keeps of it, for the few sources k whose tokens are most predicted at q by what enters the layer, and with the unit
vector u_k that raises the logit of the token at k, what is written against that token:

    cspa[q] = m + sum_kept A[q, k] min(0, (v_k W_O - m) . u_k) u_k.

The pattern is never negative, so the sign is the source's alone: this is one product [pos, pos] by [pos, d_model].
Where a norm comes behind attention (Gemma 2, OLMo 2), `W_O` is that through the norm, and the scale it has at q in the
real run divides all of `out[q]`; its positive sign leaves what is kept as it is. Ablating the head to its mean keeps
nothing. A sink (gpt-oss) counts as one more source, of value zero and without a token, of which nothing is kept. The
share explained is `1 - KL(clean || CSPA) / KL(clean || mean)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, check_repeatable
from headscope.analysis.core.head_lists import chosen_heads, heads_tensor, one_vocabulary
from headscope.analysis.recording.component_means import ComponentMeans, OutputSums
from headscope.analysis.recording.record import CleanRuns
from headscope.analysis.storage.accumulator import Accumulator, Totals
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.analysis.suppression.cspa_block import SuppressionBatch, SuppressionOptions
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["SuppressionAccumulator", "SuppressionOptions", "copy_suppression_preserving_ablation"]


@streaming(flush_every=1)
@torch.no_grad()
def copy_suppression_preserving_ablation(
    model: HookedTransformer,
    data: Any,
    heads: Iterable[object] | None = None,
    *,
    top: float = 0.05,
    effect: Literal["direct", "patched"] = "direct",
    related: Mapping[int, Sequence[int]] | Int[Tensor, "d_vocab n"] | None = None,
    **run: Unpack[StreamOptions],
) -> CopySuppression:
    """Measure how much of heads' effect on the predictions is copy suppression, as the top of this module defines it.

    Cost: two forward passes, one more of each layer that has such heads, and for each head `4 * d_model * d_vocab`
    operations per position; with `effect="patched"` also twice the layers from the head's on. Memory: some arrays of
    2048 tokens at a time, for one layer's heads.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`). It is gone through twice.
        heads: `(layer, head)` or `"layer.head"` each; default all.
        top: Share of the sources in sight (rounded up) that are kept at each destination: those whose tokens the
            logit lens of the stream that enters the layer predicts most. Of several with one token, the first.
        effect: `"direct"`: the head's output changes in the final state only, whose norm keeps its scale;
            `"patched"`: where it is written (behind the norm behind attention, if there is one, which keeps its scale),
            and all that follows is computed anew.
        related: For each token, tokens whose unembeddings are kept as well: a mapping, or ids `[d_vocab, n]` (-1 for
            none). What a source writes is projected on an orthonormal basis, its own token first, then each related
            one less what the ones before span; each coefficient is kept where it is negative.
        **run: Options of every run; see `StreamOptions`.

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
    options = SuppressionOptions(chosen_heads(model, heads), top, effect, run["include_bos"])
    table = _related_table(related, one_vocabulary(model))
    check_repeatable(data, "copy-suppression-preserving ablation")
    table_hash = None if table is None else fingerprint({"related": table})
    passes = Passes("copy-suppression", model, data, {**asdict(options), "related": table_hash}, **run)
    if (finished := passes.finished(CopySuppression)) is not None:
        return finished
    outputs = OutputSums(CleanRuns(model, options.heads, room=0))
    means = outputs.means(passes.gather("means", Totals(model, outputs.measure)).result())
    accumulator = SuppressionAccumulator(
        model, options, means, passes.described, related=table, progress=run["progress"]
    )
    return passes.finish("suppression", accumulator, after="means")


class SuppressionAccumulator(Accumulator[CopySuppression]):
    """CSPA and mean ablation of some heads over a stream of batches.

    Its rows are `numbers [number, batch, pos]`: the clean loss, then of each head loss and KL of CSPA, and of the mean
    ablation.

    Args:
        model: The model.
        options: What to measure.
        means: The heads' means over the data.
        data: What the data is, for titles.
        related: Tokens related to each, -1 for none.
        progress: Show a progress bar of each batch's heads.
        begins_at: Number of rows of the data that come before this part of it.
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
        related: Int[Tensor, "d_vocab n"] | None = None,
        progress: bool = False,
        begins_at: int = 0,
    ) -> None:
        against = means.tensors | ({} if related is None else {"related tokens": related})
        super().__init__(model, options, data, against=against, begins_at=begins_at)
        self.means, self.related, self.progress = means, related, progress

    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        measured = SuppressionBatch(self.model, batch, self.options, self.means, self.related)
        numbers = measured.measure(self.progress)
        self.add(batch, int(measured.where.sum()), rows={"numbers": numbers})

    def summary(self, rows: dict[str, Tensor]) -> CopySuppression:
        """Return losses and KL of each head."""
        options, numbers = self.options, rows["numbers"]
        shown = {name: getattr(options, name) for name in ("top", "effect")}
        info = self.info({**shown, "related": self.related is not None, "include_bos": options.include_bos})
        loss, by_head = numbers[0].clone(), numbers[1:].unflatten(0, (len(options.heads), 4))
        return CopySuppression(info, heads_tensor(options.heads), loss, *by_head.transpose(0, 1).contiguous())


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
