"""`BaseRun`: the unpatched run, kept so that a patch needs only what it changes, and where each patch enters it."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.recording.record import record
from headscope.model.block import RESUMABLE, TransformerBlock
from headscope.model.hooks import is_own
from headscope.model.transformer import HookedTransformer

__all__ = ["BaseRun", "Entry", "Site", "can_be_resumed", "site_of"]


def can_be_resumed(model: HookedTransformer) -> bool:
    """Return whether every block can resume, with nothing else in the model hooked or put in by somebody else."""
    around = [module for name, module in model.named_modules() if name.count(".") < 2]
    return all(map(is_own, around)) and all(cast(TransformerBlock, block).can_resume for block in model.blocks)


@dataclass(frozen=True)
class Site:
    """A hook point at which a run can be resumed.

    Attributes:
        layer: The layer it is in.
        kind: Its name in the block.
    """

    layer: int
    kind: str

    @property
    def name(self) -> str:
        """Its name in the model."""
        return f"blocks.{self.layer}.{self.kind}"


def site_of(hook_name: str) -> Site | None:
    """Return the site of that name; `None` for a hook point elsewhere."""
    named = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    return Site(int(named[1]), named[2]) if named and named[2] in RESUMABLE else None


@dataclass(frozen=True)
class Entry:
    """A patched residual stream, and where it goes on.

    Attributes:
        stage: `2 * layer` before a layer, one more between its attention and its MLP.
        start: The first position that differs from the unpatched run.
        stream: The stream from `start` on.
    """

    stage: int
    start: int
    stream: Float[Tensor, "batch suffix d_model"]


class BaseRun:
    """One run, nothing patched: keys and values of every layer, and what patches are put into.

    Args:
        model: One that `can_be_resumed`.
        tokens: `[batch, pos]`.
        attention_mask: See `HookedTransformer.forward`.
        sites: Where patches will be made.
        watched: Hook points to watch as the other run's were: kernels may round otherwise when somebody looks, and what
            is equal in both runs is not run again if it is equal to the last bit.
    """

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Tensor,
        attention_mask: Tensor | None,
        *,
        sites: Collection[Site],
        watched: Iterable[str] = (),
    ) -> None:
        self.model = model
        first, _, self.positions, self.mask = model.input_to_embed(tokens, attention_mask=attention_mask)
        self.batch, self.length = first.shape[:2]
        self.blocks = [cast(TransformerBlock, block) for block in model.blocks]
        self.allowed = [block.attn.allowed(self.length, self.length)[0, 0] for block in self.blocks]
        self.is_causal = not any(bool(allowed.triu(1).any()) for allowed in self.allowed)
        wanted = {Site(layer, f"attn.hook_{each}").name for layer in range(model.cfg.n_layers) for each in "kv"}
        wanted |= {Site(at.layer, name).name for at in sites for name in self.blocks[at.layer].read_by_resumed(at.kind)}
        # What is only watched is reduced to nothing.
        readings = {name: None if name in wanted else (lambda _: None) for name in wanted.union(watched)}
        self.kept, self.final = record(model, tokens, readings, attention_mask=attention_mask)

    def enter(self, site: Site, patched: Tensor, stop: int) -> Entry:
        """Return how the run goes on once an activation is replaced; `start` is `length` if nothing changed.

        Args:
            site: Where it is replaced.
            patched: What takes its place, of the same shape.
            stop: Positions from here on are not needed.
        """
        axis = 2 if site.kind == "attn.hook_pattern" else 1
        differs = patched != self.kept[site.name]
        at = differs.any(dim=[each for each in range(differs.ndim) if each != axis]).nonzero()
        start = self.length if not len(at) else int(at[0]) if self.is_causal else 0
        if start >= stop:
            return Entry(2 * site.layer, self.length, self.final[:, :0])
        block = self.blocks[site.layer]
        names = {*block.read_by_resumed(site.kind), "attn.hook_k", "attn.hook_v"}
        kept = {name: self.kept[Site(site.layer, name).name] for name in names}
        stage, stream = block.resumed(site.kind, patched, kept, slice(start, stop), self.mask)
        return Entry(2 * site.layer + stage, start, stream)
