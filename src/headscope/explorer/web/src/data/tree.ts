/** What all pages know of the tree: its configuration and the measures of all heads. */
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Config, HeadName, Kind, Measure, ScatterRow } from "./types";

export type HeadEntry = {
  name: HeadName;
  layer: number;
  head: number;
  kinds: string[];
  label: string | null;
  value: (measure: string) => number | null;
  error: (measure: string) => number | null;
};

export class Tree {
  readonly config: Config;
  readonly heads: HeadEntry[];
  readonly measures: Measure[];
  readonly kinds: Kind[];
  private readonly byName: Map<string, HeadEntry>;
  private readonly measureByName: Map<string, Measure>;

  constructor(config: Config, rows: ScatterRow[]) {
    this.config = config;
    this.heads = rows.map(headEntry).sort((one, other) => one.layer - other.layer || one.head - other.head);
    this.byName = new Map(this.heads.map((head) => [head.name, head]));
    const described = new Map(config.measures?.map((measure) => [measure.name, measure]));
    this.measures = config.metrics.map((name) => described.get(name) ?? plainMeasure(name, config));
    this.measureByName = new Map(this.measures.map((measure) => [measure.name, measure]));
    this.kinds = config.kinds ?? [];
  }

  head(name: string): HeadEntry | undefined {
    return this.byName.get(name);
  }

  measure(name: string): Measure | undefined {
    return this.measureByName.get(name);
  }

  kindLabel(name: string): string {
    return this.kinds.find((kind) => kind.name === name)?.label ?? name;
  }

  /** A head's kinds in words, empty for a head of none. */
  labelOf(head: HeadEntry): string {
    return head.kinds.map((kind) => this.kindLabel(kind)).join(", ") || (head.label ?? "");
  }

  /** The path, without ending, of a head's file. */
  headFile(layer: number, head: number): string {
    const file = this.config.head_data_pattern.replace("{layer}", String(layer)).replace("{head}", String(head));
    return `heads/${file.replace(/\.json$/, "")}`;
  }
}

function headEntry(row: ScatterRow): HeadEntry {
  return {
    name: headName(row.layer, row.head),
    layer: row.layer,
    head: row.head,
    kinds: row.kinds ?? [],
    label: row.label ?? null,
    value: (measure) => number(row[measure]),
    error: (measure) => number(row[`${measure}_error`]),
  };
}

function number(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** A measure of a tree written by others, of which only the name and a description are known. */
function plainMeasure(name: string, config: Config): Measure {
  return {
    name,
    label: name.replaceAll("_", " "),
    unit: "",
    description: config.metric_descriptions[name] ?? "",
    group: "attention",
    diverging: false,
    range: null,
    better_log: false,
    count: 0,
    count_unit: "",
  };
}

export function headName(layer: number, head: number): HeadName {
  return `${layer}.${head}`;
}

export const TreeContext = createContext<Tree | null>(null);

export function useTree(): Tree {
  const tree = useContext(TreeContext);
  if (!tree) throw new Error("no tree around this component");
  return tree;
}
