"""The JSON that the live page sends and gets, with a schema from which its TypeScript types are generated.

What comes in is strict: no unknown field, no number where text is expected, nothing infinite, and no list or text
longer than a prompt of a person's own would be. Only whether the model can do what is asked is left to `sessions`.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "MAX_CHANGES",
    "MAX_CHARACTERS",
    "Answer",
    "Change",
    "Entropies",
    "ErrorAnswer",
    "ErrorDetail",
    "ModelInfo",
    "OnePatternAnswer",
    "OnePatternRequest",
    "Part",
    "PatternsAnswer",
    "PatternsRequest",
    "Prediction",
    "Rest",
    "Run",
    "State",
    "Token",
    "WhyAnswer",
    "WhyRequest",
]

MAX_CHANGES = 64
MAX_CHARACTERS = 8_000

_Index = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
_Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
_Prompt = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class _Asked(BaseModel):
    """The base of what comes in."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Told(BaseModel):
    """The base of what goes out."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Change(_Asked):
    """Something else in the place of what a head, an MLP or a mixer gives."""

    component: Annotated[str, Field(max_length=32, description='"3.1" for a head, "mlp3", "mixer3"')]
    action: Literal["zero", "mean", "scale", "patch"]
    factor: Annotated[float | None, Field(ge=-1e6, le=1e6, description="what scale multiplies by")] = None
    positions: Annotated[
        list[_Index] | None, Field(max_length=4096, description="where; negative from the end; null for all")
    ] = None

    @model_validator(mode="after")
    def _factor_goes_with_scale(self) -> Self:
        if (self.factor is None) == (self.action == "scale"):
            raise ValueError("factor goes with the action scale, and with no other")
        return self


class State(_Asked):
    """A prompt, what is changed in the model that reads it, and where and for which token it is read."""

    prompt: _Prompt
    other: Annotated[_Prompt | None, Field(description="the prompt patches come from, of as many tokens")] = None
    prepend_bos: Annotated[bool | None, Field(description="null: as the model is used to")] = None
    changes: Annotated[list[Change], Field(max_length=MAX_CHANGES)] = []
    position: Annotated[_Index, Field(description="negative from the end")] = -1
    target: Annotated[_Count | None, Field(description="a token's id; null: the most probable one")] = None
    top: Annotated[int, Field(ge=1, le=100)] = 20


class PatternsRequest(_Asked):
    """The patterns of one layer, or of all."""

    state: State
    layer: _Count | None = None


class OnePatternRequest(_Asked):
    """The pattern of one head."""

    state: State
    layer: _Count
    head: _Count


class WhyRequest(_Asked):
    """A position that a head looks at, and the one it looks from."""

    state: State
    layer: _Count
    head: _Count
    query: _Index
    key: _Index


class ModelInfo(_Told):
    """The model that is served, and the limits of what it can be asked."""

    model_name: str
    n_layers: int
    n_heads: int
    d_vocab: int
    has_mlps: bool
    max_tokens: int
    max_changes: int
    max_characters: int
    measured_mean: Annotated[bool, Field(description="the action mean can be had")]


class Token(_Told):
    """A token and its text."""

    id: int
    token: str


class Prediction(Token):
    """A next token."""

    probability: float


class Entropies(_Told):
    """The entropy of the logit lens at each state of the stream, in nats."""

    labels: list[str]
    values: list[float]


class Run(_Told):
    """The numbers of one run of the prompt."""

    predictions: Annotated[list[Prediction], Field(description="the most probable tokens after the position")]
    target_probability: float
    target_rank: Annotated[int, Field(description="how many tokens are more probable than the target")]
    losses: Annotated[list[float | None], Field(description="of each token given those before, in nats")]
    entropy: Entropies
    head_effects: Annotated[
        list[list[float | None]],
        Field(description="[layer][head]: what it adds directly to the target's centered logit; null for none"),
    ]
    mlp_effects: Annotated[list[float | None] | None, Field(description="[layer]: the same; null without MLPs")]


class Answer(_Told):
    """The run as it is, and with the changes."""

    tokens: list[str]
    ids: list[int]
    other_tokens: list[str] | None
    target: Token
    before: Run
    after: Annotated[Run | None, Field(description="null without changes")]
    seconds: float


class PatternsAnswer(_Told):
    """Attention patterns, quantized to bytes."""

    before: Annotated[
        list[list[str]],
        Field(
            description="[layer][head], of the layer asked for or all: base64 of bytes [query, key], the weight times "
            "255; a layer without attention has none"
        ),
    ]
    after: list[list[str]] | None
    n: Annotated[int, Field(description="tokens")]


class OnePatternAnswer(_Told):
    """One head's pattern, [query][key]."""

    before: list[list[float]]
    after: list[list[float]] | None


class Part(_Told):
    """A share of a score."""

    name: str
    value: float


class Rest(_Told):
    """The parts that are not told one by one: their number and their sum."""

    count: int
    value: float


class WhyAnswer(_Told):
    """An attention score before the softmax, in the state with its changes, and what it is the sum of."""

    score: float
    penalty: Annotated[float, Field(description="what ALiBi adds to it, which belongs to no part")]
    attention: Annotated[float, Field(description="the share of its attention that the head gives to the key")]
    parts: Annotated[list[Part], Field(description="pairs of a part of the query and one of the key, largest first")]
    pairs_rest: Annotated[Rest, Field(description="the pairs that are not in parts, which with them sum to the score")]
    query_parts: Annotated[list[Part], Field(description="what each part adds through the query")]
    key_parts: Annotated[list[Part], Field(description="what each part adds through the key")]


class ErrorDetail(_Told):
    """The kind of an error, and a sentence about it."""

    code: str
    message: str


class ErrorAnswer(_Told):
    """The answer to a request that was refused or failed."""

    error: ErrorDetail
