(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Figures: drawn one after the other, in the colors of the page
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const light = {
    font: "#333b47", ground: "#ffffff",
    scale: [[0, "#b2182b"], [0.2, "#dd6f59"], [0.35, "#f6b799"], [0.5, "#f9f9f9"], [0.65, "#a7cfe4"], [0.8, "#4b98c5"], [1, "#2166ac"]],
  };
  const night = {
    font: "#d5dbe3", ground: "#1c222a",
    scale: [[0, "#ff7a6b"], [0.2, "#c9473f"], [0.35, "#7a2b2b"], [0.5, "#20262e"], [0.65, "#1f4f7d"], [0.8, "#3583c4"], [1, "#7dc0ff"]],
  };
  const themed = (layout, theme) => {
    const change = { "font.color": theme.font, "hoverlabel.font.color": theme.font, "hoverlabel.bgcolor": theme.ground };
    for (const [name, axis] of Object.entries(layout)) if (name.startsWith("coloraxis"))
      change[`${name}.colorscale`] = axis.cmin < 0 ? theme.scale
        : theme.scale.filter(([at]) => at >= 0.5).map(([at, color]) => [2 * at - 1, color]);
    return change;
  };
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] };
  const { fade, fitting, held, hold, phone } = window.headscopeFigures;
  const plots = all(".plot").map((plot) => {
    const here = plot.querySelector(".plot-here");
    const { data, layout, frames } = held(plot);
    delete layout.width;
    hold(here, layout);
    return { here, data, layout, frames, drawn: false };
  });
  all(".plot, .scroll").forEach(fade);
  const theme = () => (dark.matches ? night : light);
  const draw = (plot, again = false, paper = false) => {
    if (plot.drawn && !again) return;
    plot.drawn = true;
    const clear = "rgba(0,0,0,0)";
    const layout = { ...fitting(plot.layout, paper), paper_bgcolor: clear, plot_bgcolor: clear };
    hold(plot.here, plot.layout, paper);
    window.Plotly.newPlot(plot.here, { data: plot.data, layout, config, frames: plot.frames });
    window.Plotly.relayout(plot.here, themed(plot.here.layout, theme()));
    plot.here.dataset.plotted = "yes";
  };
  const waiting = [...plots];
  const next = () => {
    const plot = waiting.shift();
    if (!plot) return;
    draw(plot);
    setTimeout(next);
  };
  const paint = (colors, size = {}) =>
    plots.forEach((plot) => window.Plotly.relayout(plot.here, { ...themed(plot.here.layout, colors), ...size }));
  const redraw = (paper) => plots.forEach((plot) => plot.drawn && draw(plot, true, paper));
  phone.addEventListener("change", () => redraw(false));
  dark.addEventListener("change", () => plots.every((plot) => plot.drawn) && paint(theme()));
  const fit = () => plots.forEach((plot) => plot.drawn && plot.here.offsetWidth && window.Plotly.Plots.resize(plot.here));

  // Sections: open, closed, and all open on paper
  const parts = all("details");
  const show = (target) => {
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  };
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const part = target.querySelector(":scope > details");
    if (part) part.open = true;
    show(target);
    target.scrollIntoView();
  };
  window.addEventListener("hashchange", follow);
  all("details.part").forEach((part) => part.addEventListener("toggle", () => part.open && fit()));
  all("[data-open]").forEach((button) => button.addEventListener("click", () =>
    all("details.part").forEach((part) => { part.open = button.dataset.open === "yes"; })));
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = parts.filter((part) => !part.open);
    closed.forEach((part) => { part.open = true; });
    plots.forEach((plot) => draw(plot, phone.matches, true));
    // The width of a sheet between its margins, in CSS pixels
    paint(light, { width: 660, autosize: false });
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((part) => { part.open = false; });
    if (phone.matches) redraw(false);
    else paint(theme(), { width: null, autosize: true });
  });

  // Contents: a menu on narrow screens; where the reader is, everywhere
  const menu = document.querySelector(".menu");
  const open = (yes) => menu.setAttribute("aria-expanded", yes ? "true" : "false");
  menu.addEventListener("click", () => open(menu.getAttribute("aria-expanded") !== "true"));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || menu.getAttribute("aria-expanded") !== "true") return;
    open(false);
    menu.focus();
  });
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  links.forEach((link) => link.addEventListener("click", () => { open(false); if (link.hash === location.hash) follow(); }));
  const sections = all("main > section");
  const mark = () => {
    const line = innerHeight / 4;
    const at = sections.filter((section) => section.getBoundingClientRect().top <= line).pop() || sections[0];
    links.forEach((link, id) => id === at.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  };
  let due = false;
  addEventListener("scroll", () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; mark(); });
  }, { passive: true });

  // Tables: by a column's numbers, or its words; what has no number stays last
  const key = (row, column) => {
    const value = row.cells[column].dataset.value;
    return value === "" ? null : Number.isNaN(Number(value)) ? value : Number(value);
  };
  const sort = (table, column, down) => {
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, at) =>
      head.setAttribute("aria-sort", at !== column ? "none" : down ? "descending" : "ascending"));
  };
  all("table.sortable").forEach((table) => [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      // Numbers begin with the largest; the names of heads, and words, with the first.
      const first = column > 0 && !head.classList.contains("words");
      sort(table, column, now === "none" ? first : now === "ascending");
    })));

  mark();
  if (location.hash) follow();
  next();
})();
