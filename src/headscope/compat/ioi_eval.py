"""Indirect objects: sentences in which only the roles of two names determine the last word, and a model's accuracy."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from headscope.data.small_english import GIFTS, NAMES, PLACES
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.text.tokens import begin_token
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["IOIDataset", "ioi_eval", "tokenizer_of"]


class IOIDataset(Dataset[dict[str, Tensor]]):
    """Sentences in which the last word is the indirect object: of two people named, the one who is not named twice.

    After Wang et al. 2022, "Interpretability in the Wild". An item has the tokens of the whole sentence, answer
    included, under `"prompt"`, those of the right name under `"IO"` and of the other under `"S"`, each with its leading
    space. The sentences themselves are in `samples`, as `{"text": ..., "IO": ..., "S": ...}`.

    Args:
        tokenizer: A Hugging Face tokenizer.
        templates: Sentences with `[A]` for the indirect object, with which they end, `[B]` for the other person, and
            any other placeholders.
        names: Names to draw from, two different ones for each sentence.
        nouns: Words for each other placeholder.
        num_samples: Number of sentences.
        symmetric: Follow each sentence by its twin with the names exchanged.
        prepend_bos: Begin each prompt with BOS.
        seed: Seed of the draws; `None` for others each time.

    Raises:
        InvalidInputError: For a template that does not end with `[A]` or has no `[B]`, fewer than two names, or fewer
            than one sentence.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> dataset = IOIDataset(model.tokenizer, templates=["[A] and [B] sang. [B] waved to [A]"], num_samples=2)
        >>> for sample in dataset.samples:
        ...     print(sample["text"], "|", sample["IO"])
        Karen and Sean sang. Sean waved to Karen |  Karen
        Ryan and Mary sang. Mary waved to Ryan |  Ryan
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        nouns: Mapping[str, Sequence[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.prepend_bos = prepend_bos
        self.templates = list(self.get_default_templates() if templates is None else templates)
        self.names = list(self.get_default_names() if names is None else names)
        self.nouns = dict(self.get_default_nouns() if nouns is None else nouns)
        for template in self.templates:
            if not template.endswith("[A]") or "[B]" not in template:
                raise InvalidInputError(
                    f"a template ends with [A], the indirect object, and has [B] in it; got {template!r}."
                )
        if len(set(self.names)) < 2 or not self.templates or num_samples < 1 + symmetric:
            raise InvalidInputError(
                f"there is nothing to draw: {len(set(self.names))} names (2 are needed), {len(self.templates)} "
                f"templates, {num_samples} sentences{' in pairs' if symmetric else ''}."
            )
        self._random = random.Random(seed)
        n_draws = num_samples // 2 if symmetric else num_samples
        self.samples = [sample for _ in range(n_draws) for sample in self.get_sample(symmetric)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        ids = {key: self.tokenizer.encode(text, add_special_tokens=False) for key, text in sample.items()}
        bos = [begin_token(self.tokenizer)] if self.prepend_bos else []
        prompt = torch.tensor([*bos, *ids["text"]])
        return {"prompt": prompt, "IO": torch.tensor(ids["IO"]), "S": torch.tensor(ids["S"])}

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """Draw a sentence, and with `symmetric` its twin with the names exchanged."""
        template = self._random.choice(self.templates)
        for placeholder, words in self.nouns.items():
            template = template.replace(f"[{placeholder}]", self._random.choice(words))
        first, second = self._random.sample(sorted(set(self.names)), 2)
        pairs = [(first, second), (second, first)] if symmetric else [(first, second)]
        return [
            {"text": template.replace("[A]", io).replace("[B]", s), "IO": f" {io}", "S": f" {s}"} for io, s in pairs
        ]

    @staticmethod
    def get_default_names() -> list[str]:
        """Return first names that are one token for most tokenizers."""
        return list(NAMES)

    @staticmethod
    def get_default_templates() -> list[str]:
        """Return one sentence that names the indirect object first, and one that names it second."""
        return [
            "When [A] and [B] went to the [LOCATION], [B] gave a [OBJECT] to [A]",
            "After [B] and [A] met at the [LOCATION], [B] handed the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """Return places and gifts."""
        return {"LOCATION": list(PLACES), "OBJECT": list(GIFTS)}


@torch.no_grad()
def ioi_eval(
    model: HookedTransformer,
    dataset: Any = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
    *,
    progress: bool = True,
) -> dict[str, float]:
    """Measure how often a model prefers the indirect object to the other name, and by how much.

    At the first token in which the two names differ, the logit of the right one is compared with that of the other.

    Args:
        model: The model.
        dataset: Items as those of `IOIDataset`, which is the default.
        batch_size: Prompts per batch.
        num_samples: Sentences of the default data set.
        tokenizer: For the default data set; default: the model's.
        symmetric: Add the twin of each sentence to the default data set.
        progress: Show a progress bar.

    Returns:
        `"Logit Difference"`, the mean over sentences, and `"Accuracy"`, the share in which it is positive.

    Raises:
        MissingTokenizerError: If a tokenizer is needed and there is none.
        InvalidInputError: If there is nothing to evaluate, or an item's names do not differ in any token.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> ioi_eval(model, num_samples=20, progress=False)["Accuracy"]
        1.0
    """
    if dataset is None:
        dataset = IOIDataset(tokenizer_of(model, tokenizer), num_samples=num_samples, symmetric=symmetric)
    if len(dataset) == 0:
        raise InvalidInputError("the data set has no sentence to evaluate.")
    differences: list[Tensor] = []
    for start in tqdm(range(0, len(dataset), batch_size), desc="IOI", disable=not progress, leave=False):
        items = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        differences.append(_logit_differences(model, items))
    difference = wide(torch.cat(differences))
    return {"Logit Difference": difference.mean().item(), "Accuracy": wide(difference > 0).mean().item()}


def _logit_differences(model: HookedTransformer, items: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, " batch"]:
    """Return the right name's logit minus the other's, where they differ, for each sentence."""
    lengths = torch.tensor([len(item["prompt"]) for item in items])
    tokens = torch.nn.utils.rnn.pad_sequence([item["prompt"] for item in items], batch_first=True)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    device = model.W_E.device
    logits = model(tokens.to(device), attention_mask=mask.to(device))
    positions, right, other = torch.tensor([_where_they_part(item) for item in items]).T
    rows = torch.arange(len(items))
    return (logits[rows, positions, right] - logits[rows, positions, other]).cpu()


def _where_they_part(item: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return the position that predicts the first token in which the names differ, and that token of each."""
    right, other = item["IO"].tolist(), item["S"].tolist()
    for shared, (a, b) in enumerate(zip(right, other, strict=False)):
        if a != b:
            return len(item["prompt"]) - len(right) + shared - 1, a, b
    raise InvalidInputError(f"the names' tokens {right} and {other} are the same as far as both go.")


def tokenizer_of(model: HookedTransformer, tokenizer: Any) -> Any:
    """Return the given tokenizer, or else the model's.

    Raises:
        MissingTokenizerError: If there is neither.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise MissingTokenizerError(
            f"model {model.cfg.model_name!r} has no tokenizer: pass one.", code="HS-TOKENIZER-02"
        )
    return tokenizer
