/** What an axis, a color or a column can show of a head: a measure, or its layer. */
import type { HeadEntry, Tree } from "../data/tree";
import type { Measure } from "../data/types";

export type Quantity = {
  name: string;
  label: string;
  unit: string;
  description: string;
  diverging: boolean;
  range: readonly [number, number] | null;
  betterLog: boolean;
  value: (head: HeadEntry) => number | null;
  error: (head: HeadEntry) => number | null;
};

export const LAYER = "layer";

export function quantity(tree: Tree, name: string): Quantity | null {
  if (name === LAYER) return layerOf(tree);
  const measure = tree.measure(name);
  return measure ? ofMeasure(measure) : null;
}

export function ofMeasure(measure: Measure): Quantity {
  return {
    name: measure.name,
    label: measure.label,
    unit: measure.unit,
    description: measure.description,
    diverging: measure.diverging,
    range: measure.range,
    betterLog: measure.better_log,
    value: (head) => head.value(measure.name),
    error: (head) => head.error(measure.name),
  };
}

/** Heads of a layer stand side by side around its number, so that none hides another. */
function layerOf(tree: Tree): Quantity {
  const { n_heads, n_layers } = tree.config;
  return {
    name: LAYER,
    label: "Layer",
    unit: "",
    description: "The heads of a layer side by side.",
    diverging: false,
    range: [-0.5, n_layers - 0.5],
    betterLog: false,
    value: (head) => head.layer + (0.7 * (head.head - (n_heads - 1) / 2)) / n_heads,
    error: () => null,
  };
}

/** The measures among some quantities, each once. */
export function measured(quantities: readonly (Quantity | null)[]): Quantity[] {
  const byName = new Map(quantities.flatMap((each) => (each && each.name !== LAYER ? [[each.name, each]] : [])));
  return [...byName.values()];
}

export function labelWithUnit({ label, unit }: { label: string; unit: string }): string {
  return unit ? `${label} (${unit})` : label;
}

export const GROUPS: Record<string, string> = {
  attention: "Attention",
  prediction: "Prediction",
  ablation: "Ablation",
  copying: "Copying",
  activity: "Activity",
};

/** Measures under the headings of their groups, in reading order. */
export function grouped(measures: readonly Measure[]): [label: string, measures: Measure[]][] {
  const groups = new Map<string, Measure[]>();
  for (const measure of measures) groups.set(measure.group, [...(groups.get(measure.group) ?? []), measure]);
  return [...groups].map(([group, members]) => [GROUPS[group] ?? group, members]);
}
