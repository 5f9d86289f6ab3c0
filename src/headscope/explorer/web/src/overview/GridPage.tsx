import "./overview.css";
import { useMemo } from "preact/hooks";
import { useTree } from "../data/tree";
import { setOptions, useRoute } from "../router";
import { useKeys } from "../shared/keys";
import { useSelection } from "../shared/selection";
import { useChoices } from "./choices";
import { FilterBar } from "./Filters";
import { useShown } from "./filters";
import { Grid } from "./Grid";
import { MeasureMenu } from "./MeasureMenu";
import { LAYER, ofMeasure } from "./quantities";
import { SelectedPanel } from "./SelectedPanel";

export function GridPage() {
  const tree = useTree();
  const { shown } = useShown();
  const { options } = useRoute();
  const choices = useChoices();
  const selection = useSelection();
  const fallback = choices.x === LAYER ? choices.y : choices.x;
  const measure = tree.measure(options.get("by") ?? "") ?? tree.measure(fallback) ?? tree.measures[0];
  const quantity = useMemo(() => measure && ofMeasure(measure), [measure]);
  const step = (by: number) => {
    const at = measure ? tree.measures.indexOf(measure) : -1;
    const next = tree.measures[(at + by + tree.measures.length) % tree.measures.length];
    if (next) setOptions({ by: next.name, gridlog: null });
  };
  useKeys("Grid", [
    { key: "←↑↓→", label: "From head to head, with the grid in focus" },
    { key: "Enter", label: "Open the head pointed at" },
    { key: " ", label: "Select it, or let it go" },
    { key: "j", label: "Next measure", run: () => step(1) },
    { key: "k", label: "Measure before", run: () => step(-1) },
    { key: "Escape", label: "Select nothing", run: () => selection.set([]) },
  ]);
  if (!quantity) return null;
  const asked = options.get("gridlog");
  const log = asked === null ? quantity.betterLog : asked === "1";
  return (
    <>
      <h1 class="unseen">All heads in a grid of layers</h1>
      <div class="fields">
        <span class="condition">
          <MeasureMenu label="Measure" value={quantity.name} onPick={(by) => setOptions({ by, gridlog: null })} />
          <label class="field check">
            <input
              type="checkbox"
              aria-label="Colors: logarithmic"
              checked={log}
              disabled={quantity.diverging}
              onChange={(event) => setOptions({ gridlog: event.currentTarget.checked ? "1" : "0" })}
            />
            <span>log</span>
          </label>
        </span>
        <span class="soft">{quantity.description}</span>
      </div>
      <FilterBar />
      <div class="overview">
        <Grid quantity={quantity} log={log && !quantity.diverging} shown={shown} />
        <SelectedPanel quantities={[quantity]} />
      </div>
    </>
  );
}
