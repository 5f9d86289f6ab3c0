"""Reverse-engineering toy models: each head's logits, OV and QK circuits over tokens, and heads per operand.

For attention-only models without norms, whose logits are an exact sum: of the embedding's direct path, of each head's
`z W_O W_U`, and of biases, which belong to no head and are kept separate.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.data.tasks.base import TaskDataset
from headscope.data.tasks.skip_trigram import SkipTrigramDataset
from headscope.errors import InvalidInputError
from headscope.model.names import get_act_name
from headscope.model.parts.attention import Attention
from headscope.model.transformer import HookedTransformer
from headscope.training.toy import evaluate_task

__all__ = [
    "HeadLogits",
    "HeadsNeeded",
    "OperandGroup",
    "OperandStudy",
    "TokenCircuits",
    "head_logits",
    "heads_needed",
    "operand_study",
    "token_circuits",
]

_N_OPERANDS = 4


@dataclass(frozen=True)
class HeadLogits:
    """Decomposition of the logits at one position into a sum.

    Attributes:
        heads: Each head's contribution, `z W_O W_U`, `[sample, layer, head, d_vocab]`.
        bias: Contribution of the output biases, `b_O W_U`, `[layer, d_vocab]`.
        direct: The embedding's direct path, plus `b_U`, `[sample, d_vocab]`.
    """

    heads: Float[Tensor, "sample layer head d_vocab"]
    bias: Float[Tensor, "layer d_vocab"]
    direct: Float[Tensor, "sample d_vocab"]

    @property
    def total(self) -> Float[Tensor, "sample d_vocab"]:
        """The model's logits."""
        return self.heads.sum((1, 2)) + self.bias.sum(0) + self.direct


@torch.no_grad()
def head_logits(model: HookedTransformer, tokens: Int[Tensor, "sample pos"], *, position: int = -1) -> HeadLogits:
    """Decompose the logits at a position into the heads' contributions, biases and the direct path.

    Args:
        model: An attention-only model without norms.
        tokens: Prompts.
        position: The position whose logits are decomposed; the last by default.

    Raises:
        InvalidInputError: For a model with MLPs or norms, or a position out of range.

    Example:
        >>> from headscope.training import toy_configs
        >>> model = HookedTransformer(toy_configs.skip_trigram())
        >>> tokens = torch.tensor([[1, 7, 4, 0], [2, 5, 2, 0]])
        >>> parts = head_logits(model, tokens)
        >>> parts.heads.shape, torch.allclose(parts.total, model(tokens)[:, -1], atol=1e-5)
        (torch.Size([2, 1, 3, 11]), True)
    """
    _check_linear(model)
    if not -tokens.shape[1] <= position < tokens.shape[1]:
        raise InvalidInputError(f"position is {position}; the prompts have {tokens.shape[1]} tokens.")
    _, cache = model.run_with_cache(
        tokens,
        names_filter=lambda name: name.endswith("attn.hook_z") or name == "blocks.0.hook_resid_pre",
        return_type=None,
    )
    heads = [
        torch.einsum("she,hed->shd", cache["z", layer][:, position], model.W_O[layer]) @ model.W_U
        for layer in range(model.cfg.n_layers)
    ]
    direct = cache["resid_pre", 0][:, position] @ model.W_U + model.b_U
    return HeadLogits(torch.stack(heads, dim=1), model.b_O @ model.W_U, direct)


@dataclass(frozen=True)
class TokenCircuits:
    """A layer's circuits over tokens.

    Attributes:
        ov: A head's logits when it attends to a single token, without biases: `W_E W_V W_O W_U`,
            `[head, source, d_vocab]`.
        ov_bias: Its logits from the value bias, whatever it attends to: `b_V W_O W_U`, `[head, d_vocab]`.
        qk: Attention scores of a query token and a key token, including biases and scale, `[head, query, key]`.
    """

    ov: Float[Tensor, "head source d_vocab"]
    ov_bias: Float[Tensor, "head d_vocab"]
    qk: Float[Tensor, "head query key"]


@torch.no_grad()
def token_circuits(model: HookedTransformer, layer: int = 0) -> TokenCircuits:
    """Compute the OV and QK circuits of a layer over tokens, through the embedding and the unembedding.

    They fully describe a one-layer model without positions: attention is the softmax of `qk` over the tokens up to the
    query, and a head's logits are the attention-weighted mean of `ov`, plus `ov_bias`.

    Args:
        model: An attention-only model without norms.
        layer: Index of the layer.

    Raises:
        InvalidInputError: For a model with MLPs or norms, or a layer out of range.

    Example:
        >>> from headscope.training import toy_configs
        >>> circuits = token_circuits(HookedTransformer(toy_configs.skip_trigram()))
        >>> circuits.ov.shape, circuits.qk.shape
        (torch.Size([3, 11, 11]), torch.Size([3, 11, 11]))
    """
    _check_linear(model)
    if not 0 <= layer < model.cfg.n_layers:
        raise InvalidInputError(f"layer is {layer}; the model has layers 0 to {model.cfg.n_layers - 1}.")
    attn = model.blocks[layer].get_submodule("attn")
    assert isinstance(attn, Attention)
    queries = torch.einsum("vd,hde->hve", model.W_E, attn.W_Q) + attn.b_Q[:, None]
    keys = torch.einsum("vd,hde->hve", model.W_E, attn.W_K) + attn.b_K[:, None]
    out = attn.W_O @ model.W_U
    return TokenCircuits(
        ov=(model.W_E @ attn.W_V) @ out,
        ov_bias=(attn.b_V[:, None] @ out)[:, 0],
        qk=queries @ keys.transpose(1, 2) / attn.attn_scale,
    )


@dataclass(frozen=True)
class OperandGroup:
    """Performance on a group of pairs of operands, averaged over them.

    Attributes:
        accuracy: Fraction of prompts answered correctly.
        loss: Mean cross-entropy, in nats.
        margin: Mean logit of the correct answer minus the largest other logit.
        smallest_margin: The smallest margin of any prompt.
    """

    accuracy: float
    loss: float
    margin: float
    smallest_margin: float


@dataclass(frozen=True)
class OperandStudy:
    """Behavior of a skip-trigram model on each pair of operands, averaged over the tokens between them.

    The axes `first` and `second` are indexed by the operands' values minus 1; every signal prompt counts once.

    Attributes:
        attention: Attention from the last position to the first operand, the second, all between them, and itself,
            `[layer, head, target, first, second]`.
        logits: Each head's logits minus their mean over pairs, `[layer, head, first, second, d_vocab]`.
        margin: Logit of the correct answer minus the largest other logit, `[first, second]`.
        smallest_margin: The margin of the worst prompt.
        loss: In nats, `[first, second]`.
        accuracy: `[first, second]`.
        margin_without: The margin with a head's mean over pairs in place of its logits,
            `[layer, head, first, second]`.
    """

    attention: Float[Tensor, "layer head target first second"]
    logits: Float[Tensor, "layer head first second d_vocab"]
    margin: Float[Tensor, "first second"]
    smallest_margin: Float[Tensor, "first second"]
    loss: Float[Tensor, "first second"]
    accuracy: Float[Tensor, "first second"]
    margin_without: Float[Tensor, "layer head first second"]

    @property
    def repeated(self) -> OperandGroup:
        """Pairs of equal operands: labels 0, 4, 7 and 9, half as frequent in training as the others."""
        return self._group(torch.eye(_N_OPERANDS, dtype=torch.bool, device="cpu"))

    @property
    def mixed(self) -> OperandGroup:
        """Pairs of different operands."""
        return self._group(~torch.eye(_N_OPERANDS, dtype=torch.bool, device="cpu"))

    @property
    def carried(self) -> Float[Tensor, "layer head value"]:
        """Each head's response to an operand value: the norm of its logits, averaged over the other operand.

        Without positions, first and second operand are indistinguishable, so heads specialize in values, not places.
        """
        effect = 0.5 * (self.logits.mean(3) + self.logits.mean(2))
        return (effect - effect.mean(-1, keepdim=True)).norm(dim=-1)

    @property
    def additive(self) -> Float[Tensor, "layer head"]:
        """Share of the variance of a head's logits over pairs that is additive in the two operands."""
        centered = self.logits - self.logits.mean(-1, keepdim=True)
        first, second = centered.mean(3, keepdim=True), centered.mean(2, keepdim=True)
        # The logits have mean zero over pairs, so main effects need no grand mean taken off.
        interaction = centered - first - second
        return 1 - interaction.square().sum((2, 3, 4)) / centered.square().sum((2, 3, 4))

    def _group(self, pairs: Tensor) -> OperandGroup:
        means = {name: float(getattr(self, name)[pairs].mean()) for name in ("accuracy", "loss", "margin")}
        return OperandGroup(**means, smallest_margin=float(self.smallest_margin[pairs].min()))


@dataclass(frozen=True)
class HeadsNeeded:
    """Performance on a task's signal answers with one head at a time replaced by its mean over the data.

    Attributes:
        loss: Mean loss with all heads, in nats.
        accuracy: Accuracy with all heads.
        loss_without: Loss without each head, `[layer, head]`.
        accuracy_without: Accuracy without each head, `[layer, head]`.
    """

    loss: float
    accuracy: float
    loss_without: Float[Tensor, "layer head"]
    accuracy_without: Float[Tensor, "layer head"]

    def __str__(self) -> str:
        """Return a table, the heads that are missed most first."""
        lines = [f"all heads: loss {self.loss:.4f}, accuracy {self.accuracy:.1%}; without"]
        n_heads = self.loss_without.shape[1]
        losses, accuracies = self.loss_without.flatten(), self.accuracy_without.flatten()
        for at in losses.argsort(descending=True, stable=True).tolist():
            label = f"{at // n_heads}.{at % n_heads}"
            lines.append(f"  {label:<7} loss {losses[at]:.4f}, accuracy {accuracies[at]:.1%}")
        return "\n".join(lines)


@torch.no_grad()
def heads_needed(model: HookedTransformer, data: TaskDataset) -> HeadsNeeded:
    """Mean-ablate each head, one at a time, and evaluate the task.

    The mean is that of `z` over the rows, at each position; everything after the head is recomputed.

    Args:
        model: The model, with or without norms and MLPs.
        data: The task; its `z` must fit in memory.

    Raises:
        InvalidInputError: If the data does not fit the model.

    Example:
        >>> from headscope.training import toy_configs
        >>> model = HookedTransformer(toy_configs.skip_trigram())
        >>> print(heads_needed(model, SkipTrigramDataset(50)))
        all heads: loss 2.4..., accuracy ...%; without
          0.0     loss 2.4..., accuracy ...
    """
    intact = evaluate_task(model, data)
    names = [get_act_name("z", layer) for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(data.tokens.to(model.input_device), names_filter=names, return_type=None)
    ablated = torch.zeros(2, model.cfg.n_layers, model.cfg.n_heads, device="cpu")
    for layer, name in enumerate(names):
        means = cache[name].mean(0)
        for head in range(model.cfg.n_heads):

            def put_mean(z: Tensor, hook: object, head: int = head, means: Tensor = means) -> Tensor:
                z = z.clone()
                z[:, :, head] = means[:, head]
                return z

            with model.hooks(fwd_hooks=[(name, put_mean)]):
                metrics = evaluate_task(model, data)
            ablated[:, layer, head] = torch.tensor([metrics.signal_loss, metrics.signal_accuracy], device="cpu")
    return HeadsNeeded(intact.signal_loss, intact.signal_accuracy, ablated[0], ablated[1])


@torch.no_grad()
def operand_study(model: HookedTransformer, prompt_length: int = 4) -> OperandStudy:
    """Study a model's answers to every signal prompt of the skip-trigram task, pair by pair.

    Args:
        model: An attention-only model without norms.
        prompt_length: Tokens in a prompt.

    Raises:
        InvalidInputError: For a model with MLPs or norms, or a prompt length out of range.

    Example:
        >>> from headscope.training import toy_configs
        >>> study = operand_study(HookedTransformer(toy_configs.skip_trigram()))
        >>> study.attention.shape, study.margin.shape
        (torch.Size([1, 3, 4, 4, 4]), torch.Size([4, 4]))
    """
    tokens, labels = SkipTrigramDataset.every_signal(prompt_length)
    tokens, labels = tokens.to(model.input_device), labels.to(model.input_device)
    parts = head_logits(model, tokens)
    changing = parts.heads - parts.heads.mean(0)
    logits = parts.total
    margin = _margin(logits, labels)
    without = [_margin(logits - head, labels) for head in changing.flatten(1, 2).unbind(1)]
    return OperandStudy(
        attention=_attention(model, tokens),
        logits=_by_pair(changing, 0).movedim(2, -1),
        margin=_by_pair(margin),
        smallest_margin=margin.view(_N_OPERANDS, -1, _N_OPERANDS).amin(1).cpu(),
        loss=_by_pair(torch.nn.functional.cross_entropy(logits, labels, reduction="none")),
        accuracy=_by_pair((margin > 0).float()),
        margin_without=_by_pair(torch.stack(without).view(*changing.shape[1:3], -1)),
    )


def _attention(model: HookedTransformer, tokens: Tensor) -> Float[Tensor, "layer head target first second"]:
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"), return_type=None)
    patterns = torch.stack([cache["pattern", layer][:, :, -1] for layer in range(model.cfg.n_layers)])
    patterns = patterns.permute(0, 2, 3, 1)  # [layer, head, key_pos, prompt]
    targets = [patterns[:, :, 0], patterns[:, :, -2], patterns[:, :, 1:-2].sum(2), patterns[:, :, -1]]
    return _by_pair(torch.stack(targets, dim=2))


def _by_pair(values: Tensor, axis: int = -1) -> Tensor:
    """Average over fillers: an axis of prompts, in the order of `every_signal`, becomes `first, second`."""
    return values.movedim(axis, -1).unflatten(-1, (_N_OPERANDS, -1, _N_OPERANDS)).mean(-2).cpu()


def _margin(logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def _check_linear(model: HookedTransformer) -> None:
    cfg = model.cfg
    if not cfg.attn_only or cfg.normalization_type is not None or cfg.output_logits_soft_cap > 0:
        raise InvalidInputError(
            f"{cfg.model_name} has MLPs, norms or a soft cap, so its logits are not a sum over heads; use "
            "cache.stack_head_results() and cache.logit_attrs(), which freeze the final norm."
        )
