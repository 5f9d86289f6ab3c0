"""The style sheet: text can be read on every color in light and dark, and nothing moves."""

import re
from pathlib import Path

import numpy as np
import pytest

import headscope.views

STATIC = Path(headscope.views.__file__).parent / "static"
STYLE = (STATIC / "views.css").read_text(encoding="utf-8")
SCRIPT = (STATIC / "views.js").read_text(encoding="utf-8")


def luminance(color: np.ndarray) -> float:
    linear = np.where(color <= 0.03928, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Ratio of two colors' luminances, as the Web Content Accessibility Guidelines define it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def color(text: str) -> np.ndarray:
    if text.startswith("#"):
        return np.array([int(text[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.array([int(part) for part in text.split()]) / 255


def theme(name: str) -> dict[str, str]:
    """A theme's colors by what they are for."""
    light, dark = STYLE.split(".hs-dark { color-scheme: dark; }")
    style = light if name == "light" else dark
    found = dict(re.findall(r"--hs-(\w+): ([^;]+);", style))
    background, mid = (
        re.search(r"\.hs-page \{[^}]*background: (#\w+)", style),
        re.search(r"\.mid q\)? \{ color: (#\w+)", style),
    )
    strong = re.search(r"\.hs-token\.strong \{ color: (#\w+)", light)
    assert background and mid and strong
    return found | {"background": background[1], "mid": mid[1], "strong": strong[1]}


@pytest.mark.parametrize("name", ["light", "dark"])
@pytest.mark.parametrize("sign", ["pos", "neg"])
def test_tokens_can_be_read_on_every_color(name: str, sign: str) -> None:
    colors = theme(name)
    mid = re.search(r'"mid", alpha > ([\d.]+)', SCRIPT)
    strong = re.search(r'"strong", alpha > \(share < 0 \? ([\d.]+) : ([\d.]+)\)', SCRIPT)
    assert mid and strong
    for alpha in np.linspace(0, 0.9, 91):
        ground = alpha * color(colors[sign]) + (1 - alpha) * color(colors["background"])
        text = colors["strong"] if alpha > float(strong[1 if sign == "neg" else 2]) else colors["text"]
        if text == colors["text"] and alpha > float(mid[1]):
            text = colors["mid"]
        assert contrast(ground, color(text)) >= 4.5, f"{sign} at {alpha:.2f}"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_small_print_can_be_read(name: str) -> None:
    colors = theme(name)
    for ground in ("background", "panel"):
        assert contrast(color(colors[ground]), color(colors["soft"])) >= 4.5
        assert contrast(color(colors[ground]), color(colors["lock"])) >= 3


def test_nothing_moves() -> None:
    assert not re.search(r"transition|animation|@keyframes|smooth", STYLE + SCRIPT)
