// Figures and tables on narrow screens. A figure takes the layout that drawing/narrow.py made for it; a box that scrolls
// sideways fades where there is more.
(() => {
  "use strict";
  if (window.headscopeFigures) return;
  const phone = window.matchMedia("(max-width: 640px)");
  // A copy of a figure's layout that fits the page, for plotly, which writes into what it is given. Paper is wide.
  const fitting = (layout, paper = false) => {
    const fitted = structuredClone(layout), { narrow } = layout.meta || {};
    if (!narrow || paper || !phone.matches) return fitted;
    for (const [path, value] of Object.entries(narrow.changes)) {
      const names = path.split(/[.[\]]+/).filter(Boolean), last = names.pop();
      const place = names.reduce((at, name) => (at[name] ??= {}), fitted);
      if (value === null) delete place[last];
      else place[last] = value;
    }
    return fitted;
  };
  // The space of a figure, before or after it is drawn.
  const hold = (node, layout, paper = false) => {
    const { narrow } = layout.meta || {}, { height = 450, width } = fitting(layout, paper);
    node.style.minHeight = node.style.height = `${height}px`;
    node.style.width = width ? `${width}px` : "100%";
    node.style.minWidth = narrow && phone.matches && !paper ? `${narrow.width}px` : "";
  };
  const fade = (box) => {
    const mark = () => box.classList.toggle("hs-more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
    const sizes = new ResizeObserver(mark);
    [box, ...box.children].forEach((node) => sizes.observe(node));
    box.addEventListener("scroll", mark, { passive: true });
  };
  // A figure as the page holds it.
  const held = (box) => JSON.parse(box.querySelector("script").textContent);
  // A page of figures alone.
  const page = () => {
    const boxes = [...document.querySelectorAll(".figure")];
    const plots = boxes.map((box) => ({ node: box.firstElementChild, ...held(box) }));
    const draw = () => plots.forEach(({ node, data, layout, frames }) => {
      hold(node, layout);
      window.Plotly.newPlot(node, { data, layout: fitting(layout), frames, config: { displaylogo: false, responsive: true } });
    });
    draw();
    phone.addEventListener("change", draw);
    boxes.forEach(fade);
  };
  window.headscopeFigures = { fade, fitting, held, hold, page, phone };
})();
