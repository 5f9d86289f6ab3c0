"""The IOI task as notebooks run it: sentences, the same with other names, activations on each, and a metric.

*Noising* puts activations of the corrupted run into the clean one, and measures the damage; *denoising* puts those of
the clean run into the corrupted one, and measures the recovery (Wang et al. 2022, arXiv 2211.00593).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.prompts.answers import logit_difference
from headscope.analysis.prompts.metrics import AnswerMetric, gap_between
from headscope.compat.ioi_eval import tokenizer_of
from headscope.data.ioi import IOIDataset
from headscope.model.activations.cache import ActivationCache
from headscope.model.transformer import HookedTransformer

__all__ = [
    "IOIMetric",
    "generate_data_and_caches",
    "ioi_logit_difference",
    "ioi_metric_denoising",
    "ioi_metric_noising",
]


def ioi_logit_difference(
    logits: Float[Tensor, "prompt pos d_vocab"], ioi_dataset: IOIDataset, per_prompt: bool = False
) -> Float[Tensor, "*prompt"]:
    """Return the indirect object's logit minus the subject's, where the sentences' last word is predicted.

    The answers are those of `ioi_dataset`; for logits of sentences with other names, give the original data set.
    """
    answers = torch.tensor([ioi_dataset.io_tokenIDs, ioi_dataset.s_tokenIDs]).T
    return logit_difference(logits, answers, per_prompt, positions=ioi_dataset.word_idx["end"])


def ioi_metric_noising(
    logits: Float[Tensor, "prompt pos d_vocab"],
    clean_logit_diff: float | Float[Tensor, ""],
    corrupted_logit_diff: float | Float[Tensor, ""],
    ioi_dataset: IOIDataset,
) -> Float[Tensor, ""]:
    """Return the share of the logit difference that a patch breaks: 0 for nothing, -1 for all of it.

    `(patched - clean) / (clean - corrupted)`, each the mean over sentences.

    Args:
        logits: Logits of the patched run.
        clean_logit_diff: The difference on the sentences.
        corrupted_logit_diff: The difference of the same answers on the sentences with other names.
        ioi_dataset: The sentences.

    Raises:
        InvalidInputError: If the two differences are equal, so that there is nothing to break.
    """
    patched = ioi_logit_difference(logits, ioi_dataset)
    return (patched - clean_logit_diff) / gap_between(clean_logit_diff, corrupted_logit_diff)


def ioi_metric_denoising(
    logits: Float[Tensor, "prompt pos d_vocab"],
    clean_logit_diff: float | Float[Tensor, ""],
    corrupted_logit_diff: float | Float[Tensor, ""],
    ioi_dataset: IOIDataset,
) -> Float[Tensor, ""]:
    """Return the share of the logit difference that a patch brings back: 0 for nothing, 1 for all of it.

    `(patched - corrupted) / (clean - corrupted)`, each the mean over sentences. See `ioi_metric_noising`.
    """
    patched = ioi_logit_difference(logits, ioi_dataset)
    return (patched - corrupted_logit_diff) / gap_between(clean_logit_diff, corrupted_logit_diff)


class IOIMetric(AnswerMetric):
    """`ioi_metric_noising` as a metric of a patched run's logits, or with `denoises` its counterpart.

    0 is the run before the patch; -1 (noising) or 1 (denoising) is the other run.

    Attributes:
        ioi_dataset: The sentences.
        clean_logit_diff: The mean logit difference on them.
        corrupted_logit_diff: That on the sentences with other names, of the same answers.
        denoises: True if the patched run is a corrupted one with clean parts.
    """

    ioi_dataset: IOIDataset
    clean_logit_diff: float
    corrupted_logit_diff: float
    denoises: bool

    def __init__(
        self, ioi_dataset: IOIDataset, clean_logit_diff: float, corrupted_logit_diff: float, denoises: bool = False
    ) -> None:
        answers = torch.tensor([ioi_dataset.io_tokenIDs, ioi_dataset.s_tokenIDs])[:, :, None]
        zero = corrupted_logit_diff if denoises else clean_logit_diff
        unit = clean_logit_diff - corrupted_logit_diff
        super().__init__(answers[0], answers[1], ioi_dataset.word_idx["end"], zero, unit)
        vars(self).update(
            ioi_dataset=ioi_dataset,
            clean_logit_diff=clean_logit_diff,
            corrupted_logit_diff=corrupted_logit_diff,
            denoises=denoises,
        )

    def denoising(self) -> "IOIMetric":
        """Return the metric for clean parts put into the corrupted run."""
        return IOIMetric(self.ioi_dataset, self.clean_logit_diff, self.corrupted_logit_diff, denoises=True)


@torch.no_grad()
def generate_data_and_caches(
    N: int,
    model: HookedTransformer,
    *,
    verbose: bool = False,
    seed: int = 42,
    only_ioi: bool = False,
    prepend_bos: bool = False,
    symmetric: bool = False,
    prompt_type: str | Sequence[str] = "mixed",
    names_filter: Any = None,
) -> Any:
    """Draw IOI sentences, make the same with three other people ("ABC"), and run the model on both.

    The activations are those of all sentences in one batch; where there are many, keep fewer by `names_filter`.

    Args:
        N: Number of sentences.
        model: The model; hooks that are on it stay.
        verbose: Print an example of each and the mean logit differences.
        seed: Seed of the draws.
        only_ioi: Leave out the sentences with other people.
        prepend_bos: Begin each row with BOS.
        symmetric: Follow each sentence by its twin with the two people exchanged.
        prompt_type: See `IOIDataset`.
        names_filter: The activations to keep, as for `run_with_cache`.

    Returns:
        The data set, the one with other people, the activations on each, and the noising `IOIMetric`; with `only_ioi`
        the data set and its activations.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: As for `IOIDataset`.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> ioi_dataset, abc_dataset, ioi_cache, abc_cache, ioi_metric_noising = generate_data_and_caches(
        ...     N=8, model=model, seed=420, prepend_bos=True
        ... )
        >>> [round(abs(ioi_metric_noising(model(data.toks)).item()), 3) for data in (ioi_dataset, abc_dataset)]
        [0.0, 1.0]
    """
    ioi = IOIDataset(
        prompt_type,
        N,
        tokenizer_of(model, None),
        prepend_bos=prepend_bos,
        symmetric=symmetric,
        seed=seed,
        device=model.W_E.device,
    )
    logits, cache = _run(model, ioi, names_filter)
    clean = float(ioi_logit_difference(logits, ioi))
    if verbose:
        print(f"IOI: {ioi.sentences[0]!r}, mean logit difference {clean:.4f}")
    if only_ioi:
        return ioi, cache
    orders = dict.fromkeys(order[:3] for order in ioi.orders)
    abc = ioi.gen_flipped_prompts(", ".join(f"{order}->XYZ" for order in orders))
    logits, abc_cache = _run(model, abc, names_filter)
    corrupted = float(ioi_logit_difference(logits, ioi))
    if verbose:
        print(f"ABC: {abc.sentences[0]!r}, mean logit difference {corrupted:.4f}")
    return ioi, abc, cache, abc_cache, IOIMetric(ioi, clean, corrupted)


def _run(model: HookedTransformer, dataset: IOIDataset, names_filter: Any) -> tuple[Tensor, ActivationCache]:
    logits, cache = model.run_with_cache(dataset.toks, attention_mask=dataset.attention_mask, names_filter=names_filter)
    return logits, cache
