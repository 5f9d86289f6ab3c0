"""Two signs of copy suppression, for every head: what it writes against repetition, and against the indirect object.

After McDougall et al. 2023 (arXiv 2310.04625), where the heads with the highest scores on one are those of the other:

- *anti-induction*: on random tokens said twice, minus what the head adds to the logit of the token that repeats next;
- *IOI*: minus what it adds to the logit of the indirect object above that of the subject, where the object comes next.

Both are direct effects: the head's output through the unembedding, at the final norm's own scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.head_lists import one_vocabulary
from headscope.analysis.core.result import Array, Result, RunInfo
from headscope.analysis.recording.embedding import TokenDirections, direct_effects
from headscope.analysis.recording.lens_states import lens_states
from headscope.analysis.storage.accumulator import Measure, Totals
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.options import RunOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.data.ioi import IOIDataset
from headscope.data.random_tokens import repeated_random_tokens
from headscope.errors import InvalidInputError
from headscope.model.text.tokens import bos_token_id
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["SuppressionScores", "suppression_scores"]

_LONGEST = 50
_NO_PROMPTS = "IOI prompts were not measured: give prompts and answers, or a tokenizer."


@dataclass(frozen=True, repr=False)
class SuppressionScores(Result):
    """Both scores of every head, in logits. Positive: the head works against copying.

    Attributes:
        anti_induction: Minus the head's direct effect on the logit of the token that repeats next, less the mean over
            all tokens; mean over positions.
        ioi: Minus its direct effect on the logit difference between indirect object and subject; mean over prompts.
            `None` without prompts.
        info: What was run on what; `n_positions` is that of the repeated tokens.
    """

    kind: ClassVar[str] = "suppression_scores"
    arrays: ClassVar[Mapping[str, Array]] = {
        "anti_induction": Array("layer head", unit="logits"),
        "ioi": Array("layer head", unit="logits", absent=_NO_PROMPTS),
    }
    ranked: ClassVar[tuple[str, ...]] = ("anti_induction", "ioi")
    anti_induction: Float[Tensor, "layer head"]
    ioi: Float[Tensor, "layer head"] | None


@streaming()
@torch.no_grad()
def suppression_scores(
    model: HookedTransformer,
    *,
    n_sequences: int = 32,
    length: int | None = None,
    prompts: Int[Tensor, "prompt pos"] | None = None,
    answers: Int[Tensor, "answer 2"] | None = None,
    n_prompts: int = 200,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> SuppressionScores:
    """Score every head as working against induction, and against the indirect object.

    Args:
        model: The model; hooks on it stay in force.
        n_sequences: Rows of random tokens said twice, `[BOS, r, r]`.
        length: Length of `r`; default 50, or what fits in the context.
        prompts: IOI prompts that end before the answer; default: those of `IOIDataset`, if the model has a tokenizer.
        answers: For each prompt, the indirect object's token and the subject's.
        n_prompts: Number of prompts of `IOIDataset`, half of them with the names exchanged; 0 leaves IOI out.
        seed: Of the random tokens and of those prompts.
        **run: Options of every run; see `RunOptions`. The `attention_mask` is that of `prompts`.

    Raises:
        InvalidInputError: for a size that is not positive, `prompts` without `answers`, or tokens that do not fit.
        NotFiniteError: if the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> scores = suppression_scores(model, n_sequences=2, length=20, n_prompts=4, progress=False)
        >>> [f"{score.label} {score.value:+.2f}" for score in scores.top(3, by="ioi")]
        ['1.3 +0.86', '2.0 +0.67', '3.1 +0.05']
    """
    one_vocabulary(model)
    if (prompts is None) != (answers is None):
        raise InvalidInputError("prompts and answers go together; give both or neither.")
    if n_prompts != 0 and n_prompts < 2:
        raise InvalidInputError(f"n_prompts must be at least 2, or 0 for none; got {n_prompts}.")
    # The mask is that of the prompts; no random token is padding.
    mask, run["attention_mask"] = run["attention_mask"], None
    if prompts is None and model.tokenizer is not None and n_prompts:
        prompts, answers, mask = _drawn_prompts(model, n_prompts, seed)
    tokens, length = _repeated_tokens(model, n_sequences, length, seed)
    described, given, measure_ioi, options = f"repeated random tokens (seed {seed})", None, None, {}
    if prompts is not None and answers is not None:
        described += f" and {len(prompts)} IOI prompts"
        given = {"tokens": prompts, "attention_mask": mask}
        measure_ioi, options = _ioi(model, len(prompts), answers), {"answers": fingerprint({"answers": answers})}
    run["describe"] = run["describe"] or described
    order = {} if given is None else {"anti-induction": "data", "IOI": "reference"}
    passes = Passes(
        "suppression-scores", model, tokens, options, reference=given, order=order, include_bos=False, **run
    )
    if (finished := passes.finished(SuppressionScores)) is not None:
        return finished
    repeats = passes.gather("anti-induction", Totals(model, _anti_induction(model, length)))
    sums, ioi = repeats.result(), None
    if measure_ioi is not None:
        against = passes.gather("IOI", Totals(model, measure_ioi), include_bos=True)
        ioi = (-against.result()["effect"] / against.n_sequences).float()
    info = RunInfo(model.cfg.model_name, model.weight_processing, passes.described, n_sequences, int(sums["n"]))
    return passes.keep(SuppressionScores(info, (-sums["effect"] / sums["n"]).float(), ioi))


def _repeated_tokens(
    model: HookedTransformer, n_sequences: int, length: int | None, seed: int
) -> tuple[Int[Tensor, "row pos"], int]:
    """Return rows of random tokens said twice, and how many are."""
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    bos = None if model.tokenizer is None else bos_token_id(model.tokenizer)
    length = min(_LONGEST, (model.cfg.n_ctx - 1) // 2) if length is None else length
    if length < 2:
        raise InvalidInputError(f"length must be at least 2, so that something repeats next; got {length}.")
    allowed = [token for token in range(model.cfg.d_vocab) if token not in special]
    return repeated_random_tokens(n_sequences, length, allowed=allowed, bos=bos, seed=seed), length


def _anti_induction(model: HookedTransformer, length: int) -> Measure:
    """Return a function that sums direct effects on the token that repeats next, over the second half of each row."""
    directions = TokenDirections(model)

    def measure(batch: Batch, n_before: int) -> dict[str, Tensor]:
        # From the first token of the repeat, whose next token can be known, to the last that has a next one.
        where = torch.zeros_like(batch.counted)
        where[:, -length:-1] = True
        expected = directions.of(batch.tokens.roll(-1, dims=1)[where])
        states = lens_states(model, Batch(batch.tokens, batch.attention_mask, where))
        effects = direct_effects(model, states, expected)
        return {"effect": wide(effects).sum(-1).cpu(), "n": where.sum().cpu()}

    return measure


def _ioi(model: HookedTransformer, n_prompts: int, answers: Int[Tensor, "answer 2"]) -> Measure:
    """Return a function that sums direct effects on the logit difference of two names, over prompts."""
    if answers.shape != (n_prompts, 2):
        raise InvalidInputError(
            f"answers must be two tokens for each of {n_prompts} prompts; got shape {list(answers.shape)}."
        )
    if int(answers.min()) < 0 or int(answers.max()) >= model.cfg.d_vocab:
        raise InvalidInputError(
            f"answers must be tokens between 0 and d_vocab - 1 = {model.cfg.d_vocab - 1}; got {int(answers.min())} to "
            f"{int(answers.max())}.",
            code="HS-TOKENS-01",
        )
    directions = TokenDirections(model)

    def measure(batch: Batch, n_before: int) -> dict[str, Tensor]:
        names = answers[n_before : n_before + len(batch.tokens)].to(batch.tokens.device)
        toward = directions.of(names[:, 0]) - directions.of(names[:, 1])
        last = Batch(batch.tokens, batch.attention_mask, _last(batch.counted))
        return {"effect": wide(direct_effects(model, lens_states(model, last), toward)).sum(-1).cpu()}

    return measure


def _last(real: Bool[Tensor, "row pos"]) -> Bool[Tensor, "row pos"]:
    """The last real position of each row."""
    if not bool(real.any(-1).all()):
        raise InvalidInputError("a prompt is all padding; every prompt needs a token.")
    return real & (real.long().flip(-1).cumsum(-1).flip(-1) == 1)


def _drawn_prompts(model: HookedTransformer, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts of `IOIDataset` without their last word, with the two names' tokens and the mask."""
    data = IOIDataset("mixed", n, model.tokenizer, prepend_bos=True, symmetric=True, seed=seed)
    answers = torch.tensor([data.io_tokenIDs, data.s_tokenIDs], device=data.toks.device).T
    before_answer = torch.arange(data.toks.shape[1], device=data.toks.device) <= data.word_idx["end"][:, None]
    return data.toks, answers, data.attention_mask.bool() & before_answer
