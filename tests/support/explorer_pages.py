"""What tests of the explorer's pages read off them."""

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

MISSING = "–"
_NUMBER = re.compile(r"[+−]?(?:\d[\d,]*\.?\d*)(?:e[+−]?\d+)?")

# How a visitor's eye reads colors: the opacity of a share, and what of it a token or a cell shows.
READ = """
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const words = (selector, root = document) => all(selector, root).map((node) => node.textContent);
const alpha = (node) => (node.classList.contains("neg") ? -1 : 1) * Number(node.style.getPropertyValue("--a") || 0);
const from = (node) => Number(node.style.getPropertyValue("--from") || 0);
const rows = (selector) => all(selector).map((row) => [...row.cells].map((cell) => cell.textContent));
"""


def look(page: "Page", steps: str, argument: Any = None) -> Any:
    """Run these steps on the page as it is, and give what they return."""
    return page.evaluate(f"(argument) => {{ {READ}\n{steps} }}", argument)


def numbers(text: str) -> list[float]:
    """The numbers in a text as the pages write them."""
    return [float(found.replace("−", "-").replace(",", "")) for found in _NUMBER.findall(text)]


def as_shown(text: str) -> Any:
    """What a number that is shown may stand for: within half of its last digit."""
    (value,) = numbers(text)
    if text.startswith("<"):
        return pytest.approx(value / 2, abs=value / 2)
    plain = text.replace(",", "")
    mantissa, _, power = plain.partition("e")
    digits = len(mantissa.partition(".")[2].rstrip("%\xa0 ")) if "." in mantissa else 0
    return pytest.approx(value, abs=0.5001 * 10.0 ** (int(power.replace("−", "-") or 0) - digits))


def opacity(share: float) -> float:
    """The opacity of a share's color."""
    return 0.06 + 0.84 * min(1.0, abs(share)) if abs(share) >= 0.004 else 0.0


def hear(page: "Page", selector: str) -> None:
    """Note from now on what an element says, for `heard`: it may be gone before anybody looks."""
    steps = """const node = one(argument), options = { subtree: true, childList: true, characterData: true };
        window.said = [];
        new MutationObserver(() => window.said.push(node.textContent)).observe(node, options);"""
    look(page, steps, selector)


def heard(page: "Page", text: str) -> None:
    """Wait until the element has said this."""
    page.wait_for_function("text => window.said.some((said) => said.includes(text))", arg=text)


def at_once(page: "Page", selector: str, steps: str) -> None:
    """Take these steps as soon as there is such an element, in the same frame: nobody is quicker."""
    look(
        page,
        f"""new MutationObserver((_, observer) => {{
            const node = one(argument);
            if (!node) return;
            observer.disconnect();
            {steps}
        }}).observe(document, {{ subtree: true, childList: true }});""",
        selector,
    )


def go(page: "Page", place: str) -> None:
    """Go to another place of the page, as a link does."""
    page.evaluate("place => { location.hash = place; }", place)
