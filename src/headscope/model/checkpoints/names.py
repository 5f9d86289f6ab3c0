"""Short names of models: those of TransformerLens 3.9 and ours, with the reasons why some cannot be loaded."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headscope.errors import CheckpointError, UnknownNameError, unknown_name

__all__ = ["DEMO", "HUB_IDS", "HUB_MODELS", "HubModel", "refuse_unsupported", "unknown_model"]

DEMO = "headscope-demo"


@dataclass(frozen=True)
class HubModel:
    """A model with a short name, its hub id and its size."""

    name: str
    hub_id: str
    n_params: str
    aliases: tuple[str, ...] = ()


def _sized(name: str, hub_id: str, sizes: str, kinds: Iterable[tuple[str, str]] = (("", ""),)) -> Iterator[HubModel]:
    """Yield the models of each size (`{}` in both names) and kind (what each name ends with)."""
    for size in sizes.split():
        for own, theirs in kinds:
            own_name = name.format(size.lower()) + own
            yield HubModel(own_name, hub_id.format(size) + theirs, size.upper().replace("_", "."))


def _pythia() -> Iterator[HubModel]:
    # The first number is the size with embeddings; the older names, which some models had first, count differently.
    older = {"70m": "19m", "160m": "125m", "410m": "350m", "1b": "800m", "1.4b": "1.3b", "2.8b": "2.7b",
             "6.9b": "6.7b", "12b": "13b"}  # fmt: skip
    for size in ("14m", "31m", *older):
        kinds = ("",) if size not in older else ("", "-deduped", "-v0", "-deduped-v0")
        for kind in (*kinds, *(("-seed1", "-seed2", "-seed3") if size == "160m" else ())):
            aliases: tuple[str, ...] = ("pythia" + kind,) if size == "70m" and kind in ("", "-v0") else ()
            if size in older:
                aliases += (f"pythia-{older[size]}{kind}", f"EleutherAI/pythia-{older[size]}{kind}")
            yield HubModel(f"pythia-{size}{kind}", f"EleutherAI/pythia-{size}{kind}", size.upper(), aliases)


def _stanford() -> Iterator[HubModel]:
    names = {
        "small": ("124M", "alias x21", "battlestar x49", "caprica x81", "darkmatter x343", "expanse x777"),
        "medium": ("355M", "arwen x21", "beren x49", "celebrimbor x81", "durin x343", "eowyn x777"),
    }
    for size, (n_params, *runs) in names.items():
        for letter, run in zip("abcde", runs, strict=True):
            first, seed = run.split()
            full = f"{first}-gpt2-{size}-{seed}"
            other = "gpt2-mistral-small" if size == "small" else "gpt2-medium-small"
            aliases = (full, f"{other}-{letter}", f"gpt2-stanford-{size}-{letter}")
            yield HubModel(f"stanford-gpt2-{size}-{letter}", f"stanford-crfm/{full}", n_params, aliases)


def _field() -> Iterator[HubModel]:
    def code(name: str, hub_id: str, size: str) -> HubModel:
        return HubModel(name, f"NeelNanda/{hub_id}_C4_Code", size, (f"{name}-new", f"{name}-c4-code"))

    for n, size in ((1, "1.0M"), (2, "2.1M"), (3, "3.1M"), (4, "4.2M")):
        yield code(f"attn-only-{n}l", f"Attn_Only_{n}L512W", size)
    demo = ("attn-only-demo", "attn-only-2l-shortformer-6b-big-lr", "attn-only-2l-induction-demo")
    yield HubModel("attn-only-2l-demo", "NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr", "2.1M", demo)
    for n, size in ((1, "3.1M"), (2, "6.3M"), (3, "9.4M"), (4, "12.6M")):
        yield code(f"gelu-{n}l", f"GELU_{n}L512W", size)
    for n, width, size in (
        (1, 512, "3.1M"), (2, 512, "6.3M"), (3, 512, "9.4M"), (4, 512, "12.6M"), (6, 768, "42M"), (8, 1024, "101M"),
        (10, 1280, "197M"), (12, 1536, "340M"),
    ):  # fmt: skip
        yield code(f"solu-{n}l", f"SoLU_{n}L{width}W", size)
    for n, version, size in (
        (1, 9, "13M"), (2, 10, "13M"), (4, 11, "13M"), (6, 13, "42M"), (8, 21, "101M"), (10, 22, "197M"),
        (12, 23, "340M"),
    ):  # fmt: skip
        yield HubModel(f"solu-{n}l-pile", f"NeelNanda/SoLU_{n}L_v{version}_old", size, (f"solu-{n}l-old",))
    for n, size in ((1, "3.1M"), (4, "12.6M")):
        aliases = (f"solu-{n}l-wiki-finetune", f"solu-{n}l-finetune")
        yield HubModel(f"solu-{n}l-wiki", f"NeelNanda/SoLU_{n}L512W_Wiki_Finetune", size, aliases)


_CHAT = (("", ""), ("-chat", "-Chat"))
_INSTRUCT = (("", ""), ("-instruct", "-Instruct"))
_IT = (("", ""), ("-it", "-it"))

HUB_MODELS = (
    HubModel("gpt2", "openai-community/gpt2", "124M", ("gpt2-small",)),
    HubModel("gpt2-medium", "openai-community/gpt2-medium", "355M"),
    HubModel("gpt2-large", "openai-community/gpt2-large", "774M"),
    HubModel("gpt2-xl", "openai-community/gpt2-xl", "1.56B"),
    HubModel(
        "distilgpt2", "distilbert/distilgpt2", "82M", ("distillgpt2", "distill-gpt2", "distil-gpt2", "gpt2-xs")
    ),
    *_stanford(),
    HubModel("mgpt", "ai-forever/mGPT", "1.3B"),
    *_pythia(),
    HubModel("gpt-neox-20b", "EleutherAI/gpt-neox-20b", "20B", ("gpt-neox", "neox")),
    *(
        HubModel(f"stablelm-{kind}-alpha-{size}", f"stabilityai/stablelm-{kind}-alpha-{size}", size.upper(),
                 (f"stablelm-{kind}-{size}",))
        for kind in ("base", "tuned") for size in ("3b", "7b")
    ),
    HubModel("gpt-neo-125M", "EleutherAI/gpt-neo-125M", "125M", ("gpt-neo-small", "neo-small", "neo")),
    HubModel("gpt-neo-1.3B", "EleutherAI/gpt-neo-1.3B", "1.3B", ("gpt-neo-medium", "neo-medium")),
    HubModel("gpt-neo-2.7B", "EleutherAI/gpt-neo-2.7B", "2.7B", ("gpt-neo-large", "neo-large")),
    *(
        HubModel(f"tiny-stories-{kind}{size}", f"roneneldan/TinyStories-{kind.title()}{size}", size)
        for kind in ("", "instruct-") for size in ("1M", "3M", "8M", "28M", "33M")
    ),
    HubModel("tiny-stories-1L-21M", "roneneldan/TinyStories-1Layer-21M", "21M"),
    HubModel("tiny-stories-2L-33M", "roneneldan/TinyStories-2Layers-33M", "33M"),
    HubModel("tiny-stories-instruct-1L-21M", "roneneldan/TinyStories-Instuct-1Layer-21M", "21M"),  # spelled so there
    HubModel("tiny-stories-instruct-2L-33M", "roneneldan/TinyStories-Instruct-2Layers-33M", "33M"),
    HubModel("gpt-j-6B", "EleutherAI/gpt-j-6B", "6B", ("gpt-j", "gptj")),
    HubModel("opt-125m", "facebook/opt-125m", "125M", ("opt-small", "opt")),
    HubModel("opt-1.3b", "facebook/opt-1.3b", "1.3B", ("opt-medium",)),
    HubModel("opt-2.7b", "facebook/opt-2.7b", "2.7B", ("opt-large",)),
    HubModel("opt-6.7b", "facebook/opt-6.7b", "6.7B", ("opt-xl",)),
    HubModel("opt-13b", "facebook/opt-13b", "13B", ("opt-xxl",)),
    HubModel("opt-30b", "facebook/opt-30b", "30B", ("opt-xxxl",)),
    HubModel("opt-66b", "facebook/opt-66b", "66B", ("opt-xxxxl",)),
    *_sized("bloom-{}", "bigscience/bloom-{}", "560m 1b1 1b7 3b 7b1"),
    # The first Llama was never on the hub under its makers' name; these are the usual copies.
    *(
        HubModel(f"llama-{size}", f"huggyllama/llama-{size}", size.upper(), (f"llama-{size}-hf",))
        for size in ("7b", "13b", "30b", "65b")
    ),
    *_sized("llama-2-{}", "meta-llama/Llama-2-{}", "7b 13b", (("", "-hf"), ("-chat", "-chat-hf"))),
    HubModel("llama-2-70b", "meta-llama/Llama-2-70b-hf", "70B"),
    HubModel("llama-2-70b-chat", "meta-llama/Llama-2-70b-chat-hf", "70B", ("meta-llama-2-70b-chat-hf",)),
    *_sized("llama-3-{}", "meta-llama/Meta-Llama-3-{}", "8B 70B", _INSTRUCT),
    *_sized("llama-3.1-{}", "meta-llama/Llama-3.1-{}", "8B 70B", _INSTRUCT),
    *_sized("llama-3.2-{}", "meta-llama/Llama-3.2-{}", "1B 3B", _INSTRUCT),
    HubModel("llama-3.3-70b-instruct", "meta-llama/Llama-3.3-70B-Instruct", "70B"),
    HubModel("codellama-7b", "codellama/CodeLlama-7b-hf", "7B", ("codellamallama-2-7b",)),
    HubModel("codellama-7b-instruct", "codellama/CodeLlama-7b-Instruct-hf", "7B"),
    HubModel("codellama-7b-python", "codellama/CodeLlama-7b-Python-hf", "7B"),
    *_sized("yi-{}", "01-ai/Yi-{}", "6B 34B", _CHAT),
    HubModel("mistral-7b", "mistralai/Mistral-7B-v0.1", "7B"),
    HubModel("mistral-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.1", "7B"),
    HubModel("mistral-nemo-base-2407", "mistralai/Mistral-Nemo-Base-2407", "12B"),
    HubModel("mistral-small-24b-base-2501", "mistralai/Mistral-Small-24B-Base-2501", "24B"),
    HubModel("mixtral", "mistralai/Mixtral-8x7B-v0.1", "47B", ("mixtral-8x7b",)),
    HubModel("mixtral-instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1", "47B", ("mixtral-8x7b-instruct",)),
    *_sized("gemma-{}", "google/gemma-{}", "2b 7b", _IT),
    *_sized("gemma-2-{}", "google/gemma-2-{}", "2b 9b 27b", _IT),
    *_sized("gemma-3-{}", "google/gemma-3-{}", "270m", _IT),
    *_sized("gemma-3-{}", "google/gemma-3-{}", "1b", (("-pt", "-pt"), ("-it", "-it"))),
    *_sized("gemma-3-{}", "google/gemma-3-{}", "4b 12b 27b", (("-pt", "-pt"), ("-it", "-it"))),
    *_sized("medgemma-{}", "google/medgemma-{}", "4b", (("-pt", "-pt"), ("-it", "-it"))),
    HubModel("medgemma-27b-it", "google/medgemma-27b-it", "27B"),
    HubModel("medgemma-27b-text-it", "google/medgemma-27b-text-it", "27B"),
    *_sized("qwen1.5-{}", "Qwen/Qwen1.5-{}", "0.5B 1.8B 4B 7B 14B", _CHAT),
    *_sized("qwen2-{}", "Qwen/Qwen2-{}", "0.5B 1.5B 7B", _INSTRUCT),
    *_sized("qwen2.5-{}", "Qwen/Qwen2.5-{}", "0.5B 1.5B 3B 7B 14B 32B 72B", _INSTRUCT),
    HubModel("qwen-32b-preview", "Qwen/QwQ-32B-Preview", "32B"),
    *_sized("qwen3-{}", "Qwen/Qwen3-{}", "0.6B 1.7B 4B 8B 14B"),
    HubModel("qwen3-0.6b-base", "Qwen/Qwen3-0.6B-Base", "0.6B"),
    HubModel("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", "30B"),
    HubModel("olmo-1b", "allenai/OLMo-1B-hf", "1B"),
    HubModel("olmo-7b", "allenai/OLMo-7B-hf", "7B"),
    HubModel("olmo-2-1b", "allenai/OLMo-2-0425-1B", "1B"),
    HubModel("olmo-2-7b", "allenai/OLMo-2-1124-7B", "7B"),
    *_sized("olmo-3-1025-{}", "allenai/Olmo-3-1025-{}", "7B"),
    *_sized("olmo-3-1125-{}", "allenai/Olmo-3-1125-{}", "32B"),
    *_sized("olmo-3-{}", "allenai/Olmo-3-{}", "7B", (("-instruct", "-Instruct"), ("-think", "-Think"))),
    *_sized("olmo-3-{}", "allenai/Olmo-3-{}", "32B", (("-think", "-Think"),)),
    *_sized("olmo-3.1-{}", "allenai/Olmo-3.1-{}", "32B", (("-instruct", "-Instruct"), ("-think", "-Think"))),
    HubModel("olmoe", "allenai/OLMoE-1B-7B-0924", "7B"),
    HubModel("phi-1", "microsoft/phi-1", "1.3B"),
    HubModel("phi-1_5", "microsoft/phi-1_5", "1.3B"),
    HubModel("phi-2", "microsoft/phi-2", "2.7B"),
    HubModel("phi-3", "microsoft/Phi-3-mini-4k-instruct", "3.8B"),
    HubModel("phi-4", "microsoft/phi-4", "14B"),
    HubModel("falcon-7b", "tiiuae/falcon-7b", "7B"),
    HubModel("falcon-40b", "tiiuae/falcon-40b", "40B"),
    HubModel("stablelm-2-1.6b", "stabilityai/stablelm-2-1_6b", "1.6B"),
    HubModel("granite-3.1-2b", "ibm-granite/granite-3.1-2b-base", "2.5B"),
    HubModel("apertus-8b", "swiss-ai/Apertus-8B-2509", "8B", ("apertus",)),
    HubModel("apertus-8b-instruct", "swiss-ai/Apertus-8B-Instruct-2509", "8B", ("apertus-instruct",)),
    # The same weights for the class in transformers; the first repository runs with code of its own.
    HubModel("santacoder", "bigcode/gpt_bigcode-santacoder", "1.1B", ("bigcode/santacoder",)),
    *_sized("starcoder2-{}", "bigcode/starcoder2-{}", "3b 7b 15b"),
    *_sized("mpt-{}", "mosaicml/mpt-{}", "7b 30b"),
    *_sized("xglm-{}", "facebook/xglm-{}", "564M 1.7B 4.5B 7.5B"),
    HubModel("biogpt", "microsoft/biogpt", "347M"),
    HubModel("arcee-4.5b", "arcee-ai/AFM-4.5B", "4.5B"),
    HubModel("helium-1-2b", "kyutai/helium-1-2b", "2B"),
    *_field(),
    HubModel("othello-gpt", "Baidicoot/Othello-GPT-Transformer-Lens", "25M"),
    HubModel("redwood_attn_2l", "ArthurConmy/redwood_attn_2l", "0.5M"),
)  # fmt: skip
HUB_IDS = {alias.lower(): model.hub_id for model in HUB_MODELS for alias in (model.name, *model.aliases)}

_NOT_YET = "are not supported yet"
_OWN_CODE = "need code of their own to run, and code from checkpoints is never run"
# Who published the models, how their names begin, and why they cannot be loaded.
_UNSUPPORTED = (
    ("google-bert", r"bert-", "encoder models (BERT) are not supported"),
    ("google-t5", r"t5-", "encoder-decoder models (T5) are not supported"),
    ("facebook", r"hubert-", "encoder models of speech (HuBERT) are not supported"),
    ("facebook", r"(wav2vec2|w2v2)-", "encoder models of speech (wav2vec 2.0) are not supported"),
    ("openai", r"gpt-oss", f"gpt-oss models {_NOT_YET}"),
    ("qwen", r"qwen-(1[._]8|7|14|72)b", f"Qwen models of the first generation {_OWN_CODE}; 'qwen1.5-...' and later can "
     "be loaded"),
)  # fmt: skip


def refuse_unsupported(name: str) -> None:
    """Refuse a short name or hub id of a kind of model that is known but cannot be loaded.

    Raises:
        CheckpointError: With the reason.
    """
    for owner, pattern, reason in _UNSUPPORTED:
        # A name with another owner is another's model, whatever it is called.
        if re.match(rf"({owner}/)?({pattern})[^/]*$", name, re.IGNORECASE):
            raise CheckpointError(f"model {name!r} cannot be loaded: {reason}.", code="HS-CHECKPOINT-05")


def unknown_model(name: str) -> UnknownNameError:
    """Make the error for a name that is no model's, with the nearest names of its own family.

    Example:
        >>> print(unknown_model("gtp2").message)
        Unknown model 'gtp2'. Did you mean 'gpt2' or 'gpt2-xs' or 'gpt2-xl'? A hub id has the form 'owner/model'.
        >>> print(unknown_model("mamba-130m").message)
        Unknown model 'mamba-130m'. `headscope models` lists the short names. A hub id has the form 'owner/model'.
    """
    names = [DEMO, *(each.lower() for each in HUB_IDS if "/" not in each)]
    families = dict.fromkeys(map(_family_word, names))
    near = set(difflib.get_close_matches(_family_word(name), families, n=3, cutoff=0.65))
    akin = [each for each in names if _family_word(each) in near]
    if not difflib.get_close_matches(name.lower(), akin, n=1, cutoff=0.5):
        akin = []
    hint = "A hub id has the form 'owner/model'."
    return unknown_name(
        "model",
        name,
        akin,
        hint=hint if akin else f"`headscope models` lists the short names. {hint}",
        code="HS-NAME-01",
    )


def _family_word(name: str) -> str:
    """Return the letters a name begins with, which are those of its family."""
    return re.match(r"[a-z]*", name.lower())[0]  # type: ignore[index]
