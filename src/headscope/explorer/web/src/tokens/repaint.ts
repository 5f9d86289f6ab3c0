// Canvases hold colors of the theme that they were painted in.

import { useEffect, useState } from "preact/hooks";

/** A number that changes whenever canvases have to be painted anew: on another theme, and for paper. */
export function useRepaint(): number {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const again = () => setTurn((last) => last + 1);
    const watched = new MutationObserver(again);
    watched.observe(document.documentElement, { attributeFilter: ["data-theme", "class"] });
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", again);
    const paper = matchMedia("print");
    paper.addEventListener("change", again);
    return () => {
      watched.disconnect();
      system.removeEventListener("change", again);
      paper.removeEventListener("change", again);
    };
  }, []);
  return turn;
}
