// Draws every .hs-view on the page from the JSON inside it. Text only ever enters by textContent.
(() => {
  "use strict";
  if (window.headscopeViews) return;
  const NOT_A_NUMBER = 255, LEVELS = 254;
  // Light or dark: as the page says (data-theme on its root element), else as the notebook around its frame is, else
  // as the system is. Paper is white.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const page = document.documentElement, repaints = [];
  let around = null;
  try {
    around = window.frameElement && window.frameElement.ownerDocument;
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
  }
  const said = (root) => root.dataset.theme || root.getAttribute("theme") || "";
  const host = () => {
    if (!around || !around.body) return "";
    const { jpThemeLight, vscodeThemeKind } = around.body.dataset;
    return said(around.documentElement) || (jpThemeLight ? (jpThemeLight === "false" ? "dark" : "light") : vscodeThemeKind || "");
  };
  const theme = (paper = false) => {
    const word = said(page) || host() || (system.matches ? "dark" : "light");
    page.classList.toggle("hs-dark", !paper && /dark|high-contrast$/.test(word));
    repaints.forEach((repaint) => repaint());
  };
  const watched = new MutationObserver(() => theme());
  watched.observe(page, { attributeFilter: ["data-theme", "theme"] });
  for (const node of around ? [around.documentElement, around.body] : []) {
    if (node) watched.observe(node, { attributeFilter: ["data-theme", "theme", "data-jp-theme-light", "data-vscode-theme-kind"] });
  }
  system.addEventListener("change", () => theme());
  window.addEventListener("beforeprint", () => theme(true));
  window.addEventListener("afterprint", () => theme());
  theme();

  const el = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const hex = (code, width) => code.toString(16).padStart(width, "0");

  // Spaces stay spaces; what cannot be seen, or would disturb the line, is spelt out.
  const invisible = /[\p{C}\p{Zl}\p{Zp}\u00a0\u034f\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200a\u202f\u205f\u2800\u3164\uffa0]/u;
  const spelt = (char) => {
    const code = char.codePointAt(0);
    if (char === "\n") return "↵";
    if (char === "\t") return "⇥";
    return code < 0x100 ? "\\x" + hex(code, 2) : code < 0x10000 ? "\\u" + hex(code, 4) : `\\u{${hex(code, 1)}}`;
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
  const LONGEST = 120;
  const quote = (text) => {
    const shown = text.length <= LONGEST ? plain(text)
      : `${plain(Array.from(text.slice(0, LONGEST)).slice(0, -1).join(""))}… (${text.length.toLocaleString("en")} characters)`;
    return el("q", { textContent: shown });
  };

  const number = (value, unit = "", signed = false) => {
    if (value === null || Number.isNaN(value)) return "no value";
    const size = Math.abs(value);
    const text = size === Infinity ? (value < 0 ? "-∞" : "∞")
      : size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(2)
      : value.toFixed(size >= 100 ? 1 : 3);
    return (signed && value > 0 ? "+" : "") + text.replaceAll("-", "−") + (unit ? " " + unit : "");
  };

  const percent = (share) => (share >= 0.0001 ? (100 * share).toFixed(share < 0.01 ? 2 : 1) : share > 0 ? "<0.01" : "0") + "\u00a0%";

  // Numbers that came as base64: of bytes, of 32-bit integers, and of halves (float16) times a scale.
  const bytes = (text) => {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  };
  const half = (bits) => {
    const exponent = bits >> 10 & 31, fraction = bits & 1023;
    const size = exponent === 31 ? (fraction ? NaN : Infinity)
      : exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return bits & 0x8000 ? -size : size;
  };
  const halves = (data) => {
    const packed = new Uint16Array(bytes(data.values).buffer);
    return (i) => half(packed[i]) * data.scale;
  };

  // Strength of a value's color, from -1 to 1.
  const strength = (value, low, high) => {
    if (value === null || Number.isNaN(value)) return 0;
    if (value === 0 && low <= 0) return 0;
    if (low < 0 && high >= 0) return Math.max(-1, Math.min(1, value > 0 ? value / high : -value / low));
    return Math.max(0, Math.min(1, (value - low) / (high - low)));
  };
  const opacity = (share) => (Math.abs(share) < 0.004 ? 0 : 0.06 + 0.84 * Math.abs(share));
  const shade = (node, share, missing = false) => {
    const alpha = opacity(share);
    node.style.setProperty("--a", alpha.toFixed(3));
    node.classList.toggle("neg", share < 0);
    // Black reads on the middle of the scale, white on its end; where they meet, both have a contrast of 4.5.
    node.classList.toggle("mid", alpha > 0.62);
    node.classList.toggle("strong", alpha > (share < 0 ? 0.765 : 0.875));
    node.classList.toggle("none", missing);
  };
  const colors = (root) => {
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
    return { pos: read("--hs-pos"), neg: read("--hs-neg") };
  };
  const legend = (low, high, label, unit = "", note = "") => {
    const bar = el("i");
    const stops = [];
    for (let i = 0; i <= 20; i++) {
      const share = strength(low + (high - low) * i / 20, low, high);
      stops.push(`rgb(var(--hs-${share < 0 ? "neg" : "pos"}) / ${opacity(share).toFixed(3)})`);
    }
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    bar.setAttribute("aria-hidden", "true");
    return el("div", { className: "hs-legend" }, el("span", { textContent: plain(label) }),
      el("span", { className: "hs-scale" }, number(low), bar, number(high, unit)), ...(note ? [el("span", { textContent: note })] : []));
  };
  // A scale centered on zero; without its red half where nothing is below zero.
  const centered = (limit, signed, label, unit, note) => legend(signed ? -limit : 0, limit, label, unit, note);
  const PRECISION = "values are kept to 1 part in 2,048";

  // What is said beside the thing pointed at.
  const tooltip = (root) => {
    const tip = el("div", { className: "hs-tip", hidden: true });
    tip.setAttribute("role", "status");
    return {
      tip,
      hide: () => { tip.hidden = true; },
      at: (node, ...lines) => {
        tip.hidden = false;
        tip.replaceChildren(...lines);
        const box = node.getClientRects()[0] || node.getBoundingClientRect();
        const base = root.getBoundingClientRect();
        tip.style.left = Math.max(0, Math.min(box.left - base.left, base.width - tip.offsetWidth)) + "px";
        // Below it, or above where only there it is seen; a notebook's frame grows where neither has room.
        const height = tip.offsetHeight + 6;
        const above = box.bottom + height > document.documentElement.clientHeight && box.top >= height;
        tip.style.top = (above ? box.top - height : box.bottom + 6) - base.top + "px";
        if (!above) fit();
      },
    };
  };
  const row = (...parts) => el("div", {}, ...parts);
  const strong = (text) => el("b", { textContent: text });

  // Arrow keys that move through things in lines; `size()` is how many there are and how many to a line. Returns how
  // to set where they stand.
  const walk = (box, size, on) => {
    let cursor = null;
    box.addEventListener("keydown", (event) => {
      const [count, stride] = size(), last = count - 1;
      const step = { ArrowRight: 1, ArrowDown: stride, ArrowLeft: -1, ArrowUp: -stride }[event.key];
      if (step) {
        if (cursor === null) cursor = step > 0 ? 0 : last;
        else if (cursor + step >= 0 && cursor + step <= last) cursor += step;
      } else if (event.key === "Home") cursor = 0;
      else if (event.key === "End") cursor = last;
      else if ((event.key === "Enter" || event.key === " ") && cursor !== null) { on.pick(cursor); event.preventDefault(); return; }
      else if (event.key === "Escape") { cursor = null; on.clear(); return; }
      else return;
      event.preventDefault();
      if (cursor >= 0) on.move(cursor);
    });
    return (i) => { cursor = i; };
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
    const stand = walk(box, () => [tokens.length, 1], {
      move: (i) => { spans[i].scrollIntoView({ block: "nearest" }); on.point(i); },
      pick: (i) => (on.pick || on.point)(i),
      clear: () => (on.clear || (() => on.point(null)))(),
    });
    box.addEventListener("pointerover", (event) => on.point(index(event)));
    box.addEventListener("pointerleave", () => on.point(null));
    box.addEventListener("click", (event) => {
      if (index(event) !== null) stand(index(event));
      (on.pick || on.point)(index(event));
    });
    box.addEventListener("blur", () => on.point(null));
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

  // Buttons in a row, of which one is chosen.
  const buttonRow = (name, labels, choose) => {
    const buttons = labels.map((label) => el("button", { textContent: plain(label) }));
    const bar = el("div", { className: "hs-switch" }, ...buttons);
    bar.setAttribute("role", "radiogroup");
    bar.setAttribute("aria-label", name);
    choices(buttons, choose);
    return bar;
  };
  const named = (name, labels, choose) => {
    const title = el("span", { textContent: name });
    title.setAttribute("aria-hidden", "true");
    return el("div", { className: "hs-menu" }, title, buttonRow(name, labels, choose));
  };
  // A menu with a button for the one before and the one after; of one label, that label alone.
  const menu = (name, labels, choose) => {
    const title = el("span", { textContent: plain(name) });
    if (labels.length === 1) return el("div", { className: "hs-menu" }, title, strong(plain(labels[0])));
    const select = el("select", { ariaLabel: plain(name) }, ...labels.map((label, i) => el("option", { value: i, textContent: plain(label) })));
    const steps = [[-1, "‹", "previous "], [1, "›", "next "]].map(([by, sign, word]) => {
      const button = el("button", { type: "button", textContent: sign, ariaLabel: word + plain(name), title: word + plain(name) });
      button.addEventListener("click", () => {
        select.selectedIndex = (select.selectedIndex + by + labels.length) % labels.length;
        choose(select.selectedIndex);
      });
      return button;
    });
    select.addEventListener("change", () => choose(select.selectedIndex));
    return el("div", { className: "hs-menu" }, title, steps[0], select, steps[1]);
  };
  const controls = (...parts) => el("div", { className: "hs-controls" }, ...parts);
  const beginning = (tokens, i) => {
    const text = Array.from(tokens.slice(0, 40).join("")).slice(0, 48);
    return `${i}: ${text.join("").trim()}${tokens.length > 40 || text.length === 48 ? "…" : ""}`;
  };

  // A text whose tokens have a tooltip with what `about(i)` says; `shade` colors them.
  const colored = (tokens, label, tips, about) => {
    const text = tokenText(tokens, {
      point: (i) => {
        text.spans.forEach((span, j) => span.classList.toggle("at", i === j));
        if (i === null) tips.hide();
        else tips.at(text.spans[i], ...about(i));
      },
    }, label);
    text.shade = (valueOf, low, high) => text.spans.forEach((span, i) => {
      const value = valueOf(i);
      shade(span, strength(value, low, high), value === null || Number.isNaN(value));
    });
    return text;
  };

  const drawTokens = (root, data) => {
    const tips = tooltip(root);
    const text = colored(data.tokens, data.title || "Tokens colored by " + data.name, tips, (i) => [
      row(quote(data.tokens[i]), ` at position ${data.first + i}`),
      row(data.name + " ", strong(number(data.values[i], data.unit, data.signed))),
      ...(data.notes && data.notes[i] ? [row(plain(data.notes[i]))] : []),
    ]);
    text.shade((i) => data.values[i], data.low, data.high);
    data.marked.forEach((i) => text.spans[i].classList.add("marked"));
    root.append(text.box);
    if (data.legend) root.append(legend(data.signed ? data.low : Math.max(0, data.low), data.high, data.name, data.unit));
    root.append(tips.tip);
  };

  const beyond = (value, limit) => (Math.abs(value) > limit * (1 + 2 ** -10) ? " (beyond the color scale)" : "");

  const drawTokensMulti = (root, data) => {
    const tips = tooltip(root), value = halves(data), k = data.labels.length;
    let kind = 0;
    const text = colored(data.tokens, data.title || "Tokens colored by " + data.name, tips, (i) => [
      row(quote(data.tokens[i]), ` at position ${data.first + i}`),
      ...data.labels.map((label, j) => {
        const got = value(i * k + j);
        return el("div", { className: j === kind ? "hs-chosen" : "" }, plain(label) + " ",
          strong(number(got, data.unit, data.signed[j])), j === kind ? beyond(got, data.limits[j]) : "");
      }),
    ]);
    const key = el("div");
    const choose = (j) => {
      kind = j;
      tips.hide();
      text.shade((i) => value(i * k + j), -data.limits[j], data.limits[j]);
      key.replaceChildren(centered(data.limits[j], data.signed[j], data.labels[j], data.unit, PRECISION));
    };
    const name = "color by";
    root.append(controls(k <= 8 ? named(name, data.labels, choose) : menu(name, data.labels, choose)), text.box, key, tips.tip);
    choose(0);
  };

  const drawActivations = (root, data) => {
    const tips = tooltip(root), value = halves(data);
    const sizes = data.dimensions.map(([, labels]) => labels.length);
    const starts = [0];
    data.texts.forEach((text) => starts.push(starts[starts.length - 1] + text.length));
    const chosen = { text: 0, places: [0, 0] };
    const at = (i) => value(((starts[chosen.text] + i) * sizes[0] + chosen.places[0]) * sizes[1] + chosen.places[1]);
    const where = () => data.dimensions.map(([name, labels], d) => `${plain(name)} ${plain(labels[chosen.places[d]])}`).join(", ");
    const body = el("div"), status = el("p", { className: "hs-status" });
    status.setAttribute("aria-live", "polite");
    let text;
    const color = () => {
      tips.hide();
      text.shade(at, -data.limit, data.limit);
      const best = data.texts[chosen.text].map((token, i) => [token, i, at(i)]).filter(([, , v]) => Math.abs(v) > 0)
        .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 3);
      status.replaceChildren(where() + ". ", best.length ? "Strongest: " : "Nothing but zeros.",
        ...best.flatMap(([token, i, v], place) => [place ? ", " : "", quote(token), ` (${i}) `, strong(number(v, "", data.signed))]));
    };
    const show = () => {
      const tokens = data.texts[chosen.text];
      text = colored(tokens, data.title || "Tokens colored by " + data.name, tips, (i) => [
        row(quote(tokens[i]), ` at position ${i}`),
        row(data.name + " ", strong(number(at(i), data.unit, data.signed)), beyond(at(i), data.limit)),
        row(where()),
      ]);
      body.replaceChildren(text.box);
      color();
    };
    const labels = data.labels || data.texts.map(beginning);
    root.append(controls(
      ...(data.texts.length > 1 ? [menu("text", labels, (i) => { chosen.text = i; show(); })] : []),
      ...data.dimensions.map(([name, labels], d) => menu(name, labels, (i) => { chosen.places[d] = i; color(); }))),
    body, status,
    centered(data.limit, data.signed, data.name, data.unit, (data.beyond
      ? `${data.beyond.toLocaleString("en")} of ${data.count.toLocaleString("en")} values lie beyond the scale; ` : "") + PRECISION), tips.tip);
    show();
  };

  const drawLogits = (root, data) => {
    const n = data.tokens.length, tokens = data.tokens.map((i) => data.strings[i]);
    const state = { at: null, locked: null, after: false, chance: false };
    // Minus infinity is no number in JSON.
    const real = (value) => (value === null ? -Infinity : value);
    const own = (i) => (i ? real(data.values[i - 1]) : NaN);
    const said = el("p"), listed = el("div");
    said.setAttribute("aria-live", "polite");
    const text = tokenText(tokens, {
      point: (i) => { state.at = i; show(); },
      pick: (i) => { if (i !== null) { state.locked = i === state.locked ? null : i; state.at = i; show(); } },
      clear: () => { state.at = state.locked = null; show(); },
    }, data.title || "Tokens colored by " + data.name);
    const key = el("div");
    const color = () => {
      text.spans.forEach((span, i) => shade(span, state.chance ? Math.exp(own(i)) || 0 : strength(own(i), -data.limit, data.limit), !i));
      key.replaceChildren(state.chance ? legend(0, 1, "probability") : data.probabilities
        ? legend(-data.limit, 0, data.name, data.unit) : centered(data.limit, data.signed, data.name, data.unit));
    };
    const list = (from, came) => {
      const numbers = data.topValues[from].map(real);
      const widest = Math.max(...numbers.map((v) => (Number.isFinite(v) ? Math.abs(v) : 0))) || 1;
      const lines = data.top[from].map((string, place) => {
        const v = numbers[place];
        const bar = el("i", { className: v < 0 && !data.probabilities ? "neg" : "" });
        bar.style.width = 100 * (data.probabilities ? Math.exp(v) : Math.min(1, Math.abs(v) / widest)) + "%";
        return el("tr", { className: string === came ? "came" : "" }, el("td", { textContent: place + 1 }),
          el("th", { scope: "row" }, quote(data.strings[string]), ...(string === came ? [" ", el("small", { textContent: "came" })] : []), bar),
          ...(data.probabilities ? [el("td", { textContent: percent(Math.exp(v)) })] : []),
          el("td", { textContent: number(v, "", data.signed) }));
      });
      const heads = ["#", "token", ...(data.probabilities ? ["probability"] : []), data.name];
      const most = data.probabilities ? ["most likely", "least likely"] : ["highest", "lowest"];
      const after = state.after ? " next, after " : " here, after ";
      return el("table", {}, el("caption", {}, most[Number(data.negative)] + after,
        quote(tokens[from]), ` (${from})`),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col", textContent: plain(head) })))), el("tbody", {}, ...lines));
    };
    const show = () => {
      const i = state.locked ?? state.at;
      text.spans.forEach((span, j) => {
        span.classList.toggle("at", j === state.at && j !== state.locked);
        span.classList.toggle("locked", j === state.locked);
      });
      if (i === null) {
        said.textContent = "Point at a token to see its rank and what was expected; click to keep it.";
        listed.replaceChildren();
        return;
      }
      const about = i ? [`: ${plain(data.name)} `, strong(number(own(i), data.unit, data.signed)),
        ...(data.probabilities ? [", probability ", strong(percent(Math.exp(own(i))))] : []),
        ", rank ", strong(data.ranks[i - 1].toLocaleString("en")), ` of ${data.vocabulary.toLocaleString("en")}`]
        : [": nothing stands before it"];
      const from = state.after ? i : i - 1;
      said.replaceChildren(quote(tokens[i]), ` (${i})`, ...about,
        state.locked !== null ? ". Kept; click it again or press Escape to let go." : ".");
      listed.replaceChildren(...(from < 0 ? [] : [list(from, from + 1 < n ? data.tokens[from + 1] : null)]));
    };
    root.append(controls(buttonRow("What to list", ["expected here", "expected next"], (i) => { state.after = i === 1; show(); }),
      ...(data.probabilities ? [named("color by", [data.name, "probability"], (i) => { state.chance = i === 1; color(); })] : [])),
    el("div", { className: "hs-split" }, el("div", {}, text.box, key), el("div", { className: "hs-panel" }, said, listed)));
    color();
    show();
  };

  const drawTopkTokens = (root, data) => {
    const tips = tooltip(root), value = halves(data);
    const places = new Int32Array(bytes(data.at).buffer);
    const [, [columnName, columns]] = data.dimensions;
    const n = columns.length, many = data.texts.length > 1;
    const all = data.texts.flatMap((text, t) => text.map((string, i) => [t, i, string]));
    const chosen = { text: 0, layer: 0, page: 0, end: 0 };
    const box = el("div", { className: "hs-scroll", tabIndex: 0 });
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", (data.title || `Tokens with the largest and smallest ${data.name}`) + ". Arrow keys move from cell to cell.");
    const pages = el("div", { className: "hs-menu" });
    let width = 0, cells = [];
    const names = data.labels || data.texts.map((text, i) => beginning(text.map((string) => data.strings[string]), i));
    const context = (place) => {
      const [t, i] = all[place];
      const string = (from, to) => data.texts[t].slice(from, to).map((s) => data.strings[s]).join("");
      const around = (from, to) => (from < to ? [plain(string(from, to))] : []);
      return row(...around(Math.max(0, i - 6), i), quote(data.strings[data.texts[t][i]]), ...around(i + 1, Math.min(data.texts[t].length, i + 5)));
    };
    const point = (i) => {
      cells.forEach((cell, j) => cell.node.classList.toggle("at", i === j));
      if (i === null || !cells[i]) return tips.hide();
      const { node, place, v, column } = cells[i];
      const [t, at] = all[place];
      tips.at(node, context(place), row(`position ${at}${many ? " of text " + plain(names[t]) : ""}`),
        row(`${plain(columnName)} ${plain(columns[column])}: `, strong(number(v, data.unit, data.signed)), beyond(v, data.limit)));
    };
    const show = () => {
      tips.hide();
      const first = chosen.page * width, shown = columns.slice(first, first + width);
      cells = [];
      stand(null);
      const lines = Array.from({ length: data.k }, (_, rank) => el("tr", {}, el("td", { textContent: rank + 1 }), ...shown.map((_, c) => {
        const index = (((chosen.text * data.dimensions[0][1].length + chosen.layer) * n + first + c) * 2 + chosen.end) * data.k + rank;
        if (places[index] < 0) return el("td");
        const v = value(index), node = el("td", { className: "hs-cell" }, quote(data.strings[all[places[index]][2]]), " ", el("span", { textContent: number(v, "", data.signed) }));
        node.dataset.i = cells.length;
        shade(node, strength(v, -data.limit, data.limit));
        cells.push({ node, place: places[index], v, column: first + c });
        return node;
      })));
      box.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col", textContent: "#" }),
        ...shown.map((label) => el("th", { scope: "col", textContent: `${plain(columnName)} ${plain(label)}` })))), el("tbody", {}, ...lines)));
      const last = Math.ceil(n / width) - 1;
      const step = (by, sign, word) => {
        const button = el("button", { type: "button", textContent: sign, ariaLabel: `${word} ${plain(columnName)}`, title: `${word} ${plain(columnName)}` });
        button.disabled = by < 0 ? chosen.page === 0 : chosen.page === last;
        button.addEventListener("click", () => { chosen.page += by; show(); pages.querySelectorAll("button")[by < 0 ? 0 : 1].focus(); });
        return button;
      };
      pages.replaceChildren(el("span", { textContent: plain(columnName) }),
        ...(last ? [step(-1, "‹", "previous"), strong(`${plain(shown[0])} to ${plain(shown[shown.length - 1])} of ${n.toLocaleString("en")}`), step(1, "›", "next")]
          : [strong(shown.length > 1 ? `all ${n}` : plain(shown[0]))]));
    };
    const index = (event) => {
      const cell = event.target.closest ? event.target.closest(".hs-cell") : null;
      return cell ? Number(cell.dataset.i) : null;
    };
    box.addEventListener("pointerover", (event) => point(index(event)));
    box.addEventListener("pointerleave", () => point(null));
    box.addEventListener("click", (event) => { stand(index(event)); point(index(event)); });
    box.addEventListener("blur", () => point(null));
    const stand = walk(box, () => [cells.length, Math.min(width, n - chosen.page * width)], {
      move: (i) => { cells[i].node.scrollIntoView({ block: "nearest", inline: "nearest" }); point(i); },
      pick: point,
      clear: () => point(null),
    });
    const fitted = () => Math.max(1, Math.min(8, n, Math.floor((root.clientWidth - 30) / 130)));
    const refit = () => {
      if (fitted() === width) return;
      const first = chosen.page * width;
      width = fitted();
      chosen.page = Math.floor(first / width);
      show();
    };
    new ResizeObserver(() => requestAnimationFrame(refit)).observe(root);
    const texts = many ? ["all together", ...names] : names;
    const [layerName, layers] = data.dimensions[0];
    root.append(controls(...(many ? [menu("text", texts, (i) => { chosen.text = i; show(); })] : []),
      menu(layerName, layers, (i) => { chosen.layer = i; show(); }), pages,
      buttonRow("Which end", ["largest", "smallest"], (i) => { chosen.end = i; show(); })),
    box, centered(data.limit, data.signed, data.name, data.unit, PRECISION), tips.tip);
    width = fitted();
    show();
  };

  const drawTopkSamples = (root, data) => {
    const tips = tooltip(root), value = halves(data);
    let count = 0;
    const starts = data.samples.map((layer) => layer.map((samples) => samples.map((tokens) => (count += tokens.length) - tokens.length)));
    const chosen = [0, 0];
    const body = el("ol", { className: "hs-samples" }), key = el("div");
    const show = () => {
      tips.hide();
      const samples = data.samples[chosen[0]][chosen[1]], at = starts[chosen[0]][chosen[1]];
      let limit = 0, signed = false;
      samples.forEach((tokens, s) => tokens.forEach((_, i) => {
        const v = value(at[s] + i);
        if (Number.isFinite(v)) limit = Math.max(limit, Math.abs(v));
        signed ||= v < 0;
      }));
      limit ||= 1;
      body.replaceChildren(...samples.map((indices, s) => {
        const tokens = indices.map((i) => data.strings[i]), own = (i) => value(at[s] + i);
        let best = null;
        tokens.forEach((_, i) => { if (!Number.isNaN(own(i)) && (best === null || own(i) > own(best))) best = i; });
        const text = colored(tokens, `Sample ${s + 1}, colored by ${data.name}`, tips, (i) => [
          row(quote(tokens[i]), ` at position ${i}`), row(data.name + " ", strong(number(own(i), data.unit, signed)))]);
        text.shade(own, -limit, limit);
        return el("li", {}, el("p", { className: "hs-status" }, ...(best === null ? ["no values"]
          : ["largest ", strong(number(own(best), data.unit, signed)), " at ", quote(tokens[best]), ` (${best})`])), text.box);
      }));
      key.replaceChildren(centered(limit, signed, [data.name, ...data.dimensions.map(([name, labels], d) => `${name} ${labels[chosen[d]]}`)].join(", "), data.unit, PRECISION));
    };
    root.append(controls(...data.dimensions.map(([name, labels], d) => menu(name, labels, (i) => { chosen[d] = i; show(); }))), key, body, tips.tip);
    show();
  };

  const drawAttention = (root, data) => {
    const n = data.tokens.length;
    const packed = bytes(data.weights);
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
        image.data[4 * pixel + 3] = 255 * opacity(share);
      });
      canvas.getContext("2d").putImageData(image, 0, 0);
    };

    const several = data.heads.length > 1;
    const thumbs = data.heads.map(() => el("canvas"));
    const buttons = data.heads.map((name, i) => el("button", { ariaLabel: "head " + plain(name) }, thumbs[i], el("span", { textContent: plain(name) })));
    const bar = el("div", { className: "hs-heads" }, ...buttons);
    bar.setAttribute("role", "radiogroup");
    bar.setAttribute("aria-label", "Head to show");
    // A head is shown while the mouse is on it, and after a click until the next.
    let kept = 0;
    const turn = (head) => {
      if (head === state.head) return;
      state.head = head;
      paint(big, head, 320);
      show();
    };
    choices(buttons, (head) => { kept = head; turn(head); });
    buttons.forEach((button, head) => button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") turn(head); }));
    bar.addEventListener("pointerleave", () => turn(kept));

    const modeBar = buttonRow("Which direction to show", ["attends to", "is attended from"], (i) => { state.rows = i === 0; show(); });

    const big = el("canvas");
    const line = el("i"), crossing = el("i");
    const matrix = el("div", { className: "hs-matrix" }, big, line, crossing);
    matrix.setAttribute("role", "img");
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
      matrix.setAttribute("aria-label", `Attention of ${several ? "head " + plain(data.heads[state.head]) : "the head"} from each of ${n} tokens to each`);
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
      line.style.display = i === null ? "none" : "";
      crossing.style.display = pair && state.locked === null ? "" : "none";
      const place = (node, horizontal, at) => Object.assign(node.style, horizontal
        ? { left: 0, right: 0, top: 100 * at / n + "%", height: `max(3px, ${100 / n}%)`, bottom: "", width: "" }
        : { top: 0, bottom: 0, left: 100 * at / n + "%", width: `max(3px, ${100 / n}%)`, right: "", height: "" });
      if (i !== null) place(line, state.rows, i);
      if (pair) place(crossing, !state.rows, pair[state.rows ? 1 : 0]);
      const name = several ? `head ${plain(data.heads[state.head])}: ` : "";
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
        status.replaceChildren((name ? name + "each" : "Each") + " token is shaded by the mean attention it gets. Point at a token, or at the square; click to keep it.");
      }
    };

    if (several) root.append(bar);
    root.append(el("div", { className: "hs-attention" },
      el("div", {}, matrix, el("div", { className: "hs-axis", textContent: "down: the token that attends; across: the token attended to" }),
        legend(data.low, data.high, "attention", "", `shown to within ${number((data.high - data.low) / LEVELS / 2)}`)),
      el("div", {}, modeBar, text.box, status)));
    const repaint = () => { thumbs.forEach((canvas, head) => paint(canvas, head, 64)); paint(big, state.head, 320); };
    repaints.push(repaint);
    repaint();
    show();
    if (data.focus !== null) text.box.scrollTop = text.spans[data.focus].offsetTop - text.box.offsetTop - 60;
  };

  const kinds = {
    tokens: drawTokens, tokens_multi: drawTokensMulti, attention: drawAttention, activations: drawActivations,
    logits: drawLogits, topk_tokens: drawTopkTokens, topk_samples: drawTopkSamples,
    hello: (root, data) => root.append(el("h3", { textContent: "Hello " + plain(data.name) })),
  };
  const draw = () => {
    for (const root of document.querySelectorAll(".hs-view:not([data-drawn])")) {
      root.dataset.drawn = "yes";
      const data = JSON.parse(root.querySelector("script").textContent);
      if (data.title) root.append(el("h3", { textContent: plain(data.title) }));
      kinds[root.dataset.kind](root, data);
    }
  };
  // In a notebook the page stands in a frame, which takes the height of what is in it.
  const fit = () => { if (around) window.frameElement.style.height = page.offsetHeight + 4 + "px"; };
  const start = () => {
    draw();
    if (around && document.body.classList.contains("hs-page")) new ResizeObserver(() => requestAnimationFrame(fit)).observe(document.body);
  };
  window.headscopeViews = { draw };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
