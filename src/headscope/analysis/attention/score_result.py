"""`AttentionAttribution`, which `attribute_attention` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.result import Array, Result, check_option
from headscope.analysis.core.stats import estimates_over_prompts, standard_errors
from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OTHERS", "OWN", "AttentionAttribution"]

OWN = "own bias"
OTHERS = "others"
_NO_ERRORS = "a single prompt, or cluster, has no errors."
_NO_SOURCES = "nothing is known about source positions: this was made with sources=False."


@dataclass(frozen=True, repr=False)
class AttentionAttribution(Result):
    """An attention score before the softmax, or the difference of two, as a sum over pairs of parts.

    With the scales of norms frozen, the query and the key are sums over what was written to the stream at the two
    positions, so that the score is the sum of all pairs, plus ALiBi's penalty if there is one. A score has no unit:
    one more multiplies the odds of the key by e. With a soft cap this is the score in front of the cap.

    Attributes:
        pairs: What the query that one part gives, times the key that another gives, adds to the score; the mean over
            prompts.
        errors: Standard error of each, over prompts or their clusters; `None` for a single one.
        scores: The score of each prompt.
        penalties: What ALiBi adds to it.
        attention: The share of its attention that the head gives to the key, and to the second one if there are two.
        query_parts: What each part adds through the query, whatever is in the key: the sum of its row of pairs.
        key_parts: What each part adds through the key: the sum of its column.
        query_sources: What each earlier head adds through the query, by the position that it had it from, in each
            prompt; `None` where it was not asked for. Summed over positions it is the head's part.
        key_sources: The same through the key.
        looked_at: The positions of the query, the key, and the second key if there is one.
        attention_mask: True for real tokens.
        token_strings: The text of all real tokens, one prompt after the other.
        part_labels: `embed`, `pos_embed`, heads, mixers and MLPs of earlier layers in the order in which they write;
            `bias`, the output biases of these layers; `own bias`, what the head's query or key is of an empty stream.
        clusters: A number for each prompt, the same for those not drawn independently (see `Task`); errors are over
            clusters.
        info: What was run on what; `n_positions` is the number of prompts.
    """

    kind: ClassVar[str] = "attention_attribution"
    arrays: ClassVar[Mapping[str, Array]] = {
        "pairs": Array("query_part key_part", title="query x key", column="score", error="errors"),
        "errors": Array("query_part key_part", column="error", absent=_NO_ERRORS),
        "query_parts": Array("prompt query_part", title="query side", column="score", error="query_errors"),
        "query_errors": Array("query_part", column="error", absent=_NO_ERRORS, of=lambda found: found.query_errors),
        "key_parts": Array("prompt key_part", title="key side", column="score", error="key_errors"),
        "key_errors": Array("key_part", column="error", absent=_NO_ERRORS, of=lambda found: found.key_errors),
        "scores": Array("prompt"),
        "penalties": Array("prompt"),
        "attention": Array("prompt key"),
        "query_sources": Array("prompt layer head key_pos", absent=_NO_SOURCES),
        "key_sources": Array("prompt layer head key_pos", absent=_NO_SOURCES),
    }
    coords: ClassVar[Mapping[str, str]] = {"query_part": "part_labels", "key_part": "part_labels"}
    columns: ClassVar[tuple[str, ...]] = ("pairs", "errors")
    ranked: ClassVar[tuple[str, ...]] = ("pairs", "query_parts", "key_parts")
    either_way: ClassVar[bool] = True
    pairs: Float[Tensor, "query_part key_part"]
    errors: Float[Tensor, "query_part key_part"] | None
    scores: Float[Tensor, " prompt"]
    penalties: Float[Tensor, " prompt"]
    attention: Float[Tensor, "prompt key"]
    query_parts: Float[Tensor, "prompt query_part"]
    key_parts: Float[Tensor, "prompt key_part"]
    query_sources: Float[Tensor, "prompt layer head key_pos"] | None
    key_sources: Float[Tensor, "prompt layer head key_pos"] | None
    looked_at: Int[Tensor, "prompt looked_at"]
    attention_mask: Bool[Tensor, "prompt pos"]
    token_strings: tuple[str, ...]
    part_labels: tuple[str, ...]
    clusters: Int[Tensor, " prompt"] | None = None

    @property
    def query_errors(self) -> Float[Tensor, " query_part"] | None:
        """One standard error of the mean of each of `query_parts`, over prompts; `None` for a single one."""
        return None if self.errors is None else standard_errors(self.query_parts, self.clusters)

    @property
    def key_errors(self) -> Float[Tensor, " key_part"] | None:
        """That of each of `key_parts`."""
        return None if self.errors is None else standard_errors(self.key_parts, self.clusters)

    def cell_label(self, name: str, cell: Mapping[str, Label]) -> str:
        if {"query_part", "key_part"} <= cell.keys():
            return f"{cell['query_part']} x {cell['key_part']}"
        part = cell.get("query_part", cell.get("key_part"))
        return super().cell_label(name, cell) if part is None else str(part)

    def by_token(self, side: Literal["query", "key"] = "key", prompt: int = 0) -> "pd.DataFrame":
        """Return what earlier heads bring to one side of a prompt's score, by the token they had it from.

        Returns:
            A row for each head and position, those that add most first: `layer`, `head`, `label`, `position`, `token`,
            `score`.

        Raises:
            InvalidInputError: If there is no such prompt, or sources were not asked for.
        """
        import pandas as pd

        check_option("side", side, ("query", "key"))
        if not 0 <= prompt < len(self.scores):
            raise InvalidInputError(f"prompts are numbered from 0 to {len(self.scores) - 1}; got {prompt}.")
        sources = self.query_sources if side == "query" else self.key_sources
        if sources is None:
            raise InvalidInputError(_NO_SOURCES)
        values = sources[prompt].cpu()
        real = self.attention_mask.cpu()
        start = int(real[:prompt].sum())
        tokens = dict(zip(real[prompt].nonzero()[:, 0].tolist(), self.token_strings[start:], strict=False))
        rows = [
            (layer, head, f"{layer}.{head}", at, tokens[at], float(values[layer, head, at]))
            for layer, head, at in (~values.isnan()).nonzero().tolist()
            if at in tokens
        ]
        frame = pd.DataFrame(rows, columns=["layer", "head", "label", "position", "token", "score"])
        order = frame["score"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)

    def _notes(self) -> Iterator[str]:
        options = self.info.options
        score = estimates_over_prompts(self.scores[:, None], self.clusters)[0]
        error = "" if self.errors is None else f" ± {score.error:.3f}"
        seen = ", ".join(f"{float(share):.1%}" for share in self.attention.mean(0))
        against = options.get("against")
        less = (
            "" if against is None else " less the mean of others" if against == OTHERS else f" less that at {against}"
        )
        yield (
            f"{options['head']} from {options['query']} to {options['key']}{less}: score {score.value:+.3f}{error}, "
            f"attention {seen}"
        )
        if bool((self.penalties != 0).any()):
            penalty = estimates_over_prompts(self.penalties[:, None], self.clusters)[0]
            error = "" if self.errors is None else f" ± {penalty.error:.3f}"
            yield f"of it ALiBi's penalty: {penalty.value:+.3f}{error}"
        for name in self.ranked:
            yield f"{self.arrays[name].title}: {self.top(3, by=name).line(errors=True)}"
