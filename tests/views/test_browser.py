"""Views in a real browser: everything is drawn as the data say, and answers to mouse, keyboard and menus."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browser import NEEDS_CHROMIUM, visit

from headscope.views import examples, topk_samples, topk_tokens
from headscope.views.activations import text_neuron_activations
from headscope.views.attention import attention_heads, attention_patterns
from headscope.views.html import HtmlView, page
from headscope.views.logits import token_log_probs
from headscope.views.tokens import colored_tokens, colored_tokens_multi

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = NEEDS_CHROMIUM

# What a visitor does and sees, for the steps of a test.
HELPERS = """
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const text = (selector) => { const node = one(selector); return node && !node.hidden ? node.textContent : null; };
const hover = (node) => node.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
const leave = (node) => node.dispatchEvent(new PointerEvent("pointerleave"));
const key = (node, name) => node.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const pick = (select, i) => { select.selectedIndex = i; select.dispatchEvent(new Event("change")); };
const alpha = (node) => (node.classList.contains("neg") ? -1 : 1) * Number(node.style.getPropertyValue("--a"));
const alphas = (selector = ".hs-token") => all(selector).map(alpha);
"""


Act = Callable[[list[HtmlView], str], Any]


@pytest.fixture
def act(chromium: "Browser", tmp_path: Path) -> Act:
    """Open a page of views, run the steps on it, and give what they return; nothing may go wrong meanwhile."""

    def run(views: list[HtmlView], steps: str) -> Any:
        path = tmp_path / "page.html"
        path.write_text(page(views), encoding="utf-8")
        with visit(chromium, path, height=2000) as opened:
            return opened.evaluate(f"async () => {{ {HELPERS}\n{steps} }}")

    return run


def opacity(share: float) -> float:
    """The opacity of a color, as the style has it; below zero where it is red."""
    return math.copysign(0.06 + 0.84 * abs(share), share) if abs(share) >= 0.004 else 0.0


def test_a_token_of_ten_thousand_characters_is_cut_where_it_is_named(act: Act) -> None:
    view = colored_tokens(["x" * 10_000, " y"], [1.0, -1.0])
    found = act([view], "hover(one('.hs-token')); return [text('.hs-token').length, text('.hs-tip')];")
    assert found[0] == 10_000
    assert len(found[1]) < 250 and "(10,000 characters)" in found[1]


def test_activations_are_drawn_chosen_and_named(act: Act) -> None:
    texts = [["The", " cat", " sat"], ["A", " dog"]]
    values = [torch.linspace(-1, 1, 18).reshape(3, 3, 2), torch.linspace(2, -4, 12).reshape(2, 3, 2)]
    values[1][1, 2, 1] = torch.nan
    view = text_neuron_activations(
        texts,
        values,
        first_dimension_name="loss",
        second_dimension_labels=["10.7", "11.10"],
        unit="nats",
        max_value=2.0,
    )
    found = act(
        [view],
        """
        const menus = all("select"), seen = { begin: alphas(), labels: menus.map((menu) => menu.ariaLabel) };
        pick(menus[1], 1); seen.first = alphas();
        pick(menus[2], 1); seen.second = alphas();
        hover(all(".hs-token")[1]); seen.tip = text(".hs-tip");
        pick(menus[0], 1); seen.text = alphas(); seen.hidden = text(".hs-tip");
        one("button[aria-label='next loss']").click(); seen.next = alphas();
        seen.none = all(".hs-token.none").length;
        key(one(".hs-text"), "End"); seen.last = text(".hs-tip");
        key(one(".hs-text"), "Home"); seen.home = text(".hs-tip");
        key(one(".hs-text"), "Escape"); seen.closed = text(".hs-tip");
        pick(menus[2], 0); all(".hs-token")[1].click(); seen.far = text(".hs-tip");
        seen.legend = text(".hs-legend");
        return seen;
        """,
    )

    def shown(text: int, first: int, second: int) -> list[float]:
        numbers = values[text][:, first, second].nan_to_num(0).tolist()
        return [opacity(max(-1.0, min(1.0, number / 2))) for number in numbers]

    assert found["labels"] == ["text", "loss", "Neuron"]
    for name, place in {
        "begin": (0, 0, 0), "first": (0, 1, 0), "second": (0, 1, 1), "text": (1, 1, 1), "next": (1, 2, 1)
    }.items():  # fmt: skip
        assert found[name] == pytest.approx(shown(*place), abs=0.002), name
    value = f"{float(values[0][1, 1, 1]):.3f}"
    assert found["tip"] == f" cat at position 1activation +{value} natsloss 1, Neuron 11.10"
    assert found["hidden"] is found["closed"] is None and found["none"] == 1
    assert found["last"].startswith(" dog at position 1activation no value")
    assert found["home"].startswith("A at position 0activation −0.727")
    assert found["far"] == " dog at position 1activation −3.455 nats (beyond the color scale)loss 2, Neuron 10.7"
    assert "3 of 30 values lie beyond the scale" in found["legend"]


def test_log_probs_are_ranked_listed_and_kept(act: Act) -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1]])
    strings = ["a", " b", " c", " d"]
    view = token_log_probs([0, 2, 3], probabilities.log(), to_string=strings, top_k=3)
    found = act(
        [view],
        """
        const lines = () => all("tbody tr").map((row) => row.textContent), seen = { begin: alphas() };
        const panel = () => one(".hs-panel p").textContent;
        hover(all(".hs-token")[1]); seen.hover = [panel(), lines(), all(".came").length];
        all(".hs-token")[2].click(); seen.kept = [panel(), lines()];
        hover(one(".hs-token")); leave(one(".hs-text")); seen.still = panel();
        const switches = all("[role=radio]");
        switches[1].click(); seen.after = [one("caption").textContent, lines()];
        switches[3].click(); seen.chances = alphas();
        key(one(".hs-text"), "Escape"); seen.free = panel();
        key(one(".hs-text"), "ArrowRight"); seen.keyed = panel();
        switches[0].click(); key(one(".hs-text"), "Home"); seen.first = [panel(), lines()];
        return seen;
        """,
    )
    own = [math.log(0.15), math.log(0.4)]
    assert found["begin"] == pytest.approx([0, *(opacity(value / -own[0]) for value in own)], abs=0.002)
    assert found["hover"][0] == " c (1): log prob −1.897 nats, probability 15.0\xa0%, rank 3 of 4."
    assert found["hover"][1] == ["1a50.0\xa0%−0.693", "2 b30.0\xa0%−1.204", "3 c came15.0\xa0%−1.897"]
    assert found["hover"][2] == 1
    assert found["kept"][0].startswith(" d (2): log prob −0.916 nats, probability 40.0\xa0%, rank 1 of 4. Kept")
    assert found["kept"][1] == ["1 d came40.0\xa0%−0.916", "2 c30.0\xa0%−1.204", "3 b20.0\xa0%−1.609"]
    assert found["still"] == found["kept"][0]
    assert found["after"] == ["most likely next, after  d (2)", ["1 c40.0\xa0%−0.916", *found["after"][1][1:]]]
    assert found["chances"] == pytest.approx([0, opacity(0.15), opacity(0.4)], abs=0.002)
    assert found["free"].startswith("Point at a token")
    assert found["keyed"].startswith("a (0): nothing stands before it") and found["first"][1] == []


def test_direct_effects_show_no_probability(act: Act) -> None:
    effects = torch.tensor([[1.0, -3.0], [0.5, 0.0]])
    view = token_log_probs([0, 1], effects, to_string=["a", "b"], name="direct effect", top_k=1, negative=True)
    found = act(
        [view],
        "hover(all('.hs-token')[1]); return [one('.hs-panel').textContent, alphas(), document.body.innerText];",
    )
    assert "b (1): direct effect −3.000, rank 2 of 2" in found[0] and "lowest here, after a (0)" in found[0]
    assert found[1] == [0, -0.9]
    assert "probab" not in found[2]


def test_a_scale_that_ends_at_zero_is_red(act: Act) -> None:
    tokens = ["a", " b", " c"]
    scores = torch.tensor([[[-4.0, -4.0, -4.0], [-2.0, 0.0, -4.0], [-1.0, -4.0, -3.0]]])
    found = act(
        [
            colored_tokens(tokens, [-1.0, -0.5, 0.0], min_value=-1.0, max_value=0.0),
            attention_heads(scores, tokens, min_value=-4.0, max_value=0.0, focus=2),
        ],
        "return [alphas(), one('.hs-legend i').style.background];",
    )
    shares = [-1, -0.5, 0, -0.25, -1, -0.75]
    assert found[0] == pytest.approx([opacity(share) for share in shares], abs=0.004)
    assert "--hs-neg" in found[1]


def test_values_of_several_kinds_are_chosen_by_buttons(act: Act) -> None:
    values = torch.tensor([[0.5, -2.0], [-1.0, 4.0]])
    found = act(
        [colored_tokens_multi(["a", " b"], values, labels=["loss", "entropy"])],
        """
        const seen = { loss: alphas(), tall: Math.max(...all("button").map((button) => button.offsetHeight)) };
        const buttons = all("[role=radio]");
        key(buttons[0], "ArrowRight"); seen.entropy = alphas(); seen.focus = document.activeElement === buttons[1];
        hover(all(".hs-token")[1]); seen.tip = text(".hs-tip"); seen.legend = text(".hs-legend");
        return seen;
        """,
    )
    assert found["tall"] < 40
    assert found["loss"] == pytest.approx([opacity(0.5), opacity(-1)], abs=0.002)
    assert found["entropy"] == pytest.approx([opacity(-0.5), opacity(1)], abs=0.002) and found["focus"]
    assert found["tip"] == " b at position 1loss −1.000entropy +4.000"
    assert found["legend"].startswith("entropy−4.000")


def test_the_table_of_tokens(act: Act) -> None:
    texts = [["The", " cat", " sat"], ["A", " dog"]]
    values = [torch.arange(24.0).reshape(2, 3, 4) - 12, torch.arange(16.0).reshape(2, 2, 4)]
    found = act(
        [topk_tokens.topk_tokens(texts, values, max_k=3)],
        """
        const cells = () => all("tbody tr").map((row) => all("td.hs-cell", row).map((cell) => cell.textContent));
        const seen = { all: cells(), heads: all("thead th").map((head) => head.textContent) };
        const menus = all("select");
        pick(menus[0], 2); seen.dog = cells();
        pick(menus[1], 1); seen.layer = cells();
        all("[role=radio]")[1].click(); seen.lowest = cells();
        key(one(".hs-scroll"), "ArrowRight"); key(one(".hs-scroll"), "ArrowDown"); seen.tip = text(".hs-tip");
        seen.shades = alphas(".hs-cell");
        return seen;
        """,
    )
    assert found["heads"] == ["#", "Neuron 0", "Neuron 1", "Neuron 2", "Neuron 3"]
    # Layer 0, neuron 0: -12, -8, -4 in the first text, 0 and 4 in the second.
    assert [row[0] for row in found["all"]] == [" dog +4.000", "A 0.000", " sat −4.000"]
    assert [row[0] for row in found["dog"] if row] == [" dog +4.000", "A 0.000"]
    assert [row[1] for row in found["layer"] if row] == [" dog +13.000", "A +9.000"]
    assert [row[1] for row in found["lowest"] if row] == ["A +9.000", " dog +13.000"]
    assert found["tip"] == "A dogposition 1 of text 1: A dogNeuron 0: +12.000"
    assert found["shades"][0] == pytest.approx(opacity(8 / 15), abs=0.002)


def test_the_samples_of_a_neuron(act: Act) -> None:
    tokens = [[[["a", " b"], [" c"]], [["d"]]]]
    values = [[[[0.5, -1.0], [2.0]], [[8.0]]]]
    found = act(
        [topk_samples.topk_samples(tokens, values)],
        """
        const texts = (selector) => all(selector).map((node) => node.textContent);
        const seen = { begin: [texts("li p"), texts(".hs-text"), alphas()] };
        hover(all(".hs-token")[2]); seen.tip = text(".hs-tip");
        pick(one("select"), 1); seen.next = [texts("li p"), alphas(), text(".hs-legend")];
        return seen;
        """,
    )
    assert found["begin"][0] == ["largest +2.000 at  c (0)", "largest +0.500 at a (0)"]
    assert found["begin"][1] == [" c", "a b"]
    assert found["begin"][2] == pytest.approx([opacity(1), opacity(0.25), opacity(-0.5)], abs=0.002)
    assert found["tip"] == " b at position 1activation −1.000"
    assert found["next"][:2] == [["largest 8.000 at d (0)"], [0.9]] and "8.000" in found["next"][2]


def test_hello(act: Act) -> None:
    name = "<b>Ada</b>\n"
    found = act([examples.hello(name)], 'return [text(".hs-view h3"), all(".hs-view b").length];')
    assert found == ["Hello <b>Ada</b>↵", 0]


def test_attention_is_painted_and_a_head_is_chosen(act: Act) -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]])
    found = act(
        [attention_patterns(weights, ["a", " b"], attention_head_names=["0.1", "0.2"])],
        """
        const pixels = () => {
          const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          copy.drawImage(one(".hs-matrix canvas"), 0, 0);
          const data = copy.getImageData(0, 0, 2, 2).data;
          return [3, 7, 11, 15].map((i) => data[i] / 255);
        };
        const seen = { first: pixels(), labels: all(".hs-heads button").map((button) => button.ariaLabel) };
        const on = (type) => new PointerEvent(type, { pointerType: "mouse" });
        all(".hs-heads button")[1].dispatchEvent(on("pointerenter")); seen.preview = pixels();
        one(".hs-heads").dispatchEvent(on("pointerleave")); seen.back = pixels();
        all(".hs-heads button")[1].click(); seen.second = pixels();
        all(".hs-token")[1].click(); seen.status = one(".hs-status").textContent; seen.shades = alphas();
        return seen;
        """,
    )
    assert found["labels"] == ["head 0.1", "head 0.2"]
    assert found["first"] == pytest.approx([opacity(share) for share in (1, 0, 0.25, 0.75)], abs=0.01)
    assert found["preview"] == found["second"] and found["back"] == found["first"]
    assert found["second"] == pytest.approx([opacity(share) for share in (1, 0, 0.5, 0.5)], abs=0.01)
    assert "head 0.2:  b (1) attends to a (0) 0.500,  b (1) 0.500" in found["status"]
    assert found["shades"] == pytest.approx([opacity(0.5)] * 2, abs=0.005)
