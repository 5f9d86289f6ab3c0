"""Every label that `detect_heads` gives, beside a check by other code on other inputs.

    python benchmarks/labels.py headscope-demo --out docs/kinds.md
    python benchmarks/labels.py ~/.cache/headscope/SmolLM2-135M-Instruct.Q4_1.gguf --text README.md
    python benchmarks/labels.py known/* --shuffles 200  # models of known answers: a `truth.json` beside the weights

A probe shares nothing with the analysis but the model: attention weights and values from the cache, products with
`W_O` and `W_U`, runs with plain hooks, and prompts written here. It says what it found and whether that is what the
label says; the last line counts those where it is not. Each model is also tried with all its weights in another order,
which must give no label.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import HeadTypes, Task, detect_heads
from headscope.data.ioi import IOIDataset

NAMES = ("Mary", "John", "Tom", "James", "Mark", "Anna", "Paul", "Sarah", "Peter", "Alice")
PROMPT = "When {} and {} had a lot of fun at the school, {} gave a ring to"
Head = tuple[int, int]
Rows = Callable[[int], tuple[Tensor, Tensor, Tensor]]
Probe = Callable[[Head], tuple[str, bool]]


@dataclass
class Names:
    """Prompts of two names: their run, and the run of those in which the other one is named again.

    Attributes:
        model: The model.
        acts: Activations of the prompts by name.
        other: Those of the others.
        places: Positions of `IO`, `S1`, `S2`, `end`.
        answers: The tokens of `IO` and `S`.
        abba: True where `IO` is named first.
    """

    model: HookedTransformer
    acts: dict[str, Tensor]
    other: dict[str, Tensor]
    tokens: Tensor
    places: dict[str, Tensor]
    answers: Tensor
    abba: Tensor

    @classmethod
    def of(cls, model: HookedTransformer) -> "Names":
        """Run prompts of one template, so that nothing is padded; each pair in both orders and both roles."""
        single = [n for n in NAMES if len(model.to_tokens(f" {n}", prepend_bos=False)[0]) == 1]
        rows, swapped, abba, answers = [], [], [], []
        for at, one in enumerate(single):
            for io, s in ((pair, one)[::step] for pair in single[at + 1 : at + 4] for step in (1, -1)):
                for first, second in ((io, s), (s, io)):
                    rows.append(model.to_tokens(PROMPT.format(first, second, s))[0])
                    swapped.append(model.to_tokens(PROMPT.format(first, second, io))[0])
                    abba.append(first == io)
                    answers.append([model.to_single_token(f" {io}"), model.to_single_token(f" {s}")])
        tokens, other, right = torch.stack(rows), torch.stack(swapped), torch.tensor(answers)
        kinds = ("attn.hook_pattern", "attn.hook_v", "attn.hook_z", f"{model.cfg.n_layers - 1}.hook_resid_post")
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(kinds))
        _, changed = model.run_with_cache(other, names_filter=lambda name: name.endswith("attn.hook_z"))
        found = {}
        for name, token in (("IO", right[:, :1]), ("S1", right[:, 1:])):
            found[name] = (tokens == token).int().argmax(1)
        found["S2"] = tokens.shape[1] - 1 - (tokens == right[:, 1:]).flip(1).int().argmax(1)
        found["end"] = torch.full((len(tokens),), tokens.shape[1] - 1)
        return cls(model, dict(cache.items()), dict(changed.items()), tokens, found, right, torch.tensor(abba))

    def attention(self, head: Head, query: str, key: str, ahead: int = 0) -> Tensor:
        """Attention from one place to another, prompt by prompt."""
        rows = torch.arange(len(self.tokens))
        pattern = self.acts[f"blocks.{head[0]}.attn.hook_pattern"]
        return pattern[rows, head[1], self.places[query], self.places[key] + ahead]

    def written(self, head: Head, places: list[str]) -> Tensor:
        """What a head writes at the end from some places and those after them, through `W_O`."""
        layer, at = head
        rows = torch.arange(len(self.tokens))
        values = self.acts[f"blocks.{layer}.attn.hook_v"]
        values = values[:, :, at * values.shape[2] // self.model.cfg.n_heads]
        pattern = self.acts[f"blocks.{layer}.attn.hook_pattern"][:, at, -1]
        keys = torch.zeros_like(pattern)
        for name in places:
            keys[rows, self.places[name]] = 1
            if name != "end":
                keys[rows, self.places[name] + 1] = 1
        return ((pattern * keys)[..., None] * values).sum(1) @ self.model.blocks[layer].attn.W_O[at]

    def toward(self) -> tuple[Tensor, Tensor]:
        """The directions of both names' logits, above the mean of all names here, at the scale of the final norm."""
        final = self.acts[f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"][:, -1]
        if self.model.cfg.normalization_type.startswith("LN"):
            final = final - final.mean(-1, keepdim=True)
        scale = (final.square().mean(-1, keepdim=True) + self.model.cfg.eps).sqrt()
        mean = self.model.W_U[:, self.answers.unique()].mean(1)
        return tuple((self.model.W_U[:, self.answers[:, at]].T - mean) / scale for at in (0, 1))  # type: ignore[return-value]

    def effect(self, head: Head, places: list[str] | None = None, on: str = "difference") -> Tensor:
        """The direct effect of a head, prompt by prompt; of what comes from some places alone."""
        if places is None:
            z = self.acts[f"blocks.{head[0]}.attn.hook_z"][:, -1, head[1]]
            written = z @ self.model.blocks[head[0]].attn.W_O[head[1]]
        else:
            written = self.written(head, places)
        right, wrong = self.toward()
        return (written * {"difference": right - wrong, "IO": right, "S": wrong}[on]).sum(-1)

    def orders(self, values: Tensor) -> tuple[float, float]:
        """The means over both orders."""
        return float(values[self.abba].mean()), float(values[~self.abba].mean())

    def difference(self, logits: Tensor) -> Tensor:
        """The logit difference, prompt by prompt."""
        rows = torch.arange(len(self.tokens))
        return logits[rows, -1, self.answers[:, 0]] - logits[rows, -1, self.answers[:, 1]]


def attention_probes(
    model: HookedTransformer, rows: Callable[[int], tuple[Tensor, Tensor, Tensor]]
) -> dict[str, Probe]:
    """Probes of where heads look: on fresh rows, where something is said twice, and where it is not.

    Args:
        model: The model.
        rows: Given a seed: rows, and the places of a token and of its earlier copy, `[row, place]`.
    """
    tokens, again, first = rows(11)
    broken = tokens.clone()
    other, _, _ = rows(12)
    at = torch.arange(len(tokens))[:, None]
    broken[at, first] = other[at, first]  # the earlier copies are other tokens
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("pattern"))
    _, without = model.run_with_cache(broken, names_filter=lambda name: name.endswith("pattern"))

    def paid(run: Any, head: Head, ahead: int) -> float:
        return float(run["pattern", head[0]][:, head[1]][at, again, first + ahead].mean())

    def previous(head: Head) -> tuple[str, bool]:
        pattern = cache["pattern", head[0]][:, head[1]]
        shares = [float(torch.diagonal(pattern, -back, 1, 2)[:, 2:].mean()) for back in range(5)]
        near = f"{shares[0]:.2f} to itself, {shares[2]:.2f} and {shares[3]:.2f} to those before that"
        return f"{shares[1]:.2f} to the token before, {near}", shares[1] > max(0.25, shares[0], *shares[2:])

    def duplicate(head: Head) -> tuple[str, bool]:
        there, gone = paid(cache, head, 0), paid(without, head, 0)
        return f"{there:.2f} to an earlier copy, {gone:.2f} to that place with another token", there > max(
            0.2, 2 * gone
        )

    def induction(head: Head) -> tuple[str, bool]:
        there, gone = paid(cache, head, 1), paid(without, head, 1)
        return f"{there:.2f} to what followed, {gone:.2f} after another token", there > max(0.2, 2 * gone)

    return {"previous_token": previous, "duplicate_token": duplicate, "induction": induction}


def name_probes(names: Names, found: HeadTypes) -> dict[str, Probe]:
    """Probes of what heads do with names."""
    whole = float(names.difference(names.model(names.tokens)).mean())

    def shown(values: Tensor) -> str:
        return "{:+.2f}, {:+.2f}".format(*names.orders(values))

    def duplicate(head: Head) -> tuple[str, bool]:
        same, other = (float(names.attention(head, "S2", key).mean()) for key in ("S1", "IO"))
        return f"S2 to S1 {same:.2f}, to IO {other:.2f}", same > max(0.2, 2 * other)

    def by_part(places: list[str], on: str, sign: int, part_sign: int, either: bool = True) -> Probe:
        def probe(head: Head) -> tuple[str, bool]:
            all_of_it, part = names.effect(head), names.effect(head, places, on)
            totals, parts = (names.orders(sign * all_of_it), names.orders(part_sign * part))
            right = min(totals) > 0 if either else sum(totals) > 0
            word = {"IO": "IO's logit from IO", "S": "S's logit from S", "difference": "from the end"}[on]
            return f"whole {shown(all_of_it)}; {word} {shown(part)}", right and min(parts) > 0

        return probe

    def copier(head: Head) -> tuple[str, bool]:
        io, s = names.effect(head, ["IO"], "IO"), names.effect(head, ["S1", "S2"], "S")
        total = names.orders(names.effect(head))
        said = f"IO's logit from IO {shown(io)}; S's from S {shown(s)}; whole {total[0]:+.2f}, {total[1]:+.2f}"
        return said, float(io.mean()) > 0 and float(s.mean()) > 0 and min(total) < 0.1 * whole

    def inhibition(head: Head) -> tuple[str, bool]:
        layer, at = head
        point = f"blocks.{layer}.attn.hook_z"
        movers = [
            (score.layer, int(score.head or 0))
            for kind in ("name_mover", "name_copier", "subject_suppressor")
            for score in found.heads(kind)
        ]
        patterns: dict[str, Tensor] = {}

        def put(z: Tensor, hook: Any) -> Tensor:
            z[:, -1, at] = names.other[point][:, -1, at]
            return z

        def keep(pattern: Tensor, hook: Any) -> None:
            patterns[hook.name] = pattern

        wanted = {f"blocks.{mover[0]}.attn.hook_pattern" for mover in movers if mover[0] > layer}
        logits = names.model.run_with_hooks(
            names.tokens, fwd_hooks=[(point, put), *((name, keep) for name in sorted(wanted))]
        )
        lost = float((names.difference(logits) - names.difference(names.model(names.tokens))).mean())
        rows = torch.arange(len(names.tokens))
        moved = [
            float(
                (
                    patterns[name][rows, number, -1, names.places["IO"]] - names.attention((above, number), "end", "IO")
                ).mean()
            )
            for above, number in movers
            if (name := f"blocks.{above}.attn.hook_pattern") in patterns
        ]
        looks = float(names.attention(head, "end", "S2").mean())
        said = (
            f"end to S2 {looks:.2f}; swapped at the end: difference {lost:+.2f}, movers' look at IO {min(moved):+.2f}"
        )
        return said, looks > 0.1 and lost < 0 and min(moved) < -0.02

    return {
        "duplicate_name": duplicate,
        "name_mover": by_part(["IO"], "IO", 1, 1),
        "negative_name_mover": by_part(["IO"], "IO", -1, -1, either=False),
        "subject_suppressor": by_part(["S1", "S2"], "S", 1, -1),
        "amplifier": by_part(["end"], "difference", 1, 1),
        "dampener": by_part(["end"], "difference", -1, -1),
        "name_copier": copier,
        "s_inhibition": inhibition,
    }


def shuffle(model: HookedTransformer, seed: int) -> None:
    """Put each of the model's weights in another order."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, _ in model.named_parameters():
        value = state[name]
        state[name] = value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)
    model.load_state_dict(state)


def repeating(model: HookedTransformer, text: Tensor | None, length: int, gap: int) -> Callable[[int], Any]:
    """Rows that say `length` tokens twice with a gap between, and the places of the second and the first time."""
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    allowed = torch.tensor([token for token in range(model.cfg.d_vocab) if token not in special])
    bos = [] if model.tokenizer is None or model.tokenizer.bos_token_id is None else [model.tokenizer.bos_token_id]

    def some(n: int, generator: torch.Generator) -> Tensor:
        if text is None:
            return allowed[torch.randint(len(allowed), (n,), generator=generator)]
        start = int(torch.randint(len(text) - n, (1,), generator=generator))
        return text[start : start + n]

    def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        every = []
        for _ in range(24):
            said, between = some(length, generator), some(gap, generator)
            every.append(torch.cat([torch.tensor(bos, dtype=torch.long), said, between, said]))
        first = torch.arange(len(bos), len(bos) + length - 1)
        return torch.stack(every), (first + length + gap).expand(24, -1), first.expand(24, -1)

    return rows


def thirds(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows like those that `induction-2l` was trained on: 16 tokens of the first third once more in each other."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(128, (32, 85), generator=generator)
    starts = torch.stack([torch.randint(12, (32,), generator=generator) + begin for begin in (1, 28, 56)], 1)
    at = torch.arange(16)
    for row, (first, *others) in enumerate(starts.tolist()):
        for other in others:
            tokens[row, other + at] = tokens[row, first + at]
    return tokens, starts[:, 2:] + at[:-1], starts[:, :1] + at[:-1]


def checked(source: str, text_file: Path | None, n_prompts: int, n_shuffles: int) -> tuple[list[str], int]:
    """Return the lines of a model's table, and the number of labels that failed."""
    truth_file = Path(source) / "truth.json"
    truth = json.loads(truth_file.read_text()) if truth_file.is_file() else None
    model = (
        HookedTransformer.from_pretrained_no_processing(source) if truth else HookedTransformer.from_pretrained(source)
    )
    name = model.cfg.model_name
    text = tokens = None
    if text_file is not None and model.tokenizer is not None:
        text = text_file.read_text(encoding="utf-8")
        tokens = model.to_tokens(text, prepend_bos=False, truncate=False)[0]
    longest = (model.cfg.n_ctx - 1) // 2
    rows = repeating(model, tokens, min(24, longest), min(7, model.cfg.n_ctx - 1 - 2 * min(24, longest)))
    task = names = None
    if truth is None:
        # Prompts of both orders; the corrupted ones name the other person again.
        dataset = IOIDataset("mixed", n_prompts, model.tokenizer, prepend_bos=model.cfg.default_prepend_bos)
        task, names = Task.from_ioi(dataset, "ABB->ABA, BAB->BAA"), Names.of(model)
    runs: list[tuple[str, Any, Rows]] = [("pieces of a text" if text else "random", None, rows)]
    if name == "induction-2l":
        runs.append(("its own", thirds(0)[0], thirds))
    elif truth is not None and truth.get("examples"):
        runs.append(("its own", torch.tensor([each["clean"] for each in truth["examples"]]), rows))
    lines, failed, labelled = [], 0, torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    for called, data, probed in runs:
        found = detect_heads(model, data, text=text, task=task, progress=False)
        labelled |= found.labelled.any(0)
        probes = attention_probes(model, probed) | ({} if names is None else name_probes(names, found))
        for at, kind in enumerate(found.kinds):
            for score in found.heads(kind):
                head = (score.layer, int(score.head or 0))
                said, agrees = probes[kind](head)
                failed += not agrees
                on = called if found.unit(kind) == "attention" and kind != "duplicate_name" else "two names"
                numbers = (score.value, *(float(each[at][head]) for each in (found.controls, found.errors)))
                shown = " | ".join(f"{number:.3f}" for number in numbers)
                lines.append(f"| {kind} | {score.label} | {on} | {shown} | {said} | {'yes' if agrees else '**no**'} |")
    heading = ["| kind | head | rows | score | control | error | probe | agrees |", "|---|---|---|---|---|---|---|---|"]
    lines = [f"## {name}", "", *([*heading, *lines] if lines else ["No label."])]
    if names is not None:
        whole = names.orders(names.difference(model(names.tokens)))
        about = f"Logit difference of the probe's {len(names.tokens)} prompts: {whole[0]:+.2f} (ABBA), {whole[1]:+.2f}."
        lines += ["", about]
    if truth is not None and truth.get("idle"):
        idle = [tuple(map(int, head.split("."))) for head in truth["idle"] if "." in head]
        labels = sum(bool(labelled[head]) for head in idle)
        lines += ["", f"Of {len(idle)} heads known to be idle, {labels} have a label."]
        failed += labels
    few = None if task is None else task[: min(48, n_prompts)]
    n_labels = 0
    for seed in range(1, n_shuffles + 1):
        shuffle(model, seed)
        for _, data, _ in runs:
            n_labels += int(detect_heads(model, data, text=text, task=few, progress=False).labelled.sum())
    tries = f"{n_shuffles} times" if n_shuffles > 1 else "once"
    on = " and ".join(called for called, _, _ in runs)
    lines += ["", f"With every weight in another order ({tries}, on rows of {on}): {n_labels or 'no'} labels.", ""]
    return lines, failed + n_labels


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="what from_pretrained takes, or folders of models of known answers")
    parser.add_argument("--text", type=Path, help="text for models with a tokenizer; default: random tokens")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of two names")
    parser.add_argument("--shuffles", type=int, default=1, help="tries with the weights in another order")
    parser.add_argument("--out", type=Path, help="a file for the tables")
    given = parser.parse_args()
    failed = 0
    for source in given.models:
        lines, wrong = checked(source, given.text, given.prompts, given.shuffles)
        failed += wrong
        print("\n".join(lines), flush=True)
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as file:
                file.write("\n".join([*lines, ""]))
    print(f"{failed} labels failed.")


if __name__ == "__main__":
    main()
