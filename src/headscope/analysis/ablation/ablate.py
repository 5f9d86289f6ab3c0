"""`ablate_heads`: what breaks, and on which tokens, when a head's output is replaced.

The output of a head (or an MLP, or several together) gives way to nothing, to its mean, or to what another text gives,
and the loss of every next token is measured again. Along which paths the change goes is the effect: `patched` lets all
that comes after see it; `direct` lets only the final norm and unembedding see it; `indirect` lets all but these see it
(McDougall et al. 2023, "Copy Suppression", section 3.2).

GPT-2 small, all heads, zero and mean: a patched run costs on average half a forward pass and an unembedding, about 0.17
GFLOP a token for each value and head; direct effects of all heads together about 2 GFLOP a token. Memory: activations
of one batch of 2,048 tokens, whatever the data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.ablation.block import AblatedBatch, BatchAblation, Plan
from headscope.analysis.ablation.replacements import Replacements
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.batches import Batch, check_repeatable, spread
from headscope.analysis.core.components import all_heads, component_sets, components, set_label
from headscope.analysis.core.result import check_option
from headscope.analysis.core.stats import estimates_of_moments, row_moments
from headscope.analysis.recording.component_means import OutputSums
from headscope.analysis.recording.record import CleanRuns
from headscope.analysis.storage.accumulator import Accumulator, Totals
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import sums_device

__all__ = ["AblationAccumulator", "AblationOptions", "ablate_heads"]

Value = Literal["zero", "mean", "resample"]
Effect = Literal["patched", "direct", "indirect"]
_VALUES, _EFFECTS = ("zero", "mean", "resample"), ("patched", "direct", "indirect")


@dataclass(frozen=True)
class AblationOptions:
    """Options of the ablation; see `ablate_heads`. Components are labels: `10.7`, `mlp3`, `10.7+11.10`."""

    components: tuple[str, ...]
    values: tuple[Value, ...] = ("zero", "mean")
    effects: tuple[Effect, ...] = ("patched", "direct")
    mean_over: Literal["data", "position"] = "data"
    excluding: tuple[str, ...] = ()
    scale: Literal["final", "own"] = "final"
    kl: bool = False
    reduce: Literal["mean", "none"] = "none"
    include_bos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_option("mean_over", self.mean_over, ("data", "position"))
        check_option("scale", self.scale, ("final", "own"))
        check_option("reduce", self.reduce, ("mean", "none"))
        for name, found, allowed in (("values", self.values, _VALUES), ("effects", self.effects, _EFFECTS)):
            if not found or len(set(found)) < len(found):
                raise InvalidInputError(f"{name} must be different ones of {', '.join(allowed)}; got {list(found)}.")
            for each in found:
                check_option(name, each, allowed)
        if self.excluding and "indirect" not in self.effects:
            raise InvalidInputError(
                f"excluding={list(self.excluding)} keeps these heads clean in indirect effects; add 'indirect' to "
                f"effects, which are {list(self.effects)}."
            )

    def plan(self, cfg: HookedTransformerConfig) -> Plan:
        """Return what is measured, for a model."""
        excluded = components(cfg, self.excluding)
        if any(component.head is None for component in excluded):
            raise InvalidInputError(f"excluding names heads, not MLPs; got {list(self.excluding)}.", code="HS-HEADS-05")
        sets = component_sets(cfg, self.components)
        return Plan(sets, self.values, self.effects, excluded, self.scale == "final")


@streaming()
def ablate_heads(
    model: HookedTransformer,
    data: Any,
    *,
    heads: Iterable[Any] | None = None,
    values: Sequence[Value] = ("zero", "mean"),
    effects: Sequence[Effect] = ("patched", "direct"),
    mean_over: Literal["data", "position"] = "data",
    reference: Any = None,
    excluding: Iterable[Any] = (),
    scale: Literal["final", "own"] = "final",
    kl: bool = False,
    reduce: Literal["mean", "none"] = "none",
    seed: int = 0,
    **run: Unpack[StreamOptions],
) -> AblationResult:
    """Measure the loss of every next token without each of some heads, less the loss with them.

    Each entry of `heads` is ablated by itself, all else as it is. Positions that predict padding, and predictions made
    from BOS, are NaN and count in no mean.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`). With `"mean"` and no `reference` it is gone through twice.
        heads: What to ablate: `(10, 7)`, `"10.7"`, `"mlp3"`, or a list of these that is ablated together. Default:
            every head.
        values: What takes the output's place at every position: `"zero"`; its `"mean"`; or `"resample"`, what it gives
            at the same position of another row.
        effects: `"patched"`: everything after it is computed again. `"direct"`: only the final residual stream changes.
            `"indirect"`: everything after it is computed again, and its own direct contribution put back. Where a norm
            comes behind attention (Gemma 2, OLMo 2), a head's contribution is taken with that norm's scale as in the
            clean run; what patching changes of that scale is part of the indirect effect.
        mean_over: The mean over all positions that count, or at each `"position"` over rows (BOS included).
        reference: Data for the means, and tokens `[batch, pos]` to resample from. Default: the data itself (for
            resampling, the other rows in the same batch).
        excluding: Heads that keep what they gave in the clean run, in indirect effects: paths through them are closed.
        scale: For direct and indirect effects: the final norm's scale stays that of the clean run (`"final"`), or is
            that of the changed state (`"own"`). In patched runs it is always computed again.
        kl: Also measure the KL divergence from the clean prediction to the ablated one.
        reduce: `"none"` keeps every position; `"mean"` only means and their errors.
        seed: Of the rows drawn for `"resample"`.
        **run: Options of every run; see `StreamOptions`.

    Raises:
        InvalidInputError: for an option or component that does not exist, a wrong shape, tokens out of range, no
            position that counts, or an iterator where two passes are needed.
        NotFiniteError: if a prediction is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> effect = ablate_heads(model, tokens, heads=[(2, 3), "1.3"], values=["mean"], progress=False)
        >>> for head, losses in zip(effect.component_labels, effect.mean().loss_diff[0].T.tolist(), strict=True):
        ...     print(head, ", ".join(f"{name} {loss:+.3f}" for name, loss in zip(effect.effects, losses, strict=True)))
        2.3 patched +0.126, direct +0.007
        1.3 patched +0.012, direct -0.011
    """
    named = all_heads(model.cfg) if heads is None else heads
    options = AblationOptions(
        tuple(map(set_label, component_sets(model.cfg, named))),
        tuple(values),
        tuple(effects),
        mean_over,
        tuple(component.label for component in components(model.cfg, excluding)),
        scale,
        kl,
        reduce,
        run["include_bos"],
        seed,
    )
    plan = options.plan(model.cfg)
    resample_from = _resampled(reference) if "resample" in values else None
    if "mean" in values:
        check_repeatable(data if reference is None else reference, "values=['mean']")
    order = {"means": "reference", "ablation": "data"} if "mean" in values else {}
    passes = Passes("ablation", model, data, options, reference=reference, order=order, **run)
    if (finished := passes.finished(AblationResult)) is not None:
        return finished
    runs = CleanRuns(model, plan.reads, plan.resumes)
    means, before = None, None
    if "mean" in values:
        by_position = mean_over == "position"
        shared = runs if reference is None else CleanRuns(model, plan.parts, room=0)
        outputs = OutputSums(shared, by_position=by_position)
        counts = run["include_bos"] or by_position
        sums = passes.gather("means", Totals(model, outputs.measure), include_bos=counts)
        means = outputs.means(sums.result())
        # Passes over the same data, with the same positions counting, are held against each other.
        before = "means" if reference is None and not by_position else None
    replacements = Replacements(plan.parts, options.values, means, resample_from, seed)
    accumulator = AblationAccumulator(
        model, options, replacements, passes.described, runs=runs, progress=run["progress"]
    )
    return passes.finish("ablation", accumulator, after=before)


def _resampled(reference: Any) -> Int[Tensor, "row pos"] | None:
    if reference is not None and not (isinstance(reference, Tensor) and reference.ndim == 2 and len(reference)):
        found = list(reference.shape) if isinstance(reference, Tensor) else type(reference).__name__
        raise InvalidInputError(f"values=['resample'] draws rows of a reference of tokens [batch, pos]; got {found}.")
    return reference


class AblationAccumulator(Accumulator[AblationResult]):
    """Ablations over a stream of batches.

    Args:
        model: The model.
        options: What to measure.
        replacements: What takes the components' places.
        data: What the data is, for titles.
        runs: Clean runs, some of which an earlier pass may have kept.
        progress: Show a progress bar of each batch's patched runs.
        begins_at: Number of rows of the data that come before this part of it.
    """

    predicting = True
    options: AblationOptions

    def __init__(
        self,
        model: HookedTransformer,
        options: AblationOptions,
        replacements: Replacements,
        data: str,
        *,
        runs: CleanRuns | None = None,
        progress: bool = False,
        begins_at: int = 0,
    ) -> None:
        means = replacements.means
        super().__init__(model, options, data, against=means.tensors if means else None, begins_at=begins_at)
        self.replacements = replacements
        self.progress = progress
        self._plan = options.plan(model.cfg)
        self._runs = CleanRuns(model, self._plan.reads, self._plan.resumes) if runs is None else runs

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        where = batch.predicting()
        n = int(where.sum())
        if n:
            run = self._runs.second(batch, self.n_before)
            instead = self.replacements.for_batch(self.model, batch, run, self.n_before)
            ablated = BatchAblation(self.model, batch, self._plan, run, instead).measure(self.progress)
        else:
            ablated = self._nothing()
        sums = {
            "loss": ablated.loss.sum(),
            "loss_diff": ablated.loss_diff.sum(-1),
            "moments": row_moments(ablated.loss_diff, where.nonzero()[:, 0]),
            "kl": ablated.kl.sum(-1),
        }
        keep = self.options.reduce == "none" and batch.tokens.shape[1] > 1
        self.add(batch, n, sums, self._rows(batch, where[:, :-1], ablated) if keep else None)

    def summary(self, rows: dict[str, Tensor]) -> AblationResult:
        """Return the losses, or their means over positions, with the errors of these."""
        n, options = self.n_positions, self.options
        means = {name: (total / n).float() for name, total in self.sums.items()}
        losses = {name: means[name] for name in ("loss", "loss_diff", "kl")} | rows
        tokens = losses.pop("tokens", None)
        ids = None if tokens is None else tokens[tokens >= 0].unique()
        hidden = ("components", "reduce", "kl")
        shown = {name: value for name, value in asdict(options).items() if name not in hidden}
        return AblationResult(
            info=self.info({**shown, "kernels": self.kernels}),
            loss=losses["loss"],
            loss_diff=losses["loss_diff"],
            kl=losses["kl"] if options.kl else None,
            loss_diff_error=estimates_of_moments(self.sums["moments"]).errors.float(),
            tokens=tokens,
            values=options.values,
            effects=options.effects,
            component_labels=options.components,
            token_ids=ids,
            token_strings=() if ids is None else self._strings(ids),
        )

    def _strings(self, ids: Tensor) -> tuple[str, ...]:
        tokenizer = self.model.tokenizer
        return tuple(str(each) if tokenizer is None else tokenizer.decode([each]) for each in ids.tolist())

    def _rows(
        self, batch: Batch, where: Tensor, ablated: AblatedBatch
    ) -> dict[str, Float[Tensor, "*lead batch pos"] | Int[Tensor, "batch length"]]:
        values = {"loss": ablated.loss, "loss_diff": ablated.loss_diff}
        values |= {"kl": ablated.kl} if self.options.kl else {}
        rows = {name: spread(numbers.float().cpu(), where.cpu()) for name, numbers in values.items()}
        tokens = batch.tokens.cpu()
        rows["tokens"] = tokens if batch.attention_mask is None else tokens.masked_fill(~batch.attention_mask.cpu(), -1)
        return rows

    def _nothing(self) -> AblatedBatch:
        shape = len(self._plan.values), len(self._plan.effects), len(self._plan.sets), 0
        nothing = torch.zeros(shape, dtype=torch.float64, device=sums_device(self.model.W_U.device))
        return AblatedBatch(nothing[0, 0, 0], nothing, nothing)
