"""Patched runs by hooks: whatever the model, the hook point and the hooks that are on it.

The residual stream of the unpatched run is held where it enters the patched layer, and a run costs the layers from
there on, for the whole batch. `patch_runs` does less where it can.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.recording.record import Steps
from headscope.model.transformer import HookedTransformer

__all__ = ["PlainPatches", "layer_of"]


def layer_of(hook_name: str, n_layers: int) -> int:
    """The layer to resume at for a patch there; -1 to begin with the tokens, `n_layers` after all blocks."""
    part, _, rest = hook_name.partition(".")
    if part == "blocks":
        return int(rest.partition(".")[0])
    return n_layers if part in ("ln_final", "unembed") else -1


class PlainPatches:
    """An unpatched run, resumed with one hook as often as one likes, in layers that do not go down.

    Args:
        model: The model; hooks that are on it stay.
        tokens: What it runs on.
        attention_mask: See `HookedTransformer.forward`.
    """

    def __init__(self, model: HookedTransformer, tokens: Tensor, attention_mask: Tensor | None) -> None:
        self.model, self.tokens, self.attention_mask = model, tokens, attention_mask
        self._steps = Steps(model, tokens, attention_mask)

    def logits(self, hook_name: str, patch: Callable[..., Tensor]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the run with one hook on it."""
        hooks = [(hook_name, patch)]
        layer = layer_of(hook_name, self.model.cfg.n_layers)
        options: dict[str, Any] = {"fwd_hooks": hooks, "attention_mask": self.attention_mask}
        if layer < 0:
            return self.model.run_with_hooks(self.tokens, **options)
        # A copy, since hooks may write to what they are shown, and the next run begins from here too.
        stream = self._steps.entering(layer).clone()
        return self.model.run_with_hooks(stream, start_at_layer=layer, tokens=self.tokens, **options)
