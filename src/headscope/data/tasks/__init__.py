"""Toy tasks: prompts with known answers, and the loss and accuracy of the best predictor to compare a model with."""

from headscope.data.tasks.base import TaskDataset, TaskMetrics
from headscope.data.tasks.induction import InductionDataset
from headscope.data.tasks.modular_addition import ModularAdditionDataset
from headscope.data.tasks.palindrome import PalindromeDataset
from headscope.data.tasks.skip_trigram import SkipTrigramDataset

__all__ = [
    "InductionDataset",
    "ModularAdditionDataset",
    "PalindromeDataset",
    "SkipTrigramDataset",
    "TaskDataset",
    "TaskMetrics",
]
