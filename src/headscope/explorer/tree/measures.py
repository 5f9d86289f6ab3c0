"""The measures of a head that the explorer shows: names, units, and in a sentence what each is."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["ALIASES", "MEASURES", "Measure", "described"]

Group = Literal["attention", "prediction", "ablation", "copying", "activity"]


@dataclass(frozen=True)
class Measure:
    """A number of every head.

    Attributes:
        name: Its name in files.
        label: Its name for readers.
        unit: Its unit; empty for a share.
        description: A sentence on what it is.
        group: Measures of one group stand together.
        diverging: Zero is its middle.
        range: The range it can take, where that is bounded.
        better_log: It is better drawn on a logarithmic scale.
        count_unit: The unit of what it is a mean over.
    """

    name: str
    label: str
    unit: str
    description: str
    group: Group
    diverging: bool = False
    range: tuple[float, float] | None = None
    better_log: bool = False
    count_unit: str = "queries"


_SHARE = (0.0, 1.0)

MEASURES = (
    Measure(
        "self_attention_score",
        "Self attention",
        "",
        "Mean attention from each position to itself.",
        "attention",
        range=_SHARE,
    ),
    Measure(
        "prev_token_score",
        "Previous-token attention",
        "",
        "Mean attention to the token before, of positions that have one besides BOS.",
        "attention",
        range=_SHARE,
    ),
    Measure(
        "bos_attention",
        "Attention to the start",
        "",
        "Mean attention to the first position of a sequence: BOS, where there is one.",
        "attention",
        range=_SHARE,
    ),
    Measure(
        "induction_score",
        "Induction attention",
        "",
        "Mean attention to the tokens that followed earlier copies of the token, of positions that have such.",
        "attention",
        range=_SHARE,
    ),
    Measure(
        "duplicate_token_score",
        "Duplicate-token attention",
        "",
        "Mean attention to earlier copies of the token, of positions that have such.",
        "attention",
        range=_SHARE,
    ),
    Measure(
        "pattern_entropy",
        "Attention entropy",
        "nats",
        "Mean entropy of the attention of a position: 0 where it looks at one place alone.",
        "attention",
    ),
    Measure(
        "qk_distance",
        "Mean distance",
        "tokens",
        "Mean distance from query to key, weighted by attention.",
        "attention",
        better_log=True,
    ),
    Measure(
        "qk_distance_variance",
        "Variance of distance",
        "tokens²",
        "Variance of the distance from query to key, over all attention.",
        "attention",
        better_log=True,
    ),
    Measure(
        "entropy_diff",
        "Entropy, when it writes",
        "nats",
        "Mean change of the entropy of the logit lens when the head's output is added to the stream that its layer "
        "reads. Positive: the head makes the model's guess less certain there.",
        "prediction",
        diverging=True,
        count_unit="positions",
    ),
    Measure(
        "entropy_marginal",
        "Entropy, at the end",
        "nats",
        "Mean entropy of the final prediction less that without the head's own output. Positive: the head makes the "
        "prediction less certain.",
        "prediction",
        diverging=True,
        count_unit="positions",
    ),
    Measure(
        "ablation_direct",
        "Loss without its direct effect",
        "nats",
        "Mean change of the next-token loss when the head's output is replaced by its mean in the final stream alone. "
        "Positive: the head helps.",
        "ablation",
        diverging=True,
        count_unit="positions",
    ),
    Measure(
        "ablation_total",
        "Loss without the head",
        "nats",
        "Mean change of the next-token loss when the head's output is replaced by its mean and all that follows is "
        "computed again. Positive: the head helps.",
        "ablation",
        diverging=True,
        count_unit="positions",
    ),
    Measure(
        "copying_score",
        "Copying (weights)",
        "",
        "Sum of the eigenvalues of the head's circuit from token to logits over the sum of their magnitudes: 1 raises "
        "whatever it looks at, -1 lowers it.",
        "copying",
        diverging=True,
        range=(-1.0, 1.0),
        count_unit="tokens of the vocabulary",
    ),
    Measure(
        "suppression_score",
        "Suppression of repeats",
        "logits",
        "Mean of what the head takes from the logit of a token that repeats next, less the same for the token after "
        "it. Positive: it works against induction.",
        "copying",
        diverging=True,
        count_unit="positions",
    ),
    Measure(
        "output_norm",
        "Output norm",
        "",
        "Mean norm of what the head writes to the stream.",
        "activity",
        better_log=True,
    ),
    Measure(
        "mean_max_activation",
        "Mean largest attention",
        "",
        "Mean over sequences of the largest attention to another token that is not the first of the sequence.",
        "activity",
        range=_SHARE,
        count_unit="sequences",
    ),
)

# The names that others give to some of these.
ALIASES = {"previous_token_score": "prev_token_score"}


def described(measure: Measure, count: int | None) -> dict[str, Any]:
    """Return a measure as a tree's config has it, with the number of what it is a mean over."""
    bounds = None if measure.range is None else list(measure.range)
    return {**asdict(measure), "range": bounds, "count": count}
