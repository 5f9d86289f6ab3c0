"""Run the examples of all entries in a folder, and print the class, code and message of what each raises as JSON."""

import json
import sys
import warnings
from pathlib import Path

import torch

from headscope import HookedTransformer
from headscope.analysis import Task
from headscope.data import IOIDataset
from headscope.errors import HeadscopeError
from headscope.errors.table import ENTRIES


def raised_by_examples(folder: Path) -> dict[str, tuple[str, str, str]]:
    warnings.simplefilter("ignore")
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset(N=4, tokenizer=model.tokenizer, seed=0))
    raised = {}
    for entry in ENTRIES:
        place = folder / entry.code
        place.mkdir()
        given = {"model": model, "task": task, "folder": place, "torch": torch, "HookedTransformer": HookedTransformer}
        try:
            exec(entry.example, given)
        except HeadscopeError as error:
            raised[entry.code] = type(error).__name__, error.code, error.message
        else:
            raised[entry.code] = "", "", "nothing was raised"
    return raised


if __name__ == "__main__":
    print(json.dumps(raised_by_examples(Path(sys.argv[1]))))
