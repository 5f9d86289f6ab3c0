"""Text and tasks as tokens.

`read_texts` and `hf_dataset_texts` stream documents, `tokenize_and_concatenate` packs them into batches, and `Corpus`
does both for text larger than memory, on every pass. `documents`, `ioi_prompts` and `repeated_random_tokens` generate
data, `IOIDataset` prompts with counterfactuals, and the toy tasks' datasets prompts with known answers.
"""

from headscope.data.corpus import Corpus
from headscope.data.hub import download_file_from_hf, get_dataset, get_webtext, keep_single_column
from headscope.data.ioi import IOIDataset
from headscope.data.packing import tokenize_and_concatenate
from headscope.data.protocols import Tokenizer
from headscope.data.random_tokens import repeated_random_tokens
from headscope.data.small_english import IOIPrompt, documents, ioi_prompts
from headscope.data.tasks import (
    InductionDataset,
    ModularAdditionDataset,
    PalindromeDataset,
    SkipTrigramDataset,
    TaskDataset,
    TaskMetrics,
)
from headscope.data.text import hf_dataset_texts, read_chunks, read_texts

__all__ = [
    "Corpus",
    "IOIDataset",
    "IOIPrompt",
    "InductionDataset",
    "ModularAdditionDataset",
    "PalindromeDataset",
    "SkipTrigramDataset",
    "TaskDataset",
    "TaskMetrics",
    "Tokenizer",
    "documents",
    "download_file_from_hf",
    "get_dataset",
    "get_webtext",
    "hf_dataset_texts",
    "ioi_prompts",
    "keep_single_column",
    "read_chunks",
    "read_texts",
    "repeated_random_tokens",
    "tokenize_and_concatenate",
]
