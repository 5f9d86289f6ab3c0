"""The live page, served: every control on the demo model, against runs of that model with hooks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browser import NEEDS_CHROMIUM, named_controls, visit
from explorer_pages import as_shown, at_once, go, hear, heard, look, numbers, opacity
from explorer_tree import write_tree
from hostile import HOSTILE
from live import served
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.attention.score import attribute_attention
from headscope.analysis.core.batches import Batch
from headscope.analysis.lens.logit_lens import logit_lens
from headscope.analysis.recording.component_means import OutputSums
from headscope.explorer.serving.schemas import Answer, State
from headscope.explorer.serving.server import Server
from headscope.explorer.serving.sessions import Sessions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.usefixtures("no_gradients")]

PROMPT = "When Mary and John went to the store, John gave a book to"
OTHER = "When John and Mary went to the store, Mary gave a book to"
# A request that an older one of the same page overtakes is refused, and asked again.
CROSSED = r"Failed to load resource.* 499"
REFUSED = r"Failed to load resource.* (400|413|422|499)"
RUN = ".prompt [type=submit]"
Hooks = list[tuple[str, Any]]


# The signed opacity of each cell of a small picture: red is below zero.
PAINTED = """
const canvas = one(`[data-head='${argument}'] canvas`), n = canvas.width;
const { data } = canvas.getContext("2d").getImageData(0, 0, n, n);
return Array.from({ length: n * n }, (_, i) => (data[4 * i] > data[4 * i + 2] ? -1 : 1) * data[4 * i + 3] / 255);
"""


class Gated(Sessions):
    """Answers that wait, while `gate` is closed, until they are given up."""

    gate = threading.Event()
    gate.set()

    def run(self, state: State, check: Any = lambda: None) -> Answer:
        while not self.gate.wait(0.02):
            check()
        return super().run(state, check)

    @classmethod
    @contextmanager
    def closed(cls) -> Iterator[None]:
        cls.gate.clear()
        try:
            yield
        finally:
            cls.gate.set()


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def means(model: HookedTransformer) -> Any:
    tokens = model.to_tokens("Mary gave a book to John. Then John walked to the store.")
    sums = OutputSums.of_all(model)
    return sums.means(sums.measure(Batch(tokens, None, torch.ones_like(tokens, dtype=torch.bool)), 0)).over_data


@pytest.fixture(scope="module")
def server(model: HookedTransformer, means: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    write_tree(folder, n_layers=model.cfg.n_layers, n_heads=model.cfg.n_heads, model="headscope-demo")
    with served(folder, Gated(model, means)) as server:
        yield server


def visit_live(
    chromium: "Browser", server: Server, place: str = "#/live", *, forgiven: str = CROSSED, **options: Any
) -> Any:
    link = server.address.link
    return visit(chromium, link, place=place, own=link.partition("?")[0], forgiven=forgiven, **options)


def run_prompt(page: "Page", prompt: str = PROMPT) -> None:
    page.wait_for_selector("#prompt")
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")
    settled(page)


def settled(page: "Page") -> None:
    """Wait until every answer on the page is that of what is asked."""
    page.wait_for_selector(".live-page:has(.live-columns):not(:has([aria-busy=true], .stale))")


def change(page: "Page", component: str, action: str) -> None:
    page.click(f"[data-component='{component}']")
    page.locator(f".editor .switch input[value='{action}']").check(force=True)
    settled(page)


def percentages(page: "Page", table: int) -> list[tuple[str, str]]:
    """The tokens and shares of the first or the second table, the rest of the vocabulary last."""
    rows = look(page, f"return [...all('.predictions')[{table}].rows].map((row) => words('th, .value', row))")
    return [(row[0], row[1]) for row in rows]


def with_hooks(model: HookedTransformer, hooks: Hooks, prompt: str = PROMPT) -> tuple[Tensor, Any]:
    with model.hooks(hooks):
        logits, cache = model.run_with_cache(model.to_tokens(prompt))
    return logits[0].log_softmax(-1), cache


def check_page(page: "Page", model: HookedTransformer, hooks: Hooks, *, changed: bool, position: int = -1) -> None:
    """Compare what the page shows of a run with a whole run with hooks."""
    log_probs, cache = with_hooks(model, hooks)
    chances = log_probs[position].exp()
    table = percentages(page, int(changed))
    best = chances.argsort(descending=True)[: len(table) - 1]
    strings = model.to_str_tokens(best)
    for (token, share), string, chance in zip(table, strings, chances[best].tolist(), strict=False):
        assert token == string.replace("\n", "↵")
        assert 100 * chance == as_shown(share.replace("\xa0%", ""))
    assert table[-1][0] == "all others"
    assert 100 * max(0.0, 1 - float(chances[best].sum())) == as_shown(table[-1][1].replace("\xa0%", ""))
    tokens = model.to_tokens(PROMPT)[0]
    losses = -log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
    shown = look(page, f"return words('.chip-loss{'.after' if changed else ':not(.after)'}')")
    assert shown[0] == "" and len(shown) == len(tokens)
    for loss, text in zip(losses.tolist(), shown[1:], strict=True):
        # A loss of a millionth is the difference of two float32 numbers of about ten.
        assert loss == as_shown(text) or loss == pytest.approx(*numbers(text), abs=1e-5)
    suffix = "-after" if changed else ""
    assert float(losses.mean()) == as_shown(look(page, f"return one('[data-value=mean-loss{suffix}]').textContent"))
    with model.hooks(hooks):
        entropies = logit_lens(model, tokens[None], include_bos=True, progress=False).entropy[:, 0, position]
    titles = look(page, "return words('.entropy .hit title')")
    ends = [title.removesuffix(" nats").split(": ")[1].split(" → ")[-1 if changed else 0] for title in titles]
    assert all(value == as_shown(text) for value, text in zip(entropies.tolist(), ends, strict=True))
    assert float(entropies[-1]) == as_shown(look(page, f"return one('[data-value=entropy{suffix}]').textContent"))
    target = int(with_hooks(model, [])[0][position].argmax())  # of the run as it is
    direction = (model.W_U[:, target] - model.W_U.mean(1)) / cache["ln_final.hook_scale"][0, position, 0]
    if page.locator(".views").count():
        page.locator(f".views input[value={'after' if changed else 'before'}]").check(force=True)
    effects = dict(look(page, "return all('[data-component]').map((cell) => [cell.dataset.component, cell.title])"))
    for layer in range(model.cfg.n_layers):
        heads = cache["z", layer][0, position, :, None, :] @ model.blocks[layer].attn.W_O
        parts = {f"{layer}.{head}": written[0] for head, written in enumerate(heads)}
        parts[f"mlp{layer}"] = cache["mlp_out", layer][0, position]
        for name, written in parts.items():
            effect = float((written - written.mean()) @ direction)
            assert effect == as_shown(effects[name].split(": ")[1].split(";")[0]), name


def test_a_prompt_is_read_as_the_model_reads_it(chromium: "Browser", server: Server, model: HookedTransformer) -> None:
    with visit_live(chromium, server) as page:
        run_prompt(page)
        tokens = model.to_tokens(PROMPT)[0].tolist()
        assert look(page, "return words('.chip-token')") == model.to_str_tokens(PROMPT)
        assert look(page, "return words('.chip-id')") == [str(token) for token in tokens]
        check_page(page, model, [], changed=False)
        # Every head's pattern, as painted, and the one in full.
        _, cache = with_hooks(model, [])
        for name in ("0.3", "2.1", "4.0"):
            layer, head = int(name[0]), int(name[2])
            painted = look(page, PAINTED, name)
            levels = (255 * cache["pattern", layer][0, head]).round().flatten() / 255  # as they are sent
            assert painted == pytest.approx([opacity(level) for level in levels.tolist()], abs=0.005)
        page.click("[data-head='2.1']")
        settled(page)
        square = page.locator(".chosen-head .pattern")
        square.focus()
        for key in ("End", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        n = len(tokens)
        shown = look(page, "return one('.chosen-head .spoken b').textContent")
        assert 100 * float(cache["pattern", 2][0, 1, n - 1, n - 3]) == as_shown(shown.replace("\xa0%", ""))
        # Another position, by click and by keyboard, and another token to look at.
        page.click(".chip[data-at='5']")
        settled(page)
        check_page(page, model, [], changed=False, position=5)
        page.keyboard.press("ArrowRight")
        settled(page)
        check_page(page, model, [], changed=False, position=6)
        page.click(".predictions tr:nth-child(3) button")
        settled(page)
        chances = with_hooks(model, [])[0][6].exp()
        third = chances.sort(descending=True).values[2]
        shown = look(page, "return one('[data-value=target-probability]').textContent")
        assert 100 * float(third) == as_shown(shown.replace("\xa0%", ""))
        assert ", rank 3." in look(page, "return one('.target').textContent")
        unnamed = [role for role, name in named_controls(page) if not name and role != "main"]
        assert not unnamed


def put(name: str, index: Any, value: Any) -> Hooks:
    def hook(tensor: Tensor, hook: Any) -> Tensor:
        tensor[index] = value(tensor[index]) if callable(value) else value
        return tensor

    return [(name, hook)]


def test_parts_are_switched_off_scaled_and_patched(
    chromium: "Browser", server: Server, model: HookedTransformer, means: Any
) -> None:
    everywhere = slice(None)
    zero = put("blocks.1.attn.hook_z", (0, everywhere, 1), 0.0)
    with visit_live(chromium, server) as page:
        run_prompt(page)
        change(page, "1.1", "zero")
        check_page(page, model, [], changed=False)
        check_page(page, model, zero, changed=True)
        # Scaled, by number and by slider, at some positions.
        change(page, "mlp2", "scale")
        page.fill("[aria-label=factor]", "-1.5")
        page.keyboard.press("Enter")
        page.fill("[aria-label=positions]", "3-5, 9")
        page.keyboard.press("Enter")
        settled(page)
        scaled = put("blocks.2.hook_mlp_out", (0, [3, 4, 5, 9]), lambda value: -1.5 * value)
        check_page(page, model, zero + scaled, changed=True)
        assert look(page, "return words('.changes li .quiet')") == ["head 1.1 off (zero)", "MLP 2 times −1.5 at 3–5, 9"]
        page.locator("[aria-label='factor, as a slider']").focus()
        page.keyboard.press("End")
        settled(page)
        tripled = put("blocks.2.hook_mlp_out", (0, [3, 4, 5, 9]), lambda value: 3 * value)
        check_page(page, model, zero + tripled, changed=True)
        # Patched from a second prompt.
        page.click("text=Add a second prompt")
        page.fill("#other", OTHER)
        page.click(RUN)
        settled(page)
        change(page, "3.1", "patch")
        page.click("text=the chosen token")
        settled(page)
        _, source = with_hooks(model, [], OTHER)
        patched = put("blocks.3.attn.hook_z", (0, -1, 1), source["z", 3][0, -1, 1])
        check_page(page, model, zero + tripled + patched, changed=True)
        differing = look(page, "return words('.chip-other')")
        assert differing == [" John", " Mary", " Mary"]
        # The mean over the corpus, everywhere.
        change(page, "3.1", "mean")
        page.click("text=everywhere")
        settled(page)
        part = next(part for part in means if part.label == "3.1")
        meant = put("blocks.3.attn.hook_z", (0, everywhere, 1), means[part])
        check_page(page, model, zero + tripled + meant, changed=True)
        # The other views: as it is, and the difference.
        _, plain = with_hooks(model, [])
        _, after = with_hooks(model, zero + tripled + meant)
        page.locator(".views input[value=difference]").check(force=True)
        n = plain["pattern", 4].shape[-1]
        painted = look(page, PAINTED, "4.2")
        difference = (after["pattern", 4] - plain["pattern", 4])[0, 2].flatten().tolist()
        far = [at for at in range(n * n) if abs(difference[at]) > 0.01]
        assert far and [painted[at] for at in far] == pytest.approx(
            [opacity(difference[at]) * (1 if difference[at] > 0 else -1) for at in far], abs=0.015
        )


def test_changes_are_undone_and_linked_to(chromium: "Browser", server: Server, model: HookedTransformer) -> None:
    changes = "return words('.changes li .quiet')"
    with visit_live(chromium, server, "#/live?part=0.2") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        run_prompt(page)
        change(page, "0.2", "zero")
        change(page, "mlp1", "zero")
        both = look(page, changes)
        assert both == ["head 0.2 off (zero)", "MLP 1 off (zero)"]
        page.click("text=Undo")
        assert look(page, changes) == both[:1]
        page.locator("main").focus()
        page.keyboard.press("u")
        assert look(page, changes) == []
        page.keyboard.press("r")
        page.click("text=Redo")
        settled(page)
        assert look(page, changes) == both
        hear(page, ".changes-tools")
        page.click("text=Copy link")
        heard(page, "Copied")
        link = page.evaluate("navigator.clipboard.readText()")
        page.click("text=Remove all")
        assert look(page, changes) == []
        page.click("text=Undo")
        page.click("[aria-label='Leave MLP 1 as it is']")
        assert look(page, changes) == both[:1]
        page.goto("about:blank")
        page.goto(link)
        settled(page)
        assert look(page, changes) == both and page.input_value("#prompt") == PROMPT
        zero = put("blocks.0.attn.hook_z", (0, slice(None), 2), 0.0) + put(
            "blocks.1.hook_mlp_out", (0, slice(None)), 0.0
        )
        check_page(page, model, zero, changed=True)
        page.goto(link.replace("state=", "state=x"))
        page.wait_for_selector(".notice:has-text('cannot be read')")


def test_a_cell_says_why_the_head_looks_there(chromium: "Browser", server: Server, model: HookedTransformer) -> None:
    query, key = 8, 2
    expected = attribute_attention(model, model.to_tokens(PROMPT)[0], "2.1", query, key, sources=False, progress=False)
    with visit_live(chromium, server, "#/live?part=2.1") as page:
        run_prompt(page)
        square = page.locator(".chosen-head .pattern")
        square.focus()
        page.keyboard.press("Home")
        n = len(model.to_tokens(PROMPT)[0])
        for _ in range(query):
            page.keyboard.press("ArrowDown")
        for _ in range(key):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"[data-why='{query},{key}'] table")
        assert n > query
        score = look(page, "return one('[data-value=score]').textContent")
        assert float(expected.scores[0]) == as_shown(score)
        sums = look(
            page,
            """return all('.why table').map((table) =>
            [...table.rows].map((row) => row.cells[2].textContent))""",
        )
        assert len(sums) == 3
        for side in sums:  # the parts of each side, and the pairs of them, sum to the score
            shown = sum(float(text.replace("−", "-")) for text in side)
            assert shown == pytest.approx(float(expected.scores[0]), abs=0.01 * len(side))
        page.click(".why [aria-label=Close]")
        assert page.locator(".why").count() == 0


def test_what_goes_wrong_is_said(chromium: "Browser", server: Server, model: HookedTransformer) -> None:
    with visit_live(chromium, server, forgiven=REFUSED) as page:
        run_prompt(page)
        page.click("text=Add a second prompt")
        page.fill("#other", "Short.")
        page.click(RUN)
        alert = page.locator("[role=alert]").first
        alert.wait_for()
        assert "tokens" in (alert.text_content() or "")
        page.click("text=Undo")
        page.wait_for_function("() => document.querySelectorAll('[role=alert]').length === 0")
        settled(page)
        page.click("[data-component='0.0']")
        page.locator(".editor .switch input[value=zero]").check(force=True)
        page.fill("[aria-label=positions]", "2-99")
        assert "no position" in (page.locator(".editor [role=alert]").text_content() or "")


def test_what_takes_long_is_cancelled_and_asked_for_again(
    chromium: "Browser", server: Server, model: HookedTransformer
) -> None:
    busy = "return all('[aria-busy=true]').map((node) => node.className)"
    with visit_live(chromium, server, "#/live?part=2.1") as page:
        run_prompt(page)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        cancel = page.get_by_role("button", name="Cancel")
        for prompt, again in (
            ("John gave", page.get_by_role("status").get_by_role("button", name="Run")),
            ("Mary gave", page.locator(RUN)),  # which asks for nothing else than what was cancelled
        ):
            with Gated.closed():
                page.fill("#prompt", prompt)
                page.keyboard.press("Control+Enter")
                assert look(page, busy) == ["live-columns stale"]
                cancel.click()  # the only one: nothing else is asked before the run is there
                page.get_by_text("Cancelled.").wait_for()
                assert look(page, busy) == [] and page.locator(".live-columns.stale").count() == 1
                assert cancel.count() == 0 and page.get_by_text("Cancelled.").count() == 1
                asked.clear()
                again.click()
                assert page.get_by_text("Cancelled.").count() == 0 and look(page, busy) == ["live-columns stale"]
            settled(page)
            assert asked[0] == "run" and sorted(asked[1:]) == ["pattern", "patterns"]
            assert look(page, "return words('.chip-token')") == model.to_str_tokens(prompt)
        # Another question is asked although the last was cancelled; and back again, the answer is still there.
        with Gated.closed():
            page.fill("#prompt", "John")
            page.keyboard.press("Control+Enter")
            cancel.click()
            page.get_by_text("Cancelled.").wait_for()
        asked.clear()
        page.click("text=Undo")
        assert page.get_by_text("Cancelled.").count() == 0
        settled(page)
        assert asked == [] and page.input_value("#prompt") == "Mary gave"
        page.click("text=Redo")
        settled(page)
        assert look(page, "return words('.chip-token')") == model.to_str_tokens("John")


def test_what_is_typed_as_soon_as_the_page_is_there_is_run(
    chromium: "Browser", server: Server, model: HookedTransformer
) -> None:
    with visit_live(chromium, server, "#/grid") as page:
        page.wait_for_selector(".cell")
        at_once(
            page,
            "#prompt",
            """node.value = "John gave";
            node.dispatchEvent(new Event("input", { bubbles: true }));
            setTimeout(() => {
                const enter = { key: "Enter", ctrlKey: true, bubbles: true, cancelable: true };
                node.dispatchEvent(new KeyboardEvent("keydown", enter));
                setTimeout(() => {
                    node.value += " a";
                    node.dispatchEvent(new Event("input", { bubbles: true }));
                });
            });""",
        )
        go(page, "#/live")
        page.get_by_text("not run yet").wait_for()
        settled(page)
        assert look(page, "return words('.chip-token')") == model.to_str_tokens("John gave")
        assert page.input_value("#prompt") == "John gave a"


def test_hostile_prompts_are_text(chromium: "Browser", server: Server) -> None:
    # Without half surrogates, which no text field holds.
    texts = [text.encode("utf-8", "ignore").decode() for text in HOSTILE if len(text) < 1000]
    with visit_live(chromium, server, forgiven=REFUSED) as page:
        run_prompt(page, " ".join(texts)[:250])
        page.locator(".chip").last.hover()
        page.click("[data-component='0.0']")
        settled(page)
        assert page.title() != "hacked" and page.locator("main script").count() == 0
        for text in texts:
            page.evaluate(
                "text => { location.hash = '#/live?part=' + encodeURIComponent(text) + '&state=' + text; }", text
            )
        page.wait_for_selector(".live-page")
        assert page.title() != "hacked"


def test_a_file_says_how_to_start_the_server(chromium: "Browser", tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    path = write_tree(folder, n_layers=1, n_heads=1)
    with visit(chromium, path, place="#/live", own=folder) as page:
        page.wait_for_selector(".notice code")
        shown = page.locator(".notice pre").text_content()
        assert shown == "headscope explore '" + str(folder).replace("'", "'\\''") + "' --serve"


def test_how_a_prompt_is_read_and_a_busy_server(chromium: "Browser", server: Server, model: HookedTransformer) -> None:
    tokens = "return words('.chip-token')"
    with visit_live(chromium, server, forgiven=r"Failed to load resource.* (499|503)") as page:
        run_prompt(page)
        page.select_option(".prompt select", "no")
        settled(page)
        assert look(page, tokens) == model.to_str_tokens(PROMPT)[1:]
        page.select_option(".prompt select", "usual")
        settled(page)
        assert look(page, tokens) == model.to_str_tokens(PROMPT)
        # Without the second prompt there is nothing to patch from.
        page.click("text=Add a second prompt")
        page.fill("#other", OTHER)
        page.click(RUN)
        settled(page)
        change(page, "3.1", "patch")
        change(page, "0.2", "zero")
        page.click("text=Remove the second prompt")
        page.click(RUN)
        settled(page)
        assert look(page, "return words('.changes li .quiet')") == ["head 0.2 off (zero)"]
        assert page.locator(".editor .switch input[value=patch]").is_disabled()
        # A server with too much to do says when to come back.
        busy = {"error": {"code": "busy", "message": "Too many wait."}}
        page.route(
            "**/api/run", lambda route: route.fulfill(status=503, headers={"Retry-After": "2"}, json=busy), times=1
        )
        page.click("text=Remove all")
        alert = page.locator("[role=alert]").first
        alert.wait_for()
        assert "Too many wait." in alert.inner_text() and "Try again in 2 s." in alert.inner_text()
        page.get_by_role("button", name="Try again").click()
        settled(page)
        assert page.locator("[role=alert]").count() == 0
        check_page(page, model, [], changed=False)


def test_patterns_of_many_heads_are_shown_a_layer_at_a_time(chromium: "Browser", server: Server) -> None:
    with visit_live(chromium, server) as page:

        def enlarged(route: Any) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, json={**answer.json(), "n_layers": 200})

        page.route("**/api/model", enlarged)
        page.goto(server.address.link + "#/live")
        run_prompt(page)
        heads = "return all('[data-part=patterns] [data-head]').map((node) => node.dataset.head.split('.')[0])"
        assert set(look(page, heads)) == {"0"}
        meanwhile: list[set[str]] = []

        def watched(route: Any) -> None:
            meanwhile.append(set(look(page, heads)))
            route.continue_()

        page.route("**/api/patterns", watched, times=1)
        page.select_option("[data-part=patterns] select", "2")
        settled(page)
        assert meanwhile == [{"0"}]  # what is still shown keeps its name
        assert set(look(page, heads)) == {"2"}


def test_on_a_phone_a_tap_leads_to_the_chosen_part(chromium: "Browser", server: Server) -> None:
    with visit_live(chromium, server, width=390, touch=True) as page:
        run_prompt(page)
        page.locator("[data-component='1.1']").tap()
        page.wait_for_selector(".editor")
        bar = page.get_by_role("button", name="Head 1.1: see and change it")
        box = bar.bounding_box()
        assert box is not None and 0 < box["y"] < 900 - box["height"]  # in sight, wherever the tap was
        bar.tap()
        side = "document.querySelector('.live-side').getBoundingClientRect()"
        page.wait_for_function(f"() => 0 <= {side}.top && {side}.top < 450")
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.emulate_media(media="print")
        assert not bar.is_visible() and not page.locator(".editor").is_visible()
        assert page.locator(".predictions").first.is_visible()
