"""Taking a toy model apart: what each head adds to the logits, circuits over tokens, who carries which operand.

For attention-only models without norms, whose logits are an exact sum: of the embedding's direct path, of each head's
`z W_O W_U`, and of biases, which belong to no head and are kept apart.
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
    """The parts whose sum the logits of one position are.

    Attributes:
        heads: What each head adds, `z W_O W_U`, `[sample, layer, head, d_vocab]`.
        bias: What attention layers add whatever their heads do, `b_O W_U`, `[layer, d_vocab]`.
        direct: The embedding read out directly, and `b_U`, `[sample, d_vocab]`.
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
    """What each head adds to the logits of a position, biases apart.

    Args:
        model: An attention-only model without norms.
        tokens: Prompts.
        position: The position whose logits are taken apart; default: the last.

    Raises:
        InvalidInputError: For a model with MLPs or norms, or a position that is not there.

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
        ov: What a head adds to the logits when it attends to nothing but a token, biases apart: `W_E W_V W_O W_U`,
            `[head, source, d_vocab]`.
        ov_bias: What it adds whatever it attends to: `b_V W_O W_U`, `[head, d_vocab]`.
        qk: How a query token scores a key token, biases and scale included: the logits of attention,
            `[head, query, key]`.
    """

    ov: Float[Tensor, "head source d_vocab"]
    ov_bias: Float[Tensor, "head d_vocab"]
    qk: Float[Tensor, "head query key"]


@torch.no_grad()
def token_circuits(model: HookedTransformer, layer: int = 0) -> TokenCircuits:
    """The OV and QK circuits of a layer over tokens, through the embedding and the unembedding.

    In a one-layer model without positions they are all there is: attention is the softmax of `qk` over the tokens up
    to the query, and a head's logits are the attention-weighted mean of `ov`, plus `ov_bias`.

    Args:
        model: An attention-only model without norms.
        layer: Which layer.

    Raises:
        InvalidInputError: For a model with MLPs or norms, or a layer that it does not have.

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
    """How a model treats some of the pairs of operands, averaged over them.

    Attributes:
        accuracy: Fraction of prompts with the right answer.
        loss: Mean cross-entropy, in nats.
        margin: Mean logit of the right answer less that of the best other.
        smallest_margin: The smallest of any prompt.
    """

    accuracy: float
    loss: float
    margin: float
    smallest_margin: float


@dataclass(frozen=True)
class OperandStudy:
    """How a model of the skip-trigram task treats each pair of operands; every signal prompt counts once.

    The first operand's value, less 1, is the index of an axis `first`; likewise `second`. What stands between them is
    averaged over.

    Attributes:
        attention: Attention of the last position to the first operand, the second, all between them, and itself,
            `[layer, head, target, first, second]`.
        logits: What each head adds to the logits, less its mean over pairs, `[layer, head, first, second, d_vocab]`.
        margin: Logit of the right answer less that of the best other, `[first, second]`.
        smallest_margin: The same of the worst prompt.
        loss: In nats, `[first, second]`.
        accuracy: `[first, second]`.
        margin_without: The margin when a head adds its mean over pairs instead, `[layer, head, first, second]`.
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
        return self._group(torch.eye(_N_OPERANDS, dtype=torch.bool))

    @property
    def mixed(self) -> OperandGroup:
        """Pairs of different operands."""
        return self._group(~torch.eye(_N_OPERANDS, dtype=torch.bool))

    @property
    def carried(self) -> Float[Tensor, "layer head value"]:
        """How far, in logits, a head moves when one operand has this value: the norm of its mean over the other's.

        Without positions first and second operands cannot be told apart, so heads share out values, not places.
        """
        effect = 0.5 * (self.logits.mean(3) + self.logits.mean(2))
        return (effect - effect.mean(-1, keepdim=True)).norm(dim=-1)

    @property
    def additive(self) -> Float[Tensor, "layer head"]:
        """How much of the variance of a head's logits over pairs is a sum of what each operand gives for itself."""
        centred = self.logits - self.logits.mean(-1, keepdim=True)
        first, second = centred.mean(3, keepdim=True), centred.mean(2, keepdim=True)
        rest = centred - first - second  # both means are taken around zero: over pairs the logits have mean zero
        return 1 - rest.square().sum((2, 3, 4)) / centred.square().sum((2, 3, 4))

    def _group(self, pairs: Tensor) -> OperandGroup:
        return OperandGroup(
            accuracy=float(self.accuracy[pairs].mean()),
            loss=float(self.loss[pairs].mean()),
            margin=float(self.margin[pairs].mean()),
            smallest_margin=float(self.smallest_margin[pairs].min()),
        )


@dataclass(frozen=True)
class HeadsNeeded:
    """What a task's settled answers become when one head at a time adds its mean over the data.

    Attributes:
        loss: Mean loss with all heads, in nats.
        accuracy: Share that is right.
        loss_without: The same without each head, `[layer, head]`.
        accuracy_without: The same, `[layer, head]`.
    """

    loss: float
    accuracy: float
    loss_without: Float[Tensor, "layer head"]
    accuracy_without: Float[Tensor, "layer head"]


@torch.no_grad()
def heads_needed(model: HookedTransformer, data: TaskDataset) -> HeadsNeeded:
    """Put each head's mean in its place, one head at a time, and measure the answers again.

    The mean is that of `z` over the data's rows, at each position; everything after the head is computed again.

    Args:
        model: The model, with norms and MLPs or without.
        data: The task; it fits into memory whole, and so do its `z`.

    Raises:
        InvalidInputError: If the data does not fit the model.

    Example:
        >>> from headscope.training import toy_configs
        >>> model = HookedTransformer(toy_configs.skip_trigram())
        >>> heads_needed(model, SkipTrigramDataset(50)).loss_without.shape
        torch.Size([1, 3])
    """
    whole = evaluate_task(model, data)
    names = [get_act_name("z", layer) for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(data.tokens.to(model.input_device), names_filter=names, return_type=None)
    found = torch.zeros(2, model.cfg.n_layers, model.cfg.n_heads)
    for layer, name in enumerate(names):
        means = cache[name].mean(0)
        for head in range(model.cfg.n_heads):

            def put_mean(z: Tensor, hook: object, head: int = head, means: Tensor = means) -> Tensor:
                z = z.clone()
                z[:, :, head] = means[:, head]
                return z

            with model.hooks(fwd_hooks=[(name, put_mean)]):
                metrics = evaluate_task(model, data)
            found[:, layer, head] = torch.tensor([metrics.signal_loss, metrics.signal_accuracy])
    return HeadsNeeded(whole.signal_loss, whole.signal_accuracy, found[0], found[1])


@torch.no_grad()
def operand_study(model: HookedTransformer, prompt_length: int = 4) -> OperandStudy:
    """Take apart how a model answers every signal prompt of the skip-trigram task.

    Args:
        model: An attention-only model without norms.
        prompt_length: Tokens in a prompt.

    Raises:
        InvalidInputError: For a model with MLPs or norms, or a length that there are no prompts of.

    Example:
        >>> from headscope.training import toy_configs
        >>> study = operand_study(HookedTransformer(toy_configs.skip_trigram()))
        >>> study.attention.shape, study.repeated.accuracy <= 1
        (torch.Size([1, 3, 4, 4, 4]), True)
    """
    tokens, labels = SkipTrigramDataset.every_signal(prompt_length)
    tokens, labels = tokens.to(model.input_device), labels.to(model.input_device)
    parts = head_logits(model, tokens)
    changing = parts.heads - parts.heads.mean(0)
    logits = parts.total
    margin = _margin(logits, labels)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    without = [_margin(logits - head, labels) for head in changing.flatten(1, 2).unbind(1)]
    return OperandStudy(
        attention=_attention(model, tokens),
        logits=_by_pair(changing, 0).movedim(2, -1),
        margin=_by_pair(margin),
        smallest_margin=margin.view(_N_OPERANDS, -1, _N_OPERANDS).amin(1).cpu(),
        loss=_by_pair(loss),
        accuracy=_by_pair((margin > 0).float()),
        margin_without=_by_pair(torch.stack(without).view(*changing.shape[1:3], -1)),
    )


def _attention(model: HookedTransformer, tokens: Tensor) -> Float[Tensor, "layer head target first second"]:
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"), return_type=None)
    found = torch.stack([cache["pattern", layer][:, :, -1] for layer in range(model.cfg.n_layers)])
    paid = found.permute(0, 2, 3, 1)  # [layer, head, key_pos, prompt]
    targets = [paid[:, :, 0], paid[:, :, -2], paid[:, :, 1:-2].sum(2), paid[:, :, -1]]
    return _by_pair(torch.stack(targets, dim=2))


def _by_pair(values: Tensor, axis: int = -1) -> Tensor:
    """Mean over fillers: an axis of prompts, in the order of `every_signal`, becomes `first, second`."""
    values = values.movedim(axis, -1).unflatten(-1, (_N_OPERANDS, -1, _N_OPERANDS)).mean(-2)
    return values.cpu()


def _margin(logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return right - others.amax(1)


def _check_linear(model: HookedTransformer) -> None:
    cfg = model.cfg
    if not cfg.attn_only or cfg.normalization_type is not None or cfg.output_logits_soft_cap > 0:
        raise InvalidInputError(
            f"{cfg.model_name} has MLPs, norms or a soft cap, and its logits are no plain sum over heads; take it "
            "apart by cache.stack_head_results() and cache.logit_attrs(), which freeze the final norm."
        )
