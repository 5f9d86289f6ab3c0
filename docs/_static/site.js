// The page's color scheme where headscope's views look for it, and the plotly figures of the page.
(() => {
  "use strict";
  const system = window.matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  const mirror = () => {
    const word = document.body ? document.body.dataset.theme : localStorage.getItem("theme");
    root.dataset.theme = word === "dark" || word === "light" ? word : system.matches ? "dark" : "light";
  };
  mirror();
  system.addEventListener("change", mirror);
  document.addEventListener("DOMContentLoaded", () => {
    mirror();
    new MutationObserver(mirror).observe(document.body, { attributeFilter: ["data-theme"] });
    const boxes = [...document.querySelectorAll(".hs-figure")];
    if (!boxes.length) return;
    const { fade, fitting, held, hold, phone } = window.headscopeFigures;
    const plots = boxes.map((box) => ({ node: box.firstElementChild, ...held(box) }));
    const draw = ({ node, data, layout, frames }) => {
      hold(node, layout);
      window.Plotly.newPlot(node, { data, layout: fitting(layout), frames, config: { displaylogo: false, responsive: true } });
    };
    // A figure is drawn when it comes near the screen: a page of many opens at once.
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        const plot = plots[boxes.indexOf(entry.target)];
        plot.drawn = true;
        draw(plot);
      }
    }, { rootMargin: "600px" });
    plots.forEach(({ node, layout }) => hold(node, layout));
    boxes.forEach((box) => { near.observe(box); fade(box); });
    const redraw = () => plots.forEach((plot) => { hold(plot.node, plot.layout); if (plot.drawn) draw(plot); });
    phone.addEventListener("change", redraw);
  });
})();
