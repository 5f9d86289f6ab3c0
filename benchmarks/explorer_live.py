"""The live explorer beside a full run of the same change: seconds for an answer, and the largest difference in value.

An answer is what a person waits for once a prompt is there and one more head or MLP is changed: the request over HTTP
to a server in this process, the run from the changed layer on, predictions, losses, the logit lens along the layers and
direct effects of both runs, and the JSON of it all, read again. Beside it, in turn, a full run of the model with a hook
on the same component, which gives logits alone. Each change is new to the server (its factor is), the prompt is not.

    python benchmarks/explorer_live.py [--model headscope-demo] [--tokens 40] [--repeats 5] [--threads 2] [--cpu]

On a machine that others use, `--cpu --threads 1` counts CPU seconds of this process, which they disturb less.

What to expect, in operations: the run of a change in layer `l` of `L` is `(L - l) / L` of a full one without its
unembedding; an answer unembeds the prompt's positions once for its losses and about two states a layer once for each
run. So it takes about as long as two full runs in the first layer, and as one in the last.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from headscope import HookedTransformer
from headscope.explorer.serving.server import Address, Server
from headscope.explorer.serving.sessions import Sessions

Clock = Callable[[], float]

TEXT = (
    "When Mary and John went to the store, John gave a drink to Mary. Then Mary said thank you to John, and they went "
    "home to the old house by the river, where the dog and the cat were waiting for them at the door. "
)


def prompt_of(model: HookedTransformer, n_tokens: int) -> str:
    """A text of about so many tokens."""
    words = (TEXT * 10).split(" ")
    for n in range(1, len(words)):
        if model.to_tokens(" ".join(words[: n + 1]), truncate=False).shape[1] > n_tokens:
            return " ".join(words[:n])
    return " ".join(words)


def scaling(component: str, factor: float) -> tuple[str, Callable[..., Tensor]]:
    """The hook of a full run that scales a head or an MLP."""
    if component.startswith("mlp"):
        return f"blocks.{component[3:]}.hook_mlp_out", lambda value, hook: factor * value
    layer, head = component.split(".")

    def scaled(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, int(head)] *= factor
        return z

    return f"blocks.{layer}.attn.hook_z", scaled


@torch.no_grad()
def compared(
    model: HookedTransformer, client: httpx.Client, prompt: str, component: str, repeats: int, clock: Clock
) -> str:
    """Ask for a change and run it fully, in turn; a line of the table."""
    tokens = model.to_tokens(prompt)
    answers, runs, apart = [], [], 0.0
    for repeat in range(repeats):
        factor = 0.5 - 0.01 * repeat
        change = {"component": component, "action": "scale", "factor": factor}
        begin = clock()
        answer = client.post("/api/run", json={"prompt": prompt, "changes": [change]}).raise_for_status().json()
        answers.append(clock() - begin)
        begin = clock()
        log_probs = model.run_with_hooks(tokens, fwd_hooks=[scaling(component, factor)])[0].log_softmax(-1)
        runs.append(clock() - begin)
        after = answer["after"]
        probabilities = log_probs[-1].exp()
        losses = -log_probs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        apart = max(
            apart,
            float((torch.tensor(after["losses"][1:]) - losses).abs().max()),
            *(abs(each["probability"] - float(probabilities[each["id"]])) for each in after["predictions"]),
        )
    best, full = min(answers), min(runs)
    return f"{component:>8} {best:9.3f} s {max(answers):9.3f} s {full:9.3f} s {best / full:7.2f} x {apart:12.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="headscope-demo")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock: Clock = time.process_time if options.cpu else time.perf_counter
    model = HookedTransformer.from_pretrained(options.model)
    prompt = prompt_of(model, options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Address.bind(0), Path(folder), Sessions(model))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            headers = {"X-Headscope-Token": server.address.token}
            url = f"http://127.0.0.1:{server.address.port}"
            with httpx.Client(base_url=url, headers=headers, timeout=60, verify=False) as client:
                client.post("/api/run", json={"prompt": "warm"}).raise_for_status()
                begin = clock()
                first = client.post("/api/run", json={"prompt": prompt}).raise_for_status().json()
                unit = f"{'CPU' if options.cpu else 'wall'} seconds, {options.threads} threads"
                print(f"{model.cfg.model_name}, {len(first['ids'])} tokens, {unit}")
                print(f"a new prompt: {clock() - begin:.3f} s")
                begin = clock()
                patterns = client.post("/api/patterns", json={"state": {"prompt": prompt}, "layer": None})
                print(f"all patterns: {clock() - begin:.3f} s, {len(patterns.content) / 2**20:.2f} MiB")
                print("  change    answer   slowest answer   full run   ratio   largest difference")
                last = model.cfg.n_layers - 1
                components = ["0.0", f"{last // 2}.1", f"{last}.0"]
                components += [f"mlp{last // 2}"] if model.cfg.layers_with("mlp") else []
                for component in components:
                    print(compared(model, client, prompt, component, options.repeats, clock))
        finally:
            server.stop()
            thread.join()


if __name__ == "__main__":
    main()
