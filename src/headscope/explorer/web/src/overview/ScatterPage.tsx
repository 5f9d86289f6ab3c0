import "./overview.css";
import { useMemo } from "preact/hooks";
import { useTree } from "../data/tree";
import { useKeys } from "../shared/keys";
import { useSelection } from "../shared/selection";
import { choose, chooseLog, type Part, swapAxes, useChoices } from "./choices";
import { coloring as coloringOf, KIND } from "./colors";
import { FilterBar } from "./Filters";
import { useShown } from "./filters";
import { Legend } from "./Legend";
import { MeasureMenu } from "./MeasureMenu";
import { Provenance } from "./Provenance";
import { LAYER, measured, quantity } from "./quantities";
import { Scatter } from "./Scatter";
import { SelectedPanel } from "./SelectedPanel";

const NAMES: Record<Part, string> = { x: "Across", y: "Up", color: "Color" };
const PARTS: Part[] = ["x", "y", "color"];

export function ScatterPage() {
  const tree = useTree();
  const choices = useChoices();
  const { shown } = useShown();
  const selection = useSelection();
  const x = useMemo(() => quantity(tree, choices.x), [tree, choices.x]);
  const y = useMemo(() => quantity(tree, choices.y), [tree, choices.y]);
  const colored = useMemo(() => quantity(tree, choices.color), [tree, choices.color]);
  const coloring = useMemo(
    () => coloringOf(tree, choices.color, choices.log.color),
    [tree, choices.color, choices.log.color],
  );
  useKeys("Overview", [
    ...PLOT_KEYS,
    { key: "x", label: "Swap the axes", run: () => swapAxes(choices) },
    { key: "Escape", label: "Select nothing", run: () => selection.set([]) },
  ]);
  if (!x || !y || !coloring) return null;
  const pickKind = (kind: string) =>
    selection.set(tree.heads.filter((head) => shown.has(head) && (head.kinds[0] ?? "none") === kind));
  return (
    <>
      <h1 class="unseen">All heads as points</h1>
      <div class="fields">
        {PARTS.map((part) => (
          <span key={part} class="condition">
            <MeasureMenu
              label={NAMES[part]}
              value={choices[part]}
              onPick={(name) => choose(choices, part, quantity(tree, name), name)}
            >
              {part === "color" && tree.kinds.length > 0 && <option value={KIND}>Kind</option>}
              <option value={LAYER}>Layer</option>
            </MeasureMenu>
            <label class="field check">
              <input
                type="checkbox"
                aria-label={`${NAMES[part]}: logarithmic`}
                checked={choices.log[part]}
                disabled={choices[part] === LAYER || choices[part] === KIND}
                onChange={(event) => chooseLog(choices, part, event.currentTarget.checked)}
              />
              <span>log</span>
            </label>
          </span>
        ))}
      </div>
      <FilterBar />
      <div class="overview">
        <div>
          <Legend coloring={coloring} onPick={pickKind} />
          <Scatter x={x} y={y} log={choices.log} coloring={coloring} told={measured([x, y, colored])} shown={shown} />
          <dl class="about">
            {measured([x, y, colored]).map(({ name, label, description }) => (
              <div key={name}>
                <dt>{label}</dt>
                <dd>{description}</dd>
              </div>
            ))}
          </dl>
        </div>
        <SelectedPanel quantities={measured([x, y])} />
      </div>
      <Provenance />
    </>
  );
}

const PLOT_KEYS = [
  { key: "←↑↓→", label: "From head to head, with the plot in focus" },
  { key: "Enter", label: "Open the head pointed at" },
  { key: " ", label: "Select it, or let it go" },
];
