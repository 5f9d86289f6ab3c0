// Draws every .hs-view on the page from the JSON inside it. Text only ever enters by textContent.
(() => {
  "use strict";
  if (window.headscopeViews) return;
  const NOT_A_NUMBER = 255, LEVELS = 254;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const el = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const hex = (code, width) => code.toString(16).padStart(width, "0");

  // Spaces stay spaces; what cannot be seen, or would disturb the line, is spelt out.
  const invisible = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/u;
  const spelt = (char) => {
    const code = char.codePointAt(0);
    if (char === "\n") return "↵";
    if (char === "\t") return "⇥";
    return code < 0x100 ? "\\x" + hex(code, 2) : "\\u" + hex(code, 4);
  };
  const plain = (text) => (text === "" ? "∅" : Array.from(text, (c) => (invisible.test(c) ? spelt(c) : c)).join(""));
  const fill = (node, text) => {
    let run = "";
    const flush = () => { if (run) node.append(run); run = ""; };
    for (const char of text === "" ? ["∅"] : text) {
      if (text !== "" && !invisible.test(char)) { run += char; continue; }
      flush();
      node.append(el("span", { className: "hs-escape", textContent: text === "" ? char : spelt(char) }));
      if (char === "\n") node.append("\n");
    }
    flush();
    return node;
  };
  const quote = (text) => el("q", { textContent: plain(text) });

  const number = (value, unit = "", signed = false) => {
    if (value === null || Number.isNaN(value)) return "no value";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(2)
      : value.toFixed(size >= 100 ? 1 : 3);
    return (signed && value > 0 ? "+" : "") + text.replace("-", "−") + (unit ? " " + unit : "");
  };

  // Strength of a value's colour, from -1 to 1.
  const strength = (value, low, high) => {
    if (value === null || Number.isNaN(value)) return 0;
    if (low < 0 && high > 0) return Math.max(-1, Math.min(1, value >= 0 ? value / high : -value / low));
    return Math.max(0, Math.min(1, (value - low) / (high - low)));
  };
  const shade = (node, share, missing = false) => {
    const alpha = Math.abs(share) < 0.004 ? 0 : 0.06 + 0.84 * Math.abs(share);
    node.style.setProperty("--a", alpha.toFixed(3));
    node.classList.toggle("neg", share < 0);
    node.classList.toggle("strong", alpha > 0.62);
    node.classList.toggle("none", missing);
  };
  const colors = (root) => {
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
    return { pos: read("--hs-pos"), neg: read("--hs-neg") };
  };
  const legend = (low, high, label, unit = "") => {
    const bar = el("i");
    const stops = [];
    for (let i = 0; i <= 20; i++) {
      const share = strength(low + (high - low) * i / 20, low, high);
      const alpha = Math.abs(share) < 0.004 ? 0 : 0.06 + 0.84 * Math.abs(share);
      stops.push(`rgb(var(--hs-${share < 0 ? "neg" : "pos"}) / ${alpha.toFixed(3)})`);
    }
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    bar.setAttribute("aria-hidden", "true");
    return el("div", { className: "hs-legend" }, label, el("span", { textContent: number(low) }), bar,
      el("span", { textContent: number(high, unit) }));
  };

  // A running text of tokens. `on.point(i)` when one is pointed at (null: none), `on.pick(i)` when clicked.
  const tokenText = (tokens, on, label) => {
    const box = el("div", { className: "hs-text" + (on.pick ? " hs-pick" : ""), tabIndex: 0 });
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", label + ". Arrow keys move from token to token.");
    const spans = tokens.map((token, i) => {
      const span = fill(el("span", { className: "hs-token" }), token);
      span.dataset.i = i;
      span.classList.toggle("breaks", token.includes("\n"));
      return span;
    });
    box.append(...spans);
    const index = (event) => {
      const span = event.target.closest ? event.target.closest(".hs-token") : null;
      return span ? Number(span.dataset.i) : null;
    };
    let cursor = null;
    box.addEventListener("pointerover", (event) => on.point(index(event)));
    box.addEventListener("pointerleave", () => on.point(null));
    box.addEventListener("click", (event) => {
      cursor = index(event) ?? cursor;
      (on.pick || on.point)(index(event));
    });
    box.addEventListener("blur", () => on.point(null));
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) cursor = cursor === null ? (step > 0 ? 0 : tokens.length - 1)
        : Math.max(0, Math.min(tokens.length - 1, cursor + step));
      else if (event.key === "Home") cursor = 0;
      else if (event.key === "End") cursor = tokens.length - 1;
      else if ((event.key === "Enter" || event.key === " ") && cursor !== null) { (on.pick || on.point)(cursor); event.preventDefault(); return; }
      else if (event.key === "Escape") { cursor = null; (on.clear || (() => on.point(null)))(); return; }
      else return;
      event.preventDefault();
      spans[cursor].scrollIntoView({ block: "nearest" });
      on.point(cursor);
    });
    return { box, spans };
  };

  // A few buttons of which one is chosen; arrow keys move between them.
  const choices = (buttons, choose) => {
    const select = (chosen) => buttons.forEach((button, i) => {
      button.setAttribute("aria-checked", String(i === chosen));
      button.tabIndex = i === chosen ? 0 : -1;
    });
    buttons.forEach((button, i) => {
      button.type = "button";
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => { select(i); choose(i); });
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = (i + step + buttons.length) % buttons.length;
        select(next);
        buttons[next].focus();
        choose(next);
      });
    });
    select(0);
  };

  const drawTokens = (root, data) => {
    const tip = el("div", { className: "hs-tip", hidden: true });
    tip.setAttribute("role", "status");
    const point = (i) => {
      text.spans.forEach((span, j) => span.classList.toggle("at", i === j));
      tip.hidden = i === null;
      if (i === null) return;
      const lines = [
        el("div", {}, quote(data.tokens[i]), ` at position ${data.first + i}`),
        el("div", {}, data.name + " ", el("b", { textContent: number(data.values[i], data.unit, data.signed) })),
      ];
      if (data.notes && data.notes[i]) lines.push(el("div", { textContent: plain(data.notes[i]) }));
      tip.replaceChildren(...lines);
      const span = text.spans[i].getClientRects()[0] || text.spans[i].getBoundingClientRect();
      const base = root.getBoundingClientRect();
      tip.style.left = Math.max(0, Math.min(span.left - base.left, base.width - tip.offsetWidth)) + "px";
      tip.style.top = span.bottom - base.top + 6 + "px";
    };
    const text = tokenText(data.tokens, { point }, data.title || "Tokens coloured by " + data.name);
    text.spans.forEach((span, i) => shade(span, strength(data.values[i], data.low, data.high), data.values[i] === null));
    data.marked.forEach((i) => text.spans[i].classList.add("marked"));
    root.append(text.box);
    if (data.legend) root.append(legend(data.signed ? data.low : Math.max(0, data.low), data.high, data.name, data.unit));
    root.append(tip);
  };

  const drawAttention = (root, data) => {
    const n = data.tokens.length;
    const packed = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0));
    const perHead = data.causal ? n * (n + 1) / 2 : n * n;
    const level = (head, q, k) => {
      if (!data.causal) return packed[head * perHead + q * n + k];
      return k > q ? 0 : packed[head * perHead + q * (q + 1) / 2 + k];
    };
    const value = (head, q, k) => {
      if (data.causal && k > q) return 0;
      const got = level(head, q, k);
      return got === NOT_A_NUMBER ? NaN : data.low + (data.high - data.low) * got / LEVELS;
    };
    const state = { head: 0, rows: true, at: null, locked: data.focus };

    // A picture smaller than the pattern shows the strongest of the pairs that fall on each of its pixels.
    const paint = (canvas, head, size = n) => {
      const { pos, neg } = colors(root);
      size = canvas.width = canvas.height = Math.min(n, size);
      const strongest = new Float32Array(size * size);
      for (let q = 0; q < n; q++) {
        const line = Math.floor(q * size / n) * size;
        for (let k = 0; k < (data.causal ? q + 1 : n); k++) {
          const share = strength(value(head, q, k), data.low, data.high);
          const pixel = line + Math.floor(k * size / n);
          if (Math.abs(share) > Math.abs(strongest[pixel])) strongest[pixel] = share;
        }
      }
      const image = new ImageData(size, size);
      strongest.forEach((share, pixel) => {
        image.data.set(share < 0 ? neg : pos, 4 * pixel);
        image.data[4 * pixel + 3] = 255 * Math.abs(share) ** 0.7;
      });
      canvas.getContext("2d").putImageData(image, 0, 0);
    };

    const several = data.heads.length > 1;
    const thumbs = data.heads.map(() => el("canvas"));
    const buttons = data.heads.map((name, i) => el("button", { ariaLabel: "head " + name }, thumbs[i], el("span", { textContent: name })));
    const bar = el("div", { className: "hs-heads" }, ...buttons);
    bar.setAttribute("role", "radiogroup");
    bar.setAttribute("aria-label", "Head to show");
    choices(buttons, (head) => { state.head = head; paint(big, head, 320); show(); });

    const modes = [el("button", { textContent: "attends to" }), el("button", { textContent: "is attended from" })];
    const modeBar = el("div", { className: "hs-switch" }, ...modes);
    modeBar.setAttribute("role", "radiogroup");
    modeBar.setAttribute("aria-label", "Which direction to show");
    choices(modes, (i) => { state.rows = i === 0; show(); });

    const big = el("canvas");
    const row = el("i"), column = el("i");
    const matrix = el("div", { className: "hs-matrix" }, big, row, column);
    const status = el("p", { className: "hs-status" });
    status.setAttribute("aria-live", "polite");
    const lock = (i) => { state.locked = i === state.locked ? null : i; state.at = i; show(); };
    const text = tokenText(data.tokens, {
      point: (i) => { state.at = i; show(); },
      pick: (i) => { if (i !== null) lock(i); },
      clear: () => { state.at = state.locked = null; show(); },
    }, data.title || "Tokens shaded by attention");

    const cell = (event) => {
      const box = matrix.getBoundingClientRect();
      const clamp = (x) => Math.max(0, Math.min(n - 1, Math.floor(x * n)));
      return [clamp((event.clientY - box.top) / box.height), clamp((event.clientX - box.left) / box.width)];
    };
    matrix.addEventListener("pointermove", (event) => {
      const [q, k] = cell(event);
      state.at = state.rows ? q : k;
      show([q, k]);
    });
    matrix.addEventListener("pointerleave", () => { state.at = null; show(); });
    matrix.addEventListener("click", (event) => { const [q, k] = cell(event); lock(state.rows ? q : k); });

    const show = (pair = null) => {
      const i = state.locked ?? state.at;
      const values = Array.from({ length: n }, (_, j) => {
        if (i === null) {
          let sum = 0, count = 0;
          for (let q = data.causal ? j : 0; q < n; q++) {
            const v = value(state.head, q, j);
            if (!Number.isNaN(v)) { sum += v; count++; }
          }
          return count ? sum / count : NaN;
        }
        return state.rows ? value(state.head, i, j) : value(state.head, j, i);
      });
      text.spans.forEach((span, j) => {
        shade(span, strength(values[j], data.low, data.high), Number.isNaN(values[j]));
        span.classList.toggle("at", j === state.at && j !== state.locked);
        span.classList.toggle("locked", j === state.locked);
      });
      for (const line of [row, column]) line.hidden = i === null;
      row.style.display = i === null ? "none" : "";
      column.style.display = pair && state.locked === null ? "" : "none";
      const place = (node, horizontal, at) => Object.assign(node.style, horizontal
        ? { left: 0, right: 0, top: 100 * at / n + "%", height: `max(3px, ${100 / n}%)`, bottom: "", width: "" }
        : { top: 0, bottom: 0, left: 100 * at / n + "%", width: `max(3px, ${100 / n}%)`, right: "", height: "" });
      if (i !== null) place(row, state.rows, i);
      if (pair) place(column, !state.rows, pair[state.rows ? 1 : 0]);
      const name = several ? `head ${data.heads[state.head]}: ` : "";
      if (pair && state.locked === null) {
        const got = value(state.head, ...pair);
        status.replaceChildren(name, quote(data.tokens[pair[0]]), ` (${pair[0]}) attends to `, quote(data.tokens[pair[1]]),
          ` (${pair[1]}) `, el("b", { textContent: number(got) }));
      } else if (i !== null) {
        const best = values.map((v, j) => [v, j]).filter(([v]) => Math.abs(v) > 0).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 5);
        const parts = best.flatMap(([v, j], place) => [place ? ", " : "", quote(data.tokens[j]), ` (${j}) `, el("b", { textContent: number(v) })]);
        status.replaceChildren(name, quote(data.tokens[i]), ` (${i}) ${state.rows ? "attends to" : "is attended from"} `,
          ...(parts.length ? parts : ["nothing"]), state.locked !== null ? ". Kept; click it again or press Escape to let go." : "");
      } else {
        status.replaceChildren(name + "each token is shaded by the mean attention it gets. Point at a token, or at the square; click to keep it.");
      }
    };

    if (several) root.append(bar);
    root.append(el("div", { className: "hs-attention" },
      el("div", {}, matrix, el("div", { className: "hs-axis", textContent: "down: the token that attends; across: the token attended to" }),
        legend(data.low, data.high, "attention")),
      el("div", {}, modeBar, text.box, status)));
    const repaint = () => { thumbs.forEach((canvas, head) => paint(canvas, head, 64)); paint(big, state.head, 320); };
    dark.addEventListener("change", repaint);
    repaint();
    show();
    if (data.focus !== null) text.box.scrollTop = text.spans[data.focus].offsetTop - text.box.offsetTop - 60;
  };

  const kinds = { tokens: drawTokens, attention: drawAttention };
  const draw = () => {
    for (const root of document.querySelectorAll(".hs-view:not([data-drawn])")) {
      root.dataset.drawn = "yes";
      const data = JSON.parse(root.querySelector("script").textContent);
      if (data.title) root.append(el("h3", { textContent: plain(data.title) }));
      kinds[root.dataset.kind](root, data);
    }
  };
  // In a notebook the page stands in a frame, which takes the height of what is in it.
  const fit = () => {
    try {
      if (window.frameElement) window.frameElement.style.height = document.documentElement.scrollHeight + 4 + "px";
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
    }
  };
  const start = () => {
    draw();
    if (window.frameElement !== null && document.body.classList.contains("hs-page")) new ResizeObserver(fit).observe(document.body);
  };
  window.headscopeViews = { draw };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
