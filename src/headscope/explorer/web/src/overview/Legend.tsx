import "./legend.css";
import { count, number } from "../format";
import type { Coloring } from "./colors";

/** What the colors mean; a kind's button takes its heads into the selection. */
export function Legend({ coloring, onPick }: { coloring: Coloring; onPick: (kind: string) => void }) {
  const { label, scale, keys } = coloring;
  if (!scale) {
    return (
      <ul class="legend" aria-label="Colors of kinds">
        {keys.map((key) => (
          <li key={key.name}>
            <button type="button" title={`${key.description} Click to select.`} onClick={() => onPick(key.name)}>
              <i style={{ background: key.color }} />
              {key.label} <span class="soft">{key.count}</span>
            </button>
          </li>
        ))}
      </ul>
    );
  }
  return <ColorBar label={label} {...scale} />;
}

type Bar = NonNullable<Coloring["scale"]> & { label: string };

export function ColorBar({ label, stops, low, high, log, unit }: Bar) {
  return (
    <div class="legend bar">
      <span>
        {label}
        {unit && ` (${unit})`}
        {log && ", log"}
      </span>
      <span class="scale">
        <span class="number">{bound(low)}</span>
        <i style={{ background: `linear-gradient(to right in oklab, ${stops.join(", ")})` }} />
        <span class="number">{bound(high)}</span>
      </span>
    </div>
  );
}

const bound = (value: number): string => (Number.isInteger(value) ? count(value) : number(value));
