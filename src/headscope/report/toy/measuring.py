"""Analyses of a page about a toy model: everything that runs the model or reads its weights."""

from pathlib import Path

import torch
from torch import Tensor

from headscope.analysis.heads.types import detect_heads
from headscope.data.tasks import ModularAdditionDataset, TaskDataset
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.report.model.measuring import model_facts
from headscope.report.toy.findings import Answer, ToyFindings
from headscope.training.toy_checkpoint import load_toy_model
from headscope.training.toy_dynamics import training_dynamics
from headscope.training.toy_fourier import fourier_power
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import head_logits, heads_needed, token_circuits

__all__ = ["measure_toy"]

_LEAST_CONTEXT = 5  # two copies of at least two tokens and a first one, or there is nothing to look back at
_LEAST_VOCABULARY = 5
_PROMPTS = 10


@torch.no_grad()
def measure_toy(
    model: HookedTransformer, data: TaskDataset, result: TrainingResult, run: str | Path | None, *, progress: bool
) -> ToyFindings:
    """Measure a model trained on a toy task; with the folder of its run, also along its training.

    Raises:
        InvalidInputError: If no row of data has an answer that its prompt settles.
    """
    settled = data.signal[:, -1].nonzero()[:, 0]
    if not len(settled):
        raise InvalidInputError("no row of data has a last answer that its prompt settles; give more rows.")
    dynamics = first = None
    if run is not None:
        dynamics = training_dynamics(run, data, device=str(model.input_device), progress=progress)
        first = load_toy_model(run, step=int(dynamics.steps[0]), device="cpu")
    cfg = model.cfg
    shown = data.tokens[settled[:1], : data.answer_positions.stop]
    _, cache = model.run_with_cache(shown, return_type=None)
    is_plain_sum = cfg.attn_only and cfg.normalization_type is None and cfg.output_logits_soft_cap <= 0
    repeats = cfg.n_ctx >= _LEAST_CONTEXT and cfg.d_vocab >= _LEAST_VOCABULARY
    return ToyFindings(
        facts=model_facts(model),
        n_trained=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        data=data,
        result=result,
        answers=_answers(model, data, settled),
        shown=tuple(shown[0].tolist()),
        patterns=torch.cat([cache["pattern", layer][0] for layer in range(cfg.n_layers)]).cpu(),
        heads=heads_needed(model, data),
        types=detect_heads(model, progress=progress) if repeats else None,
        dynamics=dynamics,
        parts=head_logits(model, shown) if is_plain_sum else None,
        circuits=token_circuits(model) if is_plain_sum and cfg.n_layers == 1 else None,
        power=_power(model, first, data) if isinstance(data, ModularAdditionDataset) else None,
    )


def _answers(model: HookedTransformer, data: TaskDataset, settled: Tensor) -> tuple[Answer, ...]:
    """Ask the first prompt for each answer, as far as they go."""
    end = data.answer_positions.stop
    first: dict[int, int] = {}
    for row in settled.tolist():
        first.setdefault(int(data.labels[row, -1]), row)
    chosen = sorted(first.items())[:_PROMPTS]
    prompts = data.tokens[[row for _, row in chosen], :end]
    probabilities, replies = model(prompts.to(model.input_device))[:, -1].float().softmax(-1).max(-1)
    return tuple(
        Answer(tuple(prompt), label, reply, probability)
        for prompt, (label, _), reply, probability in zip(
            prompts.tolist(), chosen, replies.tolist(), probabilities.tolist(), strict=True
        )
    )


def _power(
    model: HookedTransformer, first: HookedTransformer | None, data: ModularAdditionDataset
) -> dict[str, Tensor]:
    models = {"before training": first, "after": model}
    return {name: fourier_power(each.W_E[: data.p].cpu()) for name, each in models.items() if each is not None}
