"""Checks on what states and components say through the unembedding."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.lens.entropy import measure_entropy
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.task import Task
from headscope.exercises.verdict import Verdict, judge
from headscope.model.transformer import HookedTransformer


@torch.no_grad()
def check_logit_lens(answer: Any, model: HookedTransformer, tokens: Int[Tensor, "1 pos"], layer: int) -> Verdict:
    """Check the logits that the residual stream before a layer gives at the last position.

    Args:
        answer: Logits `[d_vocab]`: the state through the final norm, with the state's own scale, and the unembedding.
        model: The model.
        tokens: One text.
        layer: The layer; its input is read.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("The cat sat on the mat.")
        >>> state = model.run_with_cache(tokens)[1]["resid_pre", 2][0, -1]
        >>> check_logit_lens(state @ model.W_U + model.b_U, model, tokens, 2)
        Not yet. The final norm is missing: the state has to go through ln_final before the unembedding.
    """
    _, cache = model.run_with_cache(tokens)
    state = cache["resid_pre", layer]

    def lens(states: Float[Tensor, "1 pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
        logits: Tensor = model.unembed(model.ln_final(states))
        return logits[0]

    right = lens(state)
    mistakes = {
        "The final norm is missing: the state has to go through ln_final before the unembedding": (
            state[0, -1] @ model.W_U + model.b_U
        ),
        "The bias of the unembedding is missing: add b_U": right[-1] - model.b_U,
        "It is that of the first position, BOS; the last one is asked for": right[0],
        "It is that of the last position but one": right[-2],
        f"It is the state after layer {layer}; what enters the layer is asked for": lens(cache["resid_post", layer])[
            -1
        ],
        f"It is the state in the middle of layer {layer}, after attention": lens(cache["resid_mid", layer])[-1],
        "The scale of the model's final state was used; here the state's own is asked for": (
            (state[0, -1] - state[0, -1].mean()) / cache["ln_final.hook_scale"][0, -1] @ model.W_U + model.b_U
        ),
        "These are probabilities, after a softmax; logits are asked for": right[-1].softmax(-1),
        "These are log-probabilities; logits are asked for": right[-1].log_softmax(-1),
    }
    praise = f"The likeliest next token at layer {layer} would be {model.to_string(right[-1].argmax())!r}."
    return judge(answer, right[-1], ["token"], mistakes=mistakes, praise=praise)


def check_entropy_diff(
    answer: Any, model: HookedTransformer, tokens: Int[Tensor, "1 pos"], layer: int, head: int
) -> Verdict:
    """Check by how much a head changes the entropy of the logit lens, at each position of a text, in nats.

    Args:
        answer: `H(lens(r + c)) - H(lens(r))`, `[pos]`, with r the input of the layer and c the output of the head, both
            under the scale of the final norm that the whole model has there.
        model: The model.
        tokens: One text.
        layer: Layer of the head.
        head: Index of the head.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("The cat sat on the mat.")
        >>> result = measure_entropy(model, tokens, reduce="none", include_bos=True, progress=False)
        >>> check_entropy_diff(-result.diff[3, 2, 0], model, tokens, 3, 2)
        Not yet. The sign is the other way round: it is the right answer times -1.
    """
    ways = {
        scale: measure_entropy(model, tokens, reduce="none", include_bos=True, progress=False, scale=scale)
        for scale in ("final", "own")
    }
    right = ways["final"].diff[layer, head, 0]
    final = ways["final"].resid[:, 0]
    mistakes = {
        "The states' own scales were used; that of the model's final state is asked for": ways["own"].diff[
            layer, head, 0
        ],
        "It is the marginal: the change of the model's final entropy, not that of the lens at this layer": (
            ways["final"].marginal[layer, head, 0]
        ),
        "It is the change by the whole attention layer, all heads together": final[2 * layer + 1] - final[2 * layer],
        "It is the entropy before the head, not the change": final[2 * layer],
        "It is the entropy with the head, not the change": final[2 * layer] + right,
    }
    mean = float(right.mean())
    doing = "raises" if mean > 0 else "lowers"
    praise = f"Over the text head {layer}.{head} {doing} entropy by {abs(mean):.3f} nats."
    return judge(answer, right, ["position"], mistakes=mistakes, praise=praise)


@torch.no_grad()
def check_direct_logit_attribution(answer: Any, model: HookedTransformer, task: Task) -> Verdict:
    """Check what each head adds directly to the difference of the logits of the right and the wrong answer.

    Args:
        answer: `[layer, head]`, in logits, a mean over prompts; the final norm's scale is that of the whole run.
        model: The model.
        task: Prompts with a right and a wrong answer each.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_prompts(["John met Mary and Tom met"], [" Mary"], [" Tom"], model.tokenizer)
        >>> check_direct_logit_attribution(torch.zeros(4, 5), model, task)
        Not yet. Its axes are in another order: [4, 5], and [layer, head] = [5, 4] is asked for. Transpose it.
    """
    right = attribute(model, task, progress=False).heads.mean(0)
    _, cache = model.run_with_cache(task.clean_tokens, attention_mask=task.attention_mask)
    rows, ends = torch.arange(len(task)), task.positions
    direction = (model.W_U[:, task.correct[:, 0]] - model.W_U[:, task.incorrect[:, 0]]).T
    # [layer, prompt, pos, head, d_model]
    heads = torch.stack(
        [torch.einsum("pqhe,hed->pqhd", cache["z", layer], model.W_O[layer]) for layer in range(model.cfg.n_layers)]
    )
    scale = cache["ln_final.hook_scale"][rows, ends][:, None]
    at_end = heads[:, rows, ends]
    last = heads[:, :, -1]
    mistakes = {
        "The final norm is missing: divide by the scale it has in the run": (
            torch.einsum("lphd,pd->lh", at_end, direction) / len(task)
        ),
        "It is read at the last position of the padded row; a prompt ends at task.positions": (
            torch.einsum("lphd,pd->lh", last / cache["ln_final.hook_scale"][:, -1][:, None], direction) / len(task)
        ),
        "It is the logit of the right answer alone; that of the wrong one is to be taken from it": (
            torch.einsum("lphd,pd->lh", at_end / scale, model.W_U[:, task.correct[:, 0]].T) / len(task)
        ),
        "It is summed over all positions; only the last one is read out": (
            torch.einsum("lpqhd,pd->lh", heads / cache["ln_final.hook_scale"][:, :, None], direction) / len(task)
        ),
    }
    layer, head = divmod(int(right.argmax()), model.cfg.n_heads)
    praise = f"Head {layer}.{head} adds most, {float(right.max()):+.3f} logits."
    return judge(answer, right, ["layer", "head"], mistakes=mistakes, praise=praise)
