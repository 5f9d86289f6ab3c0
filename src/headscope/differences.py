"""Places where code written for TransformerLens 3.9 runs and gives other numbers, without an error to show it.

Code that comes through the alias (`headscope.compat`) is warned where it happens, once in a process for each
difference. Other code is not: it chose headscope's numbers. docs/migration.md has the reasons.
"""

import sys
import warnings

__all__ = ["DIFFERENCES", "DifferenceWarning", "expect_transformer_lens", "tell"]

DIFFERENCES = {
    "seed": "a config's seed draws the weights alone. TransformerLens seeds torch, numpy and random with it too, so "
    "later draws differ: call torch.manual_seed before them",
    "gated biases": "a gated MLP adds b_in before the product with the gate, as checkpoints mean it; TransformerLens "
    "adds it after",
    "singular vectors": "the largest entry of each right singular vector is positive. TransformerLens leaves signs as "
    "LAPACK gives them: a pair of vectors may have both signs turned",
    "accumulated_resid": "accumulated_resid(apply_ln=True) divides all states by the scale of the last one. In "
    "TransformerLens each has a scale of its own, as apply_ln_to_stack(..., recompute_ln=True) gives it",
    "logit_attrs": "logit_attrs includes the weight of the final norm where it is not folded, so that parts sum to "
    "the logit; TransformerLens leaves it out",
    "gradients of norms": "ln1 runs once for queries, keys and values, and a backward hook gets the sum of their "
    "gradients; TransformerLens runs it three times, and a cache keeps one of the three",
    "optional points": "a hook, or a predicate over names, that matches hook_result, hook_attn_in, hook_mlp_in or a "
    "split input has it computed; TransformerLens leaves it out without its switch, such as set_use_attn_result(True). "
    "Where a hook of your own is on a split input, the points of ln1 have a head axis",
    "padding": "losses leave out padding on the right too; TransformerLens counts it as text",
    "top_k and top_p": "top_k and top_p are both applied; TransformerLens ignores top_p where top_k is given",
    "context": "TinyStories models keep all 2048 positions of their checkpoints; TransformerLens cuts them to the 512 "
    "they were trained with, as n_ctx=512 does",
    "index": "lists of leading indices and of rows of a FactoredMatrix select every combination, as lists of rows and "
    "of columns do; TransformerLens pairs leading indices with rows",
    "rows": "tokenize_and_concatenate gives the rows of num_proc=1 whatever num_proc is; in TransformerLens each "
    "process drops the tokens left over from its part",
    "truncate": "evaluate_on_dataset reads `truncate` batches; TransformerLens reads one more",
    "induction tokens": "induction_loss draws its tokens with a seed of its own; TransformerLens draws them with the "
    "global generator",
    "list of one": "generate gives a list for a list of one text; TransformerLens gives the text",
}


class DifferenceWarning(UserWarning):
    """Numbers differ from those that TransformerLens 3.9 gives for the same call."""


# Whose frames are no caller's: ours, and those that call us for somebody.
_PASSED = ("headscope", "torch", "contextlib")

_aliased = False
_told: set[str] = set()


def expect_transformer_lens() -> None:
    """Warn from now on: code that expects TransformerLens's numbers is about to run."""
    global _aliased
    _aliased = True


def tell(name: str) -> None:
    """Warn of one of the `DIFFERENCES`, at the line outside headscope that led here.

    Nothing happens if it was told before, or if nobody expects another number.
    """
    if not _aliased or name in _told:
        return
    _told.add(name)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{DIFFERENCES[name]}. See docs/migration.md.", DifferenceWarning, stacklevel=level)
