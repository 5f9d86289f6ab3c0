"""The cells of the notebooks that run on headscope, and what is changed in them before they do.

A cell is known by its place in its notebook. The changes are text for text, as few as there can be: imports, what a
machine without a network lacks, sizes, and what stops the cell on Python 3.11 whatever library it runs on. The
notebooks' other faults stay.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["NOTEBOOKS", "Cell", "Change"]


@dataclass(frozen=True)
class Change:
    """Text that is replaced in a cell, once."""

    old: str
    new: str
    why: str


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook.

    Attributes:
        label: As in `In [label]:`.
        lines: How many lines of code it has; guards against taking outputs for code, or losing code.
        status: `"runs"`, or `"download"` (it is not run).
        why: Why it is not run.
        changes: What is replaced before it runs.
        then: Code of ours that runs after a cell that did not, for what the later cells need of it.
        output: How the first line of its output begins, where that looks like code.
    """

    label: str
    lines: int
    status: Literal["runs", "download"] = "runs"
    why: str = ""
    changes: tuple[Change, ...] = ()
    then: str = ""
    output: str = ""


_STAR = Change(
    "from transformer_lens.cautils.notebook import *",
    """\
from functools import partial
from typing import Dict, List, Optional, Tuple

import einops
import numpy as np
import torch as t
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Categorical
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import headscope.views as cv
from headscope import HookPoint, HookedTransformer, utils
from headscope.analysis import generate_data_and_caches
from headscope.views import imshow, line

t.set_grad_enabled(False)
""",
    "imports: the author's own module of them, by name",
)
_ENTROPY = Change(
    "from transformer_lens.rs.callum.entropy import entropy_measure, make_entropy_plots, make_entropy_resid_plots",
    """\
from headscope import views
from headscope.analysis import measure_entropy

def entropy_measure(model, batches):
    found = measure_entropy(model, batches, lens_bias=False, include_bos=True)
    return found.resid, found.diff, found.marginal

def make_entropy_resid_plots(resid, static):
    views.line(resid, title="entropy of the residual stream", static=static)

def make_entropy_plots(diff, marginal, model, title, static):
    heads = t.stack([diff, marginal])[:, :, : model.cfg.n_heads]
    maps = {"all": t.stack([diff, marginal]), "heads": heads, "increases": heads.clamp(min=0)}
    names = ["diff", "marginal"]
    return [
        views.imshow(both, facet_col=0, facet_labels=names, title=f"{title}, {which}", border=True, return_fig=True)
        for which, both in maps.items()
    ]
""",
    "imports: a module of the author's, whose three functions are a few lines of headscope",
)
_WEBTEXT = "it loads stas/openwebtext-10k; its tokens are made from local text instead, fewer and shorter"

NOTEBOOKS: dict[str, tuple[Cell, ...]] = {
    "entropy-diff-and-marginal": (
        Cell("1", 13, changes=(_STAR,)),
        Cell("2", 7, changes=(_ENTROPY,)),
        Cell(
            "3", 15, "download", _WEBTEXT,
            then="my_dataloader = DataLoader(local_rows(model, NUM_BATCHES * BATCH_SIZE, 64), batch_size=BATCH_SIZE)",
        ),
        Cell("4", 5),
        Cell("5", 1),
        Cell("None", 1),
        Cell("14", 4),
        Cell("15", 9),
        Cell("16", 1),
        Cell("None", 1),
        Cell("26", 4),
    ),
    "entropy-first-look": (
        Cell("1", 12, changes=(_STAR,)),
        Cell("2", 1),
        Cell(
            "3", 14, "download", _WEBTEXT,
            then="my_dataloader = DataLoader(local_rows(model, BATCH_SIZE, 64), batch_size=BATCH_SIZE)",
        ),
        Cell("10", 3),
        Cell("11", 1),
        Cell("21", 68),
        Cell("22", 1),
        Cell("46", 15),
        Cell("35", 1),
        Cell("36", 8),
    ),
    "ioi-exploration": (
        Cell("1", 5),
        Cell(
            "None", 9,
            changes=(
                Change("from transformer_lens import", "from headscope import", "imports"),
                Change(
                    "from transformer_lens.utils import test_prompt, rprint",
                    "from headscope.utils import test_prompt; from rich import print as rprint",
                    "imports: rprint is rich's print",
                ),
                Change("from plotly_utils import", "from headscope.views import", "imports"),
            ),
        ),
        Cell(
            "3", 14,
            changes=(
                Change(
                    "{os.environ['HF_TOKEN'][:3]}",
                    '{os.environ["HF_TOKEN"][:3]}',
                    "Python 3.11: the quotes of an f-string cannot be used inside it",
                ),
            ),
        ),
        Cell("None", 8),
        Cell("5", 4),
        Cell("6", 1),
        Cell("7", 2),
        Cell("8", 3),
        Cell("None", 5),
        Cell("10", 6),
        Cell("15", 10),
        Cell("17", 3),
        Cell("20", 2),
        Cell("None", 11),
        Cell("26", 4),
        Cell("36", 15),
        Cell("38", 12),
    ),
    "negative-heads-ablation": (
        Cell("1", 3, changes=(_STAR,)),
        Cell("2", 10),
        Cell("3", 10),
        Cell(
            "4", 20,
            changes=(
                Change("get_webtext(", "local_webtext(", "a download: local text in its place"),
                Change("SEQ_LEN = 200", "SEQ_LEN = 100", "size"),
            ),
        ),
        Cell(
            "5", 41,
            changes=tuple(
                Change(
                    f"{name}: LogitResults = LogitResults()",
                    f"{name}: LogitResults = field(default_factory=LogitResults)",
                    "Python 3.11: a dataclass takes no default that cannot be hashed",
                )
                for name in ("logits", "loss")
            ),
        ),
        Cell("6", 98),
        Cell("7", 1),
        Cell("8", 24),
        Cell("9", 12),
        Cell("13", 1),
        Cell("10", 14),
        Cell("None", 24),
        Cell("None", 7),
    ),
    "skip-trigram-toy-model": (
        Cell(
            "55", 21,
            changes=(
                Change("import requests\n", "\n", "imports: not used, and not always installed"),
                Change(
                    "from fancy_einsum import einsum",
                    "import einops; einsum = lambda pattern, *tensors: einops.einsum(*tensors, pattern)",
                    "imports: einops has the same function with the pattern last",
                ),
            ),
        ),
        Cell("2", 34),
        Cell("3", 5),
        Cell("4", 7),
        Cell("5", 13, output="model_cfg("),
        Cell("6", 26),
        Cell("139", 62),
        Cell("140", 31),
        Cell("141", 37),
        Cell("142", 35),
        Cell("147", 47),
        Cell("148", 2),
        Cell("149", 27),
        Cell(
            "155", 19,
            changes=(
                Change("trainset_size = 100000", "trainset_size = 4000", "size"),
                Change("epochs = 60", "epochs = 3", "size"),
            ),
        ),
        Cell("157", 1),
        Cell("158", 12, changes=(Change("from transformer_lens import", "from headscope import", "imports"),)),
        Cell("186", 4),
        Cell("191", 9),
        Cell("192", 1),
        Cell("170", 7),
        Cell("171", 2),
        Cell("172", 1),
        Cell("200", 8),
        Cell("202", 1),
    ),
}  # fmt: skip
