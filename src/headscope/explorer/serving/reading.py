"""The numbers of a run: predictions, losses, the logit lens along the layers, and direct effects on a token's logit."""

import weakref
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.components import component_label
from headscope.analysis.prompts.attribution_result import component_labels
from headscope.analysis.prompts.direct_effects import PartReader
from headscope.analysis.prompts.reading import TokenStrings
from headscope.analysis.recording.lens_states import state_labels
from headscope.explorer.serving.runs import PromptRun
from headscope.explorer.serving.schemas import Entropies, Prediction, Run
from headscope.model.transformer import HookedTransformer
from headscope.ops.vocab import VocabSummary, summarize

__all__ = ["RunReader"]

_KEPT = 16  # numbers of a run, read at different positions or for different tokens


class RunReader:
    """Reads runs of a model.

    Args:
        model: The model.
        strings: The text of each token.
    """

    def __init__(self, model: HookedTransformer, strings: TokenStrings) -> None:
        self.model, self.strings = model, strings
        self.parts = PartReader(model, sources=False, neurons=False)
        self._labels = state_labels(model)
        self._part_labels = component_labels(model.cfg)
        # As long as a run is kept: its losses, which are the same wherever it is read, and the last numbers read of it.
        self._losses: weakref.WeakKeyDictionary[PromptRun, list[float | None]] = weakref.WeakKeyDictionary()
        self._read: weakref.WeakKeyDictionary[PromptRun, dict[tuple[int, int, int], Run]] = weakref.WeakKeyDictionary()

    def most_probable(self, run: PromptRun, position: int) -> int:
        """Return the most probable token after a position."""
        return int(self._summary(self._normalized(run.final[0, position][None]), k=1).top_tokens[0, 0])

    def read(self, run: PromptRun, position: int, target: int, top: int) -> Run:
        """Return the numbers of a run, read after a position and for a target token; those of the last times are kept.

        A page asks for one change after the other, and each time for the same of the plain run.
        """
        known = self._read.setdefault(run, {})
        where = position, target, top
        if where not in known:
            if len(known) == _KEPT:
                known.clear()
            known[where] = self._numbers(run, position, target, top)
        return known[where]

    def _numbers(self, run: PromptRun, position: int, target: int, top: int) -> Run:
        final = run.final[0, position][None].to(self.parts.kind)
        last = self._summary(self._normalized(final), k=top, targets=[target])
        assert last.target_log_prob is not None and last.target_rank is not None
        probabilities = last.top_log_probs[0].exp().tolist()
        effects = dict(zip(self._part_labels, self._effects(run, position, target).tolist(), strict=True))
        cfg = self.model.cfg
        return Run(
            predictions=[
                Prediction(id=token, token=self.strings[token], probability=probability)
                for token, probability in zip(last.top_tokens[0].tolist(), probabilities, strict=True)
            ],
            target_probability=float(last.target_log_prob[0].exp()),
            target_rank=int(last.target_rank[0]),
            losses=self._losses_of(run),
            entropy=Entropies(
                labels=list(self._labels),
                values=[*self._lens_entropies(run, position, final).tolist(), float(last.entropy[0])],
            ),
            head_effects=[
                [effects.get(component_label(layer, head)) for head in range(cfg.n_heads)]
                for layer in range(cfg.n_layers)
            ],
            mlp_effects=[effects.get(component_label(layer, None)) for layer in range(cfg.n_layers)]
            if cfg.layers_with("mlp")
            else None,
        )

    def _effects(self, run: PromptRun, position: int, target: int) -> Float[Tensor, " component"]:
        """Each part's share of the target's logit less the mean over all tokens, in the order of their labels."""
        parts = self.parts
        final = run.final[:, position].to(parts.kind)
        acts = {name: run.kept[name][:, position].to(parts.kind) for name in parts.names if name in run.kept}
        u = parts.readout.W_U.detach()[:, target].to(parts.kind) - self._mean_column
        return parts.parts(acts, final, parts.toward(final, u[None]), final.new_zeros(1))[0]["components"][0]

    def _lens_entropies(
        self, run: PromptRun, position: int, final: Float[Tensor, "1 d_model"]
    ) -> Float[Tensor, " state"]:
        """The entropy at each state but the final one, at the final one's scale as in `logit_lens`."""
        kinds = ("hook_resid_pre", "hook_resid_mid") if self.model.cfg.has_resid_mid else ("hook_resid_pre",)
        names = [f"blocks.{layer}.{kind}" for layer in range(self.model.cfg.n_layers) for kind in kinds]
        states = torch.stack([run.kept[name][0, position] for name in names]).to(self.parts.kind)
        readout = self.parts.readout
        rows = readout.direction(states) / readout.scale(final)
        return self._summary(rows if readout.bias is None else rows + readout.bias).entropy

    def _losses_of(self, run: PromptRun) -> list[float | None]:
        """The loss of each token, but for the first."""
        if run not in self._losses:
            losses: list[float | None] = [None]
            if run.length > 1:
                rows = self._normalized(run.final[0, :-1])
                log_probs = self._summary(rows, targets=run.tokens[0, 1:].tolist()).target_log_prob
                assert log_probs is not None
                losses += (-log_probs).tolist()
            self._losses[run] = losses
        return self._losses[run]

    def _normalized(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """States as the unembedding reads them, each at its own scale."""
        return self.parts.readout.normalize(states.to(self.parts.kind))

    def _summary(
        self, rows: Float[Tensor, "row d_model"], *, k: int = 0, targets: list[int] | None = None
    ) -> VocabSummary:
        W_U, b_U = self._unembedding
        given = None if targets is None else torch.tensor(targets, device=rows.device)
        return summarize(rows, W_U, b_U, targets=given, k=k, soft_cap=self.parts.readout.soft_cap)

    @cached_property
    def _unembedding(self) -> tuple[Tensor, Tensor]:
        readout, kind = self.parts.readout, self.parts.kind
        return readout.W_U.detach().to(kind), readout.b_U.detach().to(kind)

    @cached_property
    def _mean_column(self) -> Float[Tensor, " d_model"]:
        return self._unembedding[0].mean(-1)
