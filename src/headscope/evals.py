"""Rough evaluations, where notebooks look for them; see `headscope.analysis.evals`."""

from headscope.analysis.evals import (
    DATASET_LOADERS,
    DATASET_NAMES,
    IOIDataset,
    evaluate,
    evaluate_on_dataset,
    induction_loss,
    ioi_eval,
    make_code_data_loader,
    make_owt_data_loader,
    make_pile_data_loader,
    make_wiki_data_loader,
    sanity_check,
)

__all__ = [
    "DATASET_LOADERS",
    "DATASET_NAMES",
    "IOIDataset",
    "evaluate",
    "evaluate_on_dataset",
    "induction_loss",
    "ioi_eval",
    "make_code_data_loader",
    "make_owt_data_loader",
    "make_pile_data_loader",
    "make_wiki_data_loader",
    "sanity_check",
]
