"""Text generation with a key-value cache.

A prompt costs one forward pass, and each new token a pass over that token alone; logits are computed for the last
position only. Rows of different length are padded on the left, so that all end at the same position.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from headscope.differences import tell
from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening, is_plain
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCache
from headscope.model.parts.layers import Unembed
from headscope.model.text.inputs import checked_mask, checked_residual, checked_tokens, is_text, new_mask
from headscope.model.text.tokens import PaddingSide
from headscope.ops.sampling import sample_logits

__all__ = ["Generation"]

Written = Literal["input", "str", "tokens", "embeds"]
_LIKELIEST = {"temperature": 0.0}


class Generation:
    """Mixin without fields: the generation methods of a model."""

    cfg: HookedTransformerConfig
    tokenizer: Any

    @torch.no_grad()
    def generate(
        self,
        input: str | Sequence[str] | Tensor = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        return_type: Written = "input",
        verbose: bool = True,
        *,
        repetition_penalty: float = 1.0,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_logits: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Continue a text, texts, tokens or token embeddings.

        Args:
            input: The prompt. Texts of different length are padded on the left.
            max_new_tokens: Maximum number of new tokens.
            stop_at_eos: Stop once every row has produced an end token; rows that end earlier are filled with it (of
                several, with the tokenizer's EOS, or the first without).
            eos_token_id: The end token, or several; the tokenizer's EOS by default.
            do_sample: Sample from the distribution; otherwise take the likeliest token.
            top_k: Sample from the `k` likeliest tokens only.
            top_p: Nucleus sampling: sample from the likeliest tokens that together have this probability.
            temperature: Divides the logits; 0 takes the likeliest token.
            freq_penalty: Subtracted from a token's logit for each previous occurrence.
            use_past_kv_cache: Keep keys and values instead of rerunning the whole text for each token. Models with
                mixers always rerun it.
            prepend_bos: For text: prepend BOS; `cfg.default_prepend_bos` by default.
            padding_side: Ignored, since prompts are always padded on the left. Kept for compatibility.
            return_type: `"str"`, `"tokens"`, `"embeds"`, or `"input"` for the type of the input.
            verbose: Show a progress bar.
            repetition_penalty: Divides positive and multiplies negative logits of tokens that have occurred
                (Keskar et al. 2019, arXiv 1909.05858), padding apart; without sampling too.
            attention_mask: For tokens padded on the left: 1 for real ones.
            generator: Generator to sample with instead of the global one.
            output_logits: Return transformers' `GenerateDecoderOnlyOutput` instead: tokens as `sequences`, and as
                `logits` those of each step, `[batch, d_vocab]`, before penalties and temperature.
            generation_kwargs: `return_dict_in_generate` is ignored, since `output_logits` alone says what is returned.
                Others are refused.

        Returns:
            Prompt and continuation: a string (a list of them for a list), tokens `[batch, pos]`, or embeddings
            `[batch, pos, d_model]`. For a prompt of embeddings, text and tokens are the continuation alone.

        Raises:
            MissingTokenizerError: For text without a tokenizer.
            InvalidInputError: If prompt and continuation exceed the context, or an option is unknown or out of range.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> model.generate("When Mary and John went to the store, John gave a drink to",
            ...                max_new_tokens=1, do_sample=False, verbose=False)
            'When Mary and John went to the store, John gave a drink to Mary'
        """
        if return_type not in ("input", "str", "tokens", "embeds"):
            raise InvalidInputError(f"return_type must be 'input', 'str', 'tokens' or 'embeds'; got {return_type!r}.")
        generation_kwargs.pop("return_dict_in_generate", None)
        if generation_kwargs:
            raise InvalidInputError(
                f"generate has no option {', '.join(map(repr, generation_kwargs))}: leave it out. Of the options of "
                "transformers it takes those in its signature."
            )
        prompt, mask = self._prompt(input, attention_mask, prepend_bos, max_new_tokens)
        embedded = prompt.ndim == 3
        ends = self._end_tokens(eos_token_id) if stop_at_eos else []
        sampling = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "freq_penalty": freq_penalty,
                    "repetition_penalty": repetition_penalty, "generator": generator}  # fmt: skip
        options = sampling if do_sample else {**_LIKELIEST, "repetition_penalty": repetition_penalty}
        written, logits = [torch.zeros(prompt.shape[0], 0, dtype=torch.long, device=prompt.device)], []
        for token, step in self._write(prompt, mask, max_new_tokens, ends, use_past_kv_cache, options, verbose):
            written.append(token[:, None])
            if output_logits:
                logits.append(step)
        new = torch.cat(written, dim=1)
        if output_logits:
            return _output(new if embedded else torch.cat([prompt, new], dim=1), logits)
        if return_type == "embeds" or (return_type == "input" and embedded):
            before = prompt if embedded else self.embed(prompt)  # type: ignore[attr-defined]
            return torch.cat([before, self.embed(new)], dim=1)  # type: ignore[attr-defined]
        tokens = new if embedded else torch.cat([prompt, new], dim=1)
        if return_type == "str" or (return_type == "input" and is_text(input)):
            texts = self._texts(tokens)
            if isinstance(input, (list, tuple)) and len(texts) == 1:
                tell("list of one")
            return texts if isinstance(input, (list, tuple)) or len(texts) > 1 else texts[0]
        return tokens

    @torch.no_grad()
    def generate_stream(
        self,
        input: str | Tensor = "",
        max_new_tokens: int = 10,
        max_tokens_per_yield: int = 25,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        return_type: Written = "input",
        verbose: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[Any]:
        """Generate like `generate`, but yield the continuation in pieces of `max_tokens_per_yield` tokens.

        The first piece begins with the prompt. Pieces are strings or tokens, as for `generate`.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> list(model.generate_stream("Mary went to the", 4, 2, do_sample=False, verbose=False))
            ['Mary went to the river,', ' where Scott']
        """
        prompt, mask = self._prompt(input, None, prepend_bos, max_new_tokens)
        ends = self._end_tokens(eos_token_id) if stop_at_eos else []
        sampling = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "freq_penalty": freq_penalty,
                    "generator": generator}  # fmt: skip
        options = sampling if do_sample else _LIKELIEST
        as_text = return_type == "str" or (return_type == "input" and is_text(input))
        steps = self._write(prompt, mask, max_new_tokens, ends, use_past_kv_cache, options, verbose)
        piece = list(prompt.unbind(1)) if prompt.ndim == 2 else []
        for count, (token, _) in enumerate(steps, 1):
            piece.append(token)
            if count % max_tokens_per_yield == 0:
                yield self._piece(piece, as_text)
                piece = []
        if piece:
            yield self._piece(piece, as_text)

    def _piece(self, tokens: list[Tensor], as_text: bool) -> Any:
        stacked = torch.stack(tokens, dim=1)
        if not as_text:
            return stacked
        texts = self._texts(stacked)
        return texts[0] if len(texts) == 1 else texts

    def _texts(self, tokens: Int[Tensor, "batch pos"]) -> list[str]:
        """Decode each row, without special tokens."""
        tokenizer = self._need_tokenizer()  # type: ignore[attr-defined]
        rows = tokens.tolist()
        return [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]

    def _prompt(
        self, input: Any, attention_mask: Tensor | None, prepend_bos: bool | None, max_new_tokens: int
    ) -> tuple[Tensor, Bool[Tensor, "batch pos"]]:
        """Return tokens or embeddings of the prompt, and a mask of the real ones."""
        device = self.input_device  # type: ignore[attr-defined]
        mask: Tensor | None = None
        if is_text(input):
            prompt = self.to_tokens(input, prepend_bos, "left", truncate=False)  # type: ignore[attr-defined]
            mask = self.attention_mask(prompt, "left", prepend_bos)  # type: ignore[attr-defined]
        elif isinstance(input, Tensor) and input.is_floating_point():
            prompt = checked_residual(input, self.cfg.d_model).to(device)
        else:
            prompt = checked_tokens(input, device).long()
        length = prompt.shape[1]
        if max_new_tokens < 0 or length + max_new_tokens > self.cfg.n_ctx + 1:
            # The last new token is never fed back, so it may lie one beyond the context.
            raise InvalidInputError(
                f"max_new_tokens = {max_new_tokens} with a prompt of {length} tokens must stay within the context, "
                f"n_ctx = {self.cfg.n_ctx}. Shorten either.",
                code="HS-TOKENS-03",
            )
        if attention_mask is not None:
            mask = checked_mask(attention_mask, prompt)
            if mask is not None and not bool(mask[:, -1].all()):
                raise InvalidInputError(
                    "a prompt that is continued must be padded on the left; attention_mask is 0 at its last position."
                )
        return prompt, new_mask(mask, prompt)

    def _end_tokens(self, eos_token_id: int | Sequence[int] | None) -> list[int]:
        if eos_token_id is None:
            eos_token_id = None if self.tokenizer is None else self.tokenizer.eos_token_id
        if eos_token_id is None:
            raise InvalidInputError(
                "stop_at_eos needs an end token, and the model's tokenizer gives none: pass eos_token_id, or "
                "stop_at_eos=False."
            )
        return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)

    def _filling(self, ends: list[int]) -> int:
        """Return what is written to rows that have ended."""
        own = None if self.tokenizer is None else self.tokenizer.eos_token_id
        return ends[0] if len(ends) == 1 or own is None else own

    def _write(
        self,
        prompt: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_model"],
        mask: Bool[Tensor, "batch pos"],
        max_new_tokens: int,
        ends: list[int],
        use_past_kv_cache: bool,
        options: Mapping[str, Any],
        verbose: bool,
    ) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch d_vocab"]]]:
        """Yield the new tokens, one step at a time, and the logits of each."""
        batch = prompt.shape[0]
        cached = use_past_kv_cache and not self.cfg.layers_with("mixer")  # whose states it does not hold
        past = HookedTransformerKeyValueCache.init_cache(self.cfg, prompt.device, batch) if cached else None
        seen = prompt if prompt.ndim == 2 else prompt.new_zeros(batch, 0, dtype=torch.long)
        stops = torch.tensor(ends, device=prompt.device)
        finished = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
        unread = prompt
        for _ in tqdm(range(max_new_tokens), disable=not verbose, desc="generate"):
            logits = self._last_logits(unread, mask, past)
            of_seen = mask[:, mask.shape[1] - seen.shape[1] :]
            token = sample_logits(logits, tokens=seen, attention_mask=of_seen, **options)
            if ends:
                token = torch.where(finished, self._filling(ends), token)
                finished = finished | torch.isin(token, stops)
            yield token, logits
            if ends and bool(finished.all()):
                return
            seen = torch.cat([seen, token[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            new = token[:, None] if prompt.ndim == 2 else self.embed(token[:, None])  # type: ignore[attr-defined]
            unread = new if past is not None else torch.cat([unread, new], dim=1)

    def _last_logits(
        self, unread: Tensor, mask: Tensor, past: HookedTransformerKeyValueCache | None
    ) -> Float[Tensor, "batch d_vocab"]:
        run: Any = self
        options: dict[str, Any] = {"attention_mask": mask, "past_kv_cache": past}
        if unread.ndim == 3:
            unread, positions = run._with_positions(unread, mask, 0 if past is None else past.n_past)
            options |= {"start_at_layer": 0, "shortformer_pos_embed": positions}
        if self._end_is_watched():
            return run(unread, **options)[:, -1]
        residual = run(unread, stop_at_layer=len(run.blocks), **options)
        return run.to_logits(residual[:, -1:])[:, 0]

    def _end_is_watched(self) -> bool:
        """Return True if hooks or replaced modules would notice a final norm over the last position alone."""
        run: Any = self
        parts = [*run.ln_final.modules(), *run.unembed.modules()]
        points = [part for part in parts if isinstance(part, HookPoint)]
        return any(map(is_listening, points)) or not is_plain(run.unembed, Unembed)


def _output(sequences: Int[Tensor, "batch pos"], logits: list[Tensor]) -> Any:
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(sequences=sequences, logits=tuple(logits))
