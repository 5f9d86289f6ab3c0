"""Random documents of the text a model was trained on."""

import random
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.config import HookedTransformerConfig
from headscope.model.text.tokens import PaddingSide

__all__ = ["TrainingText"]


class TrainingText:
    """Mixin: `dataset`, a sample of the training text, for a model that has `cfg` and `to_tokens`.

    `headscope.data` knows which text that is, but `model` may not import `data`: the package's `__init__`, which sees
    both, sets `training_dataset`.
    """

    cfg: HookedTransformerConfig
    to_tokens: Callable[..., Tensor]
    dataset: Any = None
    training_dataset: ClassVar[Callable[..., Any]]

    def load_sample_training_dataset(self, **options: Any) -> Any:
        """Set `dataset` to a sample of the model's training text, rows with a document under `"text"`, and return it.

        See `headscope.data.sample.training_dataset` for the options and errors.
        """
        self.dataset = type(self).training_dataset(self.cfg.model_name, self.cfg.original_architecture, **options)
        return self.dataset

    def sample_datapoint(
        self,
        tokenize: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        *,
        seed: int | None = None,
    ) -> str | Tensor:
        """Draw a random document of `dataset`, loading it first if needed.

        Args:
            tokenize: Return tokens `[1, pos]`, truncated to `cfg.n_ctx`, instead of text.
            prepend_bos: For tokens: prepend BOS; `cfg.default_prepend_bos` by default.
            padding_side: Ignored, since one document needs no padding.
            seed: Seed of the draw; a different document at each call by default.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> model.sample_datapoint(seed=1)[:60]
            'It was quiet and Martin and George stayed in the market. Mar'
        """
        if self.dataset is None:
            self.load_sample_training_dataset()
        text = self.dataset[random.Random(seed).randrange(len(self.dataset))]["text"]
        return self.to_tokens(text, prepend_bos, padding_side) if tokenize else text
