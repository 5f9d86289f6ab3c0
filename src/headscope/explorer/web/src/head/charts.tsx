// The small charts of a head: where it stands among all heads, how far it looks, how its activity is spread.

import type { JSX } from "preact";

import type { Histogram } from "../data/types";
import { number, percent } from "../format";

const STRIP = { width: 168, height: 22, edge: 4 };

export type Mark = {
  value: number;
  kind: "one" | "two";
};

/** All heads as ticks on one line, and the one or two that are looked at. */
export function Standing({
  values,
  marks,
  log,
  diverging,
}: {
  values: readonly number[];
  marks: readonly Mark[];
  log: boolean;
  diverging: boolean;
}): JSX.Element | null {
  if (values.length < 2) return null;
  const low = Math.min(...values);
  const high = Math.max(...values);
  const scaled = log && low > 0 ? Math.log : (value: number) => value;
  const span = scaled(high) - scaled(low) || 1;
  const place = (value: number) => STRIP.edge + ((STRIP.width - 2 * STRIP.edge) * (scaled(value) - scaled(low))) / span;
  const ticks = values.map((value) => `M${place(value).toFixed(1)} 7V15`).join("");
  return (
    <svg
      class="standing"
      width={STRIP.width}
      height={STRIP.height}
      viewBox={`0 0 ${STRIP.width} ${STRIP.height}`}
      role="img"
      aria-label={`All heads from ${number(low)} to ${number(high)}${log && low > 0 ? ", on a logarithmic scale" : ""}`}
    >
      <title>{`all heads: ${number(low)} to ${number(high)}`}</title>
      <path class="rule" d={`M0 11H${STRIP.width}`} />
      {diverging && low < 0 && high > 0 && <path class="zero" d={`M${place(0).toFixed(1)} 1V21`} />}
      <path class="ticks" d={ticks} />
      {marks.map((mark) => (
        <circle class={mark.kind} cx={place(mark.value).toFixed(1)} cy="11" r="4.5" />
      ))}
    </svg>
  );
}

/** Names of bins of whole numbers: 0, 1, 2–3, 4–7. */
export function binNames(edges: readonly number[]): string[] {
  return edges.slice(0, -1).map((low, at) => {
    const last = (edges[at + 1] ?? low + 1) - 1;
    return last > low ? `${low}–${last}` : String(low);
  });
}

/** Each bin's share of all. */
export function shares({ bin_values }: Histogram): number[] {
  const total = bin_values.reduce((sum, value) => sum + value, 0);
  return bin_values.map((value) => (total > 0 ? value / total : 0));
}

/** What is written below a bin, whose name may be wider than its bar: where it begins. */
const firstOf = (name: string): string => name.split("–")[0] ?? name;

export type Series = {
  name: string;
  kind: "one" | "two";
  values: readonly number[];
};

/** Shares by bins of whole numbers, with one or two bars each. */
export function Bars({
  names,
  series,
  label,
  across,
}: {
  names: readonly string[];
  series: readonly Series[];
  label: string;
  across: string;
}): JSX.Element {
  const top = Math.max(...series.flatMap((one) => one.values), 1e-9);
  return (
    <figure class="bars">
      <div class="columns" role="img" aria-label={spoken(names, series, label)}>
        {names.map((name, at) => (
          <div class="column">
            <div class="stems">
              {series.map(({ name: head, kind, values }) => {
                const value = values[at] ?? 0;
                return (
                  <div
                    class="stem"
                    title={`${series.length > 1 ? `${head}, ` : ""}${across} ${name}: ${percent(value)}`}
                  >
                    {series.length === 1 && <small>{value >= 0.005 ? Math.round(100 * value) : ""}</small>}
                    <i class={kind} style={{ height: `${(100 * value) / top}%` }} />
                  </div>
                );
              })}
            </div>
            <span>{firstOf(name)}</span>
          </div>
        ))}
      </div>
      <figcaption>{label}</figcaption>
    </figure>
  );
}

function spoken(names: readonly string[], series: readonly Series[], label: string): string {
  const tops = series.map(({ name, values }) => {
    const at = values.indexOf(Math.max(...values));
    return `${series.length > 1 ? `${name}: ` : ""}most at ${names[at]}, ${percent(values[at])}`;
  });
  return `${label}; ${tops.join("; ")}`;
}

/** Whether each edge is the same multiple of the one before: such bins stand on a logarithmic scale. */
function geometric(edges: readonly number[]): boolean {
  const [first = 0, second = 0] = edges;
  const ratio = second / first;
  return (
    first > 0 &&
    edges.length > 3 &&
    edges.every((edge, at) => at === 0 || Math.abs(edge / (edges[at - 1] ?? 0) / ratio - 1) < 0.01)
  );
}

/** Shares for a width of one, on the scale that the bins are made for, so that bins of different widths compare. */
export function densities(histogram: Histogram): number[] {
  const edges = geometric(histogram.bin_edges) ? histogram.bin_edges.map(Math.log) : histogram.bin_edges;
  return shares(histogram).map((share, at) => share / ((edges[at + 1] ?? 0) - (edges[at] ?? 0) || 1));
}

const PLOT = { width: 320, height: 96 };

/** A histogram over numbers. `domain` and `top` set the same scales for two of them. */
export function Distribution({
  histogram,
  label,
  kind = "one",
  domain,
  top,
}: {
  histogram: Histogram;
  label: string;
  kind?: "one" | "two";
  domain?: [number, number];
  top?: number;
}): JSX.Element {
  const { bin_edges: edges } = histogram;
  const parts = shares(histogram);
  const heights = densities(histogram);
  const low = domain?.[0] ?? edges[0] ?? 0;
  const high = domain?.[1] ?? edges.at(-1) ?? 1;
  const tallest = top ?? Math.max(...heights, 1e-9);
  const log = geometric(edges);
  const scaled = log ? Math.log : (value: number) => value;
  const place = (value: number) => (PLOT.width * (scaled(value) - scaled(low))) / (scaled(high) - scaled(low) || 1);
  return (
    <figure class="distribution">
      <svg
        viewBox={`0 0 ${PLOT.width} ${PLOT.height}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`${label}, from ${number(edges[0])} to ${number(edges.at(-1))}`}
      >
        {heights.map((density, at) => {
          const from = edges[at] ?? 0;
          const to = edges[at + 1] ?? from;
          const height = (PLOT.height * density) / tallest;
          return (
            <rect
              class={kind}
              x={place(from)}
              width={Math.max(0.5, place(to) - place(from) - 0.8)}
              y={PLOT.height - height}
              height={height}
            >
              <title>{`${number(from)} to ${number(to)}: ${percent(parts[at])}`}</title>
            </rect>
          );
        })}
      </svg>
      <div class="axis">
        <span>{number(low)}</span>
        <span>{number(log ? Math.sqrt(low * high) : (low + high) / 2)}</span>
        <span>{number(high)}</span>
      </div>
      <figcaption>{label}</figcaption>
    </figure>
  );
}
