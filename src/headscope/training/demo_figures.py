"""Evaluation of the demo model: the numbers stated in its model card.

Everything is measured on held-out data: training draws documents and repeated random tokens with the recipe's seed,
the evaluation with another.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.ranking import Ranking
from headscope.analysis.heads.scores import head_scores, scored_tokens
from headscope.analysis.lens.loss import next_token_loss
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.data.packing import tokenize_and_concatenate
from headscope.data.small_english import documents, ioi_prompts
from headscope.errors import MissingTokenizerError, check_at_least
from headscope.model.transformer import HookedTransformer

__all__ = ["EVALUATION_SEED", "DemoFigures", "evaluate_demo"]

EVALUATION_SEED = 20_000
_PERIOD = 50
_N_RANDOM = 64
_N_TEXT_ROWS = 64
_N_SUPPRESSION_ROWS = 12


@dataclass(frozen=True)
class DemoFigures:
    """Measured numbers of the demo model. Losses are in nats per token; `print` shows a table.

    Attributes:
        seed: Seed of the data.
        n_prompts: IOI prompts, half ABBA and half BABA.
        ioi_accuracy: Fraction of prompts where the indirect object's logit is above the subject's.
        ioi_top1: Fraction where the indirect object is the likeliest of all tokens.
        ioi_logit_difference: Mean logit of the indirect object minus that of the subject.
        loss_first_half: Loss on the first half of repeated random tokens.
        loss_second_half: Loss on the second half, the repeat.
        loss_long_repeat: Loss on the repeat of random tokens that fill half the context, for its first and second half.
        loss_english: Loss on the small English.
        previous_token: Heads with the highest previous-token scores on the repeated random tokens.
        duplicate_token: The same, for duplicate-token scores.
        induction: The same, for induction scores.
        name_movers: Heads with the largest positive direct effect on the logit difference.
        opposing: Heads with the largest negative direct effect on it.
        copy_suppression: Heads whose direct effect on the small English is best explained by copy suppression.
    """

    seed: int
    n_prompts: int
    ioi_accuracy: float
    ioi_top1: float
    ioi_logit_difference: float
    loss_first_half: float
    loss_second_half: float
    loss_long_repeat: tuple[float, float]
    loss_english: float
    previous_token: Ranking
    duplicate_token: Ranking
    induction: Ranking
    name_movers: Ranking
    opposing: Ranking
    copy_suppression: Ranking

    def rows(self) -> list[tuple[str, str]]:
        """Return description and value of each number, as the card and the command line print them."""

        def heads(ranking: Ranking) -> str:
            return ", ".join(f"{score.label} ({score.value:.2f})" for score in ranking)

        return [
            (f"IOI: indirect object above subject, {self.n_prompts} prompts", f"{self.ioi_accuracy:.1%}"),
            ("IOI: indirect object above every other token", f"{self.ioi_top1:.1%}"),
            ("IOI: mean logit difference", f"{self.ioi_logit_difference:.2f}"),
            ("Random tokens: loss on the first half, nats", f"{self.loss_first_half:.2f}"),
            ("Random tokens: loss on the repeated half, nats", f"{self.loss_second_half:.2f}"),
            (
                "Blocks of half the context: loss on the repeat's halves, nats",
                " and ".join(f"{loss:.2f}" for loss in self.loss_long_repeat),
            ),
            ("Small English: loss, nats", f"{self.loss_english:.2f}"),
            ("Previous-token heads (score)", heads(self.previous_token)),
            ("Duplicate-token heads (score)", heads(self.duplicate_token)),
            ("Induction heads (score)", heads(self.induction)),
            ("Name movers (direct logit difference)", heads(self.name_movers)),
            ("Opposing heads (direct logit difference)", heads(self.opposing)),
            ("Copy suppression (share it explains of a head's direct effect)", heads(self.copy_suppression)),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join([f"On data of seed {self.seed}:", *(f"{label:<{width}}  {value}" for label, value in rows)])


def evaluate_demo(
    model: HookedTransformer, *, seed: int = EVALUATION_SEED, n_prompts: int = 500, progress: bool = True
) -> DemoFigures:
    """Measure the demo model, or any model of the small English, on data drawn with `seed`.

    Args:
        model: The model, with its tokenizer.
        seed: Seed of the data; not one that training used.
        n_prompts: Number of IOI prompts.
        progress: Show a progress bar.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: If `n_prompts` is below 1, or the context is too short for the prompts.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> for label, value in evaluate_demo(model, n_prompts=100, progress=False).rows()[:5]:
        ...     print(f"{label:<48} {value}")
        IOI: indirect object above subject, 100 prompts  99.0%
        IOI: indirect object above every other token     99.0%
        IOI: mean logit difference                       8.10
        Random tokens: loss on the first half, nats      6.97
        Random tokens: loss on the repeated half, nats   0.30
    """
    if model.tokenizer is None:
        raise MissingTokenizerError(
            "evaluate_demo needs a tokenizer to make prompts; load the model with one: "
            "HookedTransformer.from_pretrained(directory)."
        )
    check_at_least(1, n_prompts=n_prompts)
    with torch.no_grad():
        correct, first, difference, direct = _ioi(model, n_prompts, seed)
    half = (model.cfg.n_ctx - 1) // 2
    random_tokens, long_blocks = (scored_tokens(model, _N_RANDOM, length, seed) for length in (_PERIOD, half))
    rows = tokenize_and_concatenate(
        documents(seed), model.tokenizer, max_length=model.cfg.n_ctx, batch_size=_N_TEXT_ROWS
    )
    english = next(rows).to(model.W_E.device)
    loss, long_loss, loss_english = (
        next_token_loss(model, tokens, progress=progress) for tokens in (random_tokens, long_blocks, english)
    )
    long_repeat = long_loss[:, half + 1 :]
    scores = head_scores(model, random_tokens, progress=progress)
    suppression = copy_suppression_preserving_ablation(model, english[:_N_SUPPRESSION_ROWS], progress=progress)
    return DemoFigures(
        seed=seed,
        n_prompts=n_prompts,
        ioi_accuracy=correct,
        ioi_top1=first,
        ioi_logit_difference=difference,
        loss_first_half=float(loss[:, :_PERIOD].nanmean()),
        # Without the first token of the repeat, which is unpredictable: nothing shows that the first half ends there.
        loss_second_half=float(loss[:, _PERIOD + 1 :].mean()),
        loss_long_repeat=(float(long_repeat[:, : half // 2].mean()), float(long_repeat[:, half // 2 :].mean())),
        loss_english=float(loss_english.nanmean()),
        previous_token=scores.top(3, by="previous_token"),
        duplicate_token=scores.top(3, by="duplicate_token"),
        induction=scores.top(3, by="induction"),
        name_movers=Ranking.of_heads(direct, 3, name="direct logit difference"),
        opposing=Ranking.of_heads(direct, 3, name="direct logit difference", largest=False),
        copy_suppression=suppression.top(3),
    )


def _ioi(model: HookedTransformer, n: int, seed: int) -> tuple[float, float, float, Float[Tensor, "layer head"]]:
    """Return accuracy, top-1 accuracy, mean logit difference, and each head's direct effect on it."""
    needed = ("attn.hook_z", "hook_resid_post", "ln_final.hook_scale")
    correct = first = 0
    difference = 0.0
    direct = torch.zeros(model.cfg.n_layers * model.cfg.n_heads, dtype=torch.float64)
    for tokens, answers, wrong in _prompts_by_length(model, n, seed):
        logits, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(needed))
        final = logits[:, -1]
        answer_logit, wrong_logit = final.gather(1, answers[:, None]), final.gather(1, wrong[:, None])
        correct += int((answer_logit > wrong_logit).sum())
        first += int((final.argmax(-1) == answers).sum())
        difference += float((answer_logit - wrong_logit).sum())
        heads = cache.stack_head_results(pos_slice=-1)
        direct += cache.logit_attrs(heads, answers, incorrect_tokens=wrong, pos_slice=-1).double().sum(1).cpu()
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    return correct / n, first / n, difference / n, (direct / n).view(shape).float()


def _prompts_by_length(
    model: HookedTransformer, n: int, seed: int
) -> Iterator[tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"], Int[Tensor, " batch"]]]:
    """Yield prompts in batches of equal length, so that nothing is padded."""
    by_length = defaultdict(list)
    for prompt in ioi_prompts(n, seed):
        tokens = model.to_tokens(prompt.prompt)[0]
        by_length[len(tokens)].append((tokens, *map(model.to_single_token, (prompt.answer, prompt.wrong))))
    for prompts in by_length.values():
        for start in range(0, len(prompts), 128):
            texts, answers, wrong = zip(*prompts[start : start + 128], strict=True)
            rows = torch.stack(texts)
            yield rows, torch.tensor(answers, device=rows.device), torch.tensor(wrong, device=rows.device)
