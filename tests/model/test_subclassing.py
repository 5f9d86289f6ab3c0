"""What packages that build on the model rely on: subclasses, swapped parts, gradients at hook points.

Each class here stands for a kind of package: one that puts sparse autoencoders in the place of hook points, one that
wraps parts of a block and freezes what is not linear, one that gates every edge, one that hooks a foreign model.
"""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference
from safetensors.torch import load_file, save_file
from small_models import STORY, save_checkpoint, small_model
from tiny import randomize, tiny_config, tiny_model, tiny_tokens
from torch import Tensor, nn

from headscope import HookedRootModule, HookedTransformer, HookedTransformerConfig, HookPoint

TOKENS = tiny_tokens()
HELD = ("hook_pattern", "hook_scale", "mlp.hook_out")


@pytest.fixture
def model() -> HookedTransformer:
    return tiny_model()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


class Autoencoder(HookedRootModule):
    """Hook points of its own, usable without a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, 2 * width, dtype=torch.float64)
        self.decoder = nn.Linear(2 * width, width, dtype=torch.float64)
        self.hook_acts = HookPoint()
        self.setup()

    def forward(self, value: Tensor) -> Tensor:
        flat = value.flatten(2)
        return self.decoder(self.hook_acts(self.encoder(flat).relu())).view_as(value)


class Splice(nn.Module):
    """Stands where a hook point stood, lends the autoencoder's hook points its place, and owns no weight."""

    def __init__(self, autoencoder: Autoencoder, add_error: bool) -> None:
        super().__init__()
        self.__dict__["autoencoder"] = autoencoder
        self.add_error = add_error
        self.hook_acts = autoencoder.hook_acts
        self.hook_error = HookPoint()

    def forward(self, value: Tensor) -> Tensor:
        out = self.__dict__["autoencoder"](value)
        return out + self.hook_error((value - out).detach()) if self.add_error else out


class Spliced(HookedTransformer):
    """A transformer that autoencoders can be put into and taken out of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.blocks:
            block.mlp.hook_in = HookPoint()
            block.mlp.forward = partial(self._with_input_hook, block.mlp.forward, block.mlp)
        self.spliced: list[str] = []
        self.setup()

    @staticmethod
    def _with_input_hook(plain: Any, mlp: nn.Module, value: Tensor) -> Tensor:
        return plain(mlp.hook_in(value))

    def _put(self, place: str, module: nn.Module) -> None:
        owner, _, name = place.rpartition(".")
        setattr(self.get_submodule(owner), name, module)
        self.setup()

    @contextmanager
    def splices(self, autoencoders: dict[str, Autoencoder], *, add_error: bool = False) -> Iterator[None]:
        for place, autoencoder in autoencoders.items():
            self._put(place, Splice(autoencoder, add_error))
        try:
            yield
        finally:
            for place in autoencoders:
                self._put(place, HookPoint())


PLACES = ("blocks.0.attn.hook_z", "blocks.0.hook_resid_mid", "blocks.1.mlp.hook_in", "blocks.1.hook_resid_post")


def spliced_model() -> tuple[Spliced, dict[str, Autoencoder]]:
    model = Spliced(tiny_config())
    randomize(model)
    widths = dict(zip(PLACES, (12, 10, 10, 10), strict=True))
    return model, {place: Autoencoder(width) for place, width in widths.items()}


def test_autoencoders_come_and_go_under_the_names_of_their_places() -> None:
    model, autoencoders = spliced_model()
    clean, names = model(TOKENS), list(model.hook_dict)
    assert "blocks.1.mlp.hook_in" in names
    with model.splices(autoencoders):
        inside = [f"{place}.{name}" for place in PLACES for name in ("hook_acts", "hook_error")]
        assert set(model.hook_dict) == set(names) - set(PLACES) | set(inside)
        logits, cache = model.run_with_cache(TOKENS)
        assert all(bool(cache[f"{place}.hook_acts"].any()) for place in PLACES)
        silenced = model.run_with_hooks(TOKENS, fwd_hooks=[(f"{PLACES[0]}.hook_acts", lambda value, hook: value * 0)])
        assert not torch.allclose(silenced, logits)
    assert list(model.hook_dict) == names and torch.equal(model(TOKENS), clean)
    edits = [(place, lambda value, hook: autoencoders[hook.name](value)) for place in PLACES]
    torch.testing.assert_close(model.run_with_hooks(TOKENS, fwd_hooks=edits), logits)


def test_with_its_error_added_an_autoencoder_changes_nothing_but_carries_gradients() -> None:
    model, autoencoders = spliced_model()
    clean = model(TOKENS)
    gradients: dict[str, Tensor] = {}
    names = [f"{place}.hook_acts" for place in PLACES]
    with model.splices(autoencoders, add_error=True):
        torch.testing.assert_close(model(TOKENS), clean)
        with model.hooks(bwd_hooks=[(name, lambda grad, hook: gradients.update({hook.name: grad})) for name in names]):
            model(TOKENS, return_type="loss").backward()
    assert set(gradients) == set(names) and all(bool(grad.abs().sum() > 0) for grad in gradients.values())
    assert autoencoders[PLACES[0]].encoder.weight.grad is not None
    assert not any("coder" in name for name, _ in model.named_parameters())


def test_a_subclass_and_what_was_put_in_its_places_can_be_copied_and_pickled() -> None:
    model, autoencoders = spliced_model()
    with model.splices(autoencoders):
        logits = model(TOKENS)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin) is Spliced and torch.equal(twin(TOKENS), logits)
            assert list(twin.hook_dict) == list(model.hook_dict)
            point = twin.hook_dict[f"{PLACES[1]}.hook_acts"]
            assert point is not autoencoders[PLACES[1]].hook_acts
            silenced = twin.run_with_hooks(TOKENS, fwd_hooks=[(point.name, lambda value, hook: value * 0)])
            assert not torch.allclose(silenced, logits) and torch.equal(model(TOKENS), logits)


def test_only_named_places_are_cached_up_to_a_layer() -> None:
    model, autoencoders = spliced_model()
    name = f"{PLACES[0]}.hook_acts"
    with model.splices(autoencoders):
        whole = model.run_with_cache(TOKENS, names_filter=[name], stop_at_layer=None, prepend_bos=False)[1]
        part = model.run_with_cache(
            TOKENS, names_filter=[name], stop_at_layer=1, prepend_bos=False, return_cache_object=False
        )[1]
    assert list(part) == list(whole.cache_dict) == [name] and torch.equal(part[name], whole[name])


class Wrapped(nn.Module):
    """A part of a block with hook points around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.hook_in = HookPoint()
        self.hook_out = HookPoint()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name) if name.startswith(("W_", "b_")) else super().__getattr__(name)

    def forward(self, value: Tensor) -> Tensor:
        return self.hook_out(self.inner(self.hook_in(value)))


class Linearized(HookedTransformer):
    """Gradients go through what is linear in the residual stream only; the rest is held constant."""

    label: str

    @classmethod
    def from_pretrained(cls, model_name: str, label: str, **options: Any) -> "Linearized":
        return super().from_pretrained(model_name, fold_ln=False, center_unembed=False, **options).linearize(label)

    @classmethod
    def from_config(cls, cfg: HookedTransformerConfig, label: str, **options: Any) -> "Linearized":
        return cls(cfg, **options).linearize(label)

    def linearize(self, label: str) -> "Linearized":
        self.label = label
        for block in self.blocks:
            block.mlp = Wrapped(block.mlp)
            block.mlp.hook_out.hook_grad = HookPoint()
            block.mlp.hook_out.add_hook(
                lambda value, hook: hook.hook_grad(value.detach().requires_grad_()), is_permanent=True
            )
            for point in (block.attn.hook_pattern, block.ln1.hook_scale, block.ln2.hook_scale):
                point.add_hook(lambda value, hook: value.detach(), is_permanent=True)
        self.ln_final.hook_scale.add_hook(lambda value, hook: value.detach(), is_permanent=True)
        self.unembed = Wrapped(self.unembed)
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.hook_embed.add_perma_hook(lambda value, hook: value.requires_grad_())
        mask = self.blocks[0].attn.mask
        for block in self.blocks:
            block.attn.mask = mask
        self.setup()
        return self

    def __del__(self) -> None:
        self.reset_hooks(including_permanent=True)


def linearized(**fields: Any) -> Linearized:
    torch.manual_seed(0)
    model = Linearized.from_config(tiny_config(**fields), "tiny", tokenizer=None)
    randomize(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model


def linear_response(model: HookedTransformer, tokens: Tensor, place: str, change: Tensor, read: str) -> Tensor:
    """How the value at `read` changes when `change` is added at `place`; patterns, scales, MLPs stay as they were."""
    held = [name for name in model.hook_dict if name.endswith(HELD) and not place.startswith(name)]
    _, cache = model.run_with_cache(tokens, names_filter=[*held, read])
    hold = [(name, lambda value, hook: cache[hook.name]) for name in held]
    moved: list[Tensor] = []
    look = [(read, lambda value, hook: moved.append(value))]
    model.run_with_hooks(tokens, fwd_hooks=[*hold, (place, lambda value, hook: value + change), *look])
    return moved[0] - cache[read]


@pytest.mark.parametrize("fields", [{}, {"normalization_type": "RMS"}, {"parallel_attn_mlp": True}])
def test_gradients_through_frozen_points_are_the_linear_response(fields: dict[str, Any]) -> None:
    model = linearized(**fields)
    change = torch.randn(2, 7, 10, dtype=torch.float64)
    embedded: list[Tensor] = []
    with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: embedded.append(value))]):
        logits = model(TOKENS)
    direction = torch.randn_like(logits)
    logits.backward(direction)
    response = linear_response(model, TOKENS, "hook_embed", change, "unembed.hook_out")
    torch.testing.assert_close((embedded[0].grad * change).sum(), (response * direction).sum())


def test_gradients_are_put_in_at_a_state_again_and_again_after_the_hooks_are_gone() -> None:
    model = linearized()
    tokens = TOKENS[:1].expand(3, -1)
    written, read = "blocks.0.mlp.hook_out.hook_grad", "blocks.1.mlp.hook_in"
    states: list[Tensor] = []
    rows: list[Tensor] = []
    with model.hooks([(read, lambda value, hook: states.append(value))], [(written, lambda g, hook: rows.append(g))]):
        model(tokens, stop_at_layer=model.cfg.n_layers)
    change = torch.randn(3, 7, 10, dtype=torch.float64)
    response = linear_response(model, tokens, written, change, read)
    for _ in range(2):
        direction = torch.randn_like(states[0])
        handle = states[0].register_hook(lambda grad, direction=direction: direction)
        states[0].backward(torch.zeros_like(states[0]), retain_graph=True)
        handle.remove()
        torch.testing.assert_close((rows[-1] * change).sum(), (response * direction).sum())
    assert len(rows) == 2 and not torch.equal(rows[0], rows[1])


def test_frozen_points_and_layers_by_name() -> None:
    model = linearized()
    chosen = [name for name, point in model.hook_dict.items() if ".mlp.hook_out" in name and point.layer() == 1]
    assert chosen == ["blocks.1.mlp.hook_out", "blocks.1.mlp.hook_out.hook_grad"]
    cache, caching, _ = model.get_caching_hooks(lambda name: "mlp.hook_in" in name)
    more, others, nothing = model.get_caching_hooks([*chosen, "ln_final.hook_scale"])
    assert nothing == []
    logits = model.run_with_hooks(TOKENS[0], fwd_hooks=caching + others)
    assert list(cache) == ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"] and len(more) == 3
    assert torch.cat(list(cache.values())).shape == (2, 7, 10) and logits.shape == (1, 7, 23)
    with torch.inference_mode(), model.hooks([(chosen[0], lambda value, hook: more[hook.name])]):
        assert torch.equal(model(TOKENS[0]), logits)


def test_a_subclass_loads_through_a_from_pretrained_of_its_own(checkpoint: Path) -> None:
    model = Linearized.from_pretrained(str(checkpoint), "mine", device=torch.device("cpu"), dtype=torch.float64)
    assert type(model) is Linearized and model.label == "mine" and model.W_E.dtype == torch.float64
    plain = HookedTransformer.from_pretrained(checkpoint, fold_ln=False, center_unembed=False, dtype=torch.float64)
    tokens = plain.to_tokens(STORY)[:, :20]
    torch.testing.assert_close(model(tokens), plain(tokens))
    torch.testing.assert_close(model.unembed.W_U, plain.W_U)


def test_a_model_that_is_let_go_takes_its_permanent_hooks_along() -> None:
    model = linearized()
    model(TOKENS)
    gone = weakref.ref(model)
    point = model.hook_dict["blocks.0.attn.hook_pattern"]
    del model
    gc.collect()
    assert gone() is None and not point._forward_hooks


class Gate(nn.Module):
    """Wraps a hook point, which keeps its name, and multiplies what passes by a parameter; writes in place."""

    def __init__(self, point: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.point = point
        self.gate = nn.Parameter(torch.ones(shape, dtype=torch.float64))

    def forward(self, value: Tensor) -> Tensor:
        value = value.clone()
        value *= self.gate
        return self.point(value)


GATED = ("blocks.0.hook_resid_pre", "blocks.0.attn.hook_result", "blocks.1.hook_q_input", "blocks.1.hook_v_input",
         "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_pattern")  # fmt: skip
PER_HEAD = ("hook_result", "hook_q_input", "hook_v_input")


def test_gates_around_points_have_the_gradients_of_attribution_and_leave_the_names(model: HookedTransformer) -> None:
    clean = model(TOKENS)
    passed: dict[str, Tensor] = {}
    for place in GATED:
        owner, _, name = place.rpartition(".")
        gate = Gate(model.hook_dict[place], (3, 1) if name in PER_HEAD else ())
        setattr(model.get_submodule(owner), name, gate)
        gate.register_forward_hook(lambda module, args, output: passed.update({module.point.name: output}))
    with torch.inference_mode():
        torch.testing.assert_close(model(TOKENS), clean)
    assert set(passed) == set(GATED)
    grads: dict[str, Tensor] = {}
    model.add_hook(lambda name: name in GATED, lambda grad, hook: grads.update({hook.name: grad}), "bwd")
    logits, cache = model.run_with_cache(TOKENS, names_filter=list(GATED))
    (logits * clean.detach()).sum().backward()
    assert set(grads) == set(GATED)
    for place in GATED:
        assert torch.equal(cache[place], passed[place])
        products = grads[place] * cache[place]
        gate = model.get_submodule(place).gate
        wanted = products.sum((0, 1, 3))[:, None] if gate.ndim else products.sum()
        torch.testing.assert_close(gate.grad, wanted, msg=place)


class Foreign(HookedRootModule):
    """A model from elsewhere, whose hook points hang on torch's hooks and are no modules of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.setup()

    def setup(self) -> None:
        self.mod_dict, self.hook_dict = {}, {}
        for name, module in self.inner.named_modules():
            if name:
                point = self.mod_dict[name] = self.hook_dict[name] = HookPoint()
                point.name = name
                module.register_forward_hook(lambda module, args, output, point=point: point(output))

    def forward(self, value: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"out": self.inner(value) * scale}


def test_a_foreign_model_is_hooked_by_its_own_names() -> None:
    inner = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.ModuleDict({"head": nn.Linear(5, 2)})["head"])
    foreign = Foreign(inner)
    value = torch.randn(4, 3)
    out, cache = foreign.run_with_cache(value, scale=2.0, names_filter=["1"])
    assert torch.equal(out["out"], 2 * inner(value)) and list(cache) == ["1"]
    assert torch.equal(cache["1"], inner[:2](value))
    zeroed = foreign.run_with_hooks(value, fwd_hooks=[("1", lambda value, hook: value * 0)])["out"]
    assert torch.equal(zeroed, inner[2].bias.expand(4, 2))
    assert not any(point.fwd_hooks for point in foreign.hook_points())


class Counted(HookedTransformer):
    """A forward pass of another signature, which everything goes through."""

    passes = 0
    device = "an attribute of its own"

    def forward(self, input: Any, **kwargs: Any) -> Any:
        self.passes += 1
        return super().forward(input, **kwargs)


def test_everything_runs_through_an_overridden_forward() -> None:
    model = Counted(tiny_config())
    model(TOKENS)
    model.run_with_cache(TOKENS, return_type="loss")
    model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda value, hook: None)])
    assert model.passes == 3
    model.generate(TOKENS, max_new_tokens=2, do_sample=False, stop_at_eos=False, verbose=False)
    assert model.passes == 5


def test_hooks_swapped_after_the_first_step_of_a_generation() -> None:
    model = small_model()
    lengths: dict[str, list[int]] = {"first": [], "later": []}
    name = "blocks.1.hook_resid_post"

    def note(step: str) -> Any:
        return lambda value, hook: lengths[step].append(value.shape[1])

    def swap(value: Tensor, hook: HookPoint) -> None:
        model.reset_hooks()
        model.add_hook(name, note("later"))

    model.add_hook(name, note("first"))
    model.add_hook("blocks.1.hook_resid_post", swap)
    prompt = model.to_tokens(STORY)[:, :9]
    model.generate(prompt, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    assert lengths == {"first": [9], "later": [1, 1, 1]}


def test_parts_are_saved_sent_away_and_assigned_again_one_by_one(tmp_path: Path) -> None:
    model = tiny_model()
    logits = model(TOKENS)
    parts = [part for block in model.blocks for part in (block.mlp, block.attn)] + [model.unembed, model.embed]
    for number, part in enumerate(parts):
        save_file(part.state_dict(), tmp_path / f"{number}.safetensors")
        part.to("meta")
        assert all(parameter.is_meta for parameter in part.parameters())
    for number, part in enumerate(parts):
        part.load_state_dict(load_file(tmp_path / f"{number}.safetensors"), assign=True)
    assert torch.equal(model(TOKENS), logits)
    state = model.state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    fresh = Counted(model.cfg.to_dict())
    fresh.load_state_dict(load_file(tmp_path / "whole.safetensors"), strict=True)
    assert torch.equal(fresh(TOKENS), logits)
    fresh.load_state_dict({"unembed.b_U": state["unembed.b_U"] + 1}, strict=False)
    torch.testing.assert_close(fresh(TOKENS), logits + 1)


def test_moving_a_model_gives_the_model(model: HookedTransformer) -> None:
    logits = model(TOKENS)
    for moved in (model.to("cpu"), model.cpu(), model.to(torch.device("cpu")), model.to(torch.float64)):
        assert moved is model and torch.device(model.cfg.device) == torch.device("cpu")
    assert torch.equal(model(TOKENS), logits)
    assert model.to(torch.float32) is model and model.W_E.dtype == model.cfg.dtype == torch.float32
    torch.testing.assert_close(model(TOKENS).double(), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_model_moves_to_the_gpu_and_back(model: HookedTransformer) -> None:
    logits = model(TOKENS)
    assert model.cuda() is model and model.W_E.is_cuda and torch.device(model.cfg.device).type == "cuda"
    torch.testing.assert_close(model(TOKENS).cpu(), logits)
    assert model.cpu() is model and torch.equal(model(TOKENS), logits)


def test_a_soft_cap_of_zero_is_none(model: HookedTransformer) -> None:
    logits = model(TOKENS)
    model.cfg.output_logits_soft_cap = 0.0
    assert torch.equal(model(TOKENS), logits)


def test_the_config_goes_through_a_dictionary_and_takes_notes_of_others(model: HookedTransformer) -> None:
    fields = model.cfg.to_dict()
    twin = Counted(HookedTransformerConfig.from_dict(fields))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(TOKENS), model(TOKENS))
    assert all(block.attn.cfg is block.mlp.cfg is model.cfg for block in model.blocks)
    model.cfg.made_by = "another package"
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.cfg.made_by == "another package" and again.cfg is again.blocks[1].ln1.cfg is not model.cfg
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("fields", [{}, {"parallel_attn_mlp": True}, {"attn_only": True, "normalization_type": None}])
def test_the_parts_run_by_hand_are_the_whole(fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    residual = model.embed(TOKENS) + model.pos_embed(TOKENS)
    for block in model.blocks:
        residual = block(residual)
    torch.testing.assert_close(model.unembed(model.ln_final(residual)), model(TOKENS))
    reference = Reference(model.state_dict(), model.cfg).run(TOKENS)
    normed = model.blocks[1].ln1(reference.acts["blocks.1.hook_resid_pre"])
    attn_out = model.blocks[1].attn(query_input=normed, key_input=normed, value_input=normed)
    torch.testing.assert_close(attn_out, reference.acts["blocks.1.hook_attn_out"])


def test_text_longer_than_the_context_is_tokenized_whole_when_asked() -> None:
    model = small_model()
    whole = model.to_tokens(STORY * 4, truncate=False, move_to_device=False, prepend_bos=False)
    assert whole.shape[1] > model.cfg.n_ctx == model.to_tokens(STORY * 4).shape[1]
    assert model.to_string(whole[0]) == STORY * 4
