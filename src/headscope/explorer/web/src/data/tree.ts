/** What all pages know of the tree: its configuration and the measures of all heads. */
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { DataFile } from "./load";
import { plainMeasure, readConfig, readHead, readRows, readSearch } from "./reading";
import type { Config, Head, HeadName, Kind, Measure, ScatterRow, SearchIndex } from "./types";

export const CONFIG: DataFile<Config> = { name: "config", read: readConfig };
export const ROWS: DataFile<ScatterRow[]> = { name: "scatter_data", read: readRows };
export const SEARCH: DataFile<SearchIndex> = { name: "search", read: readSearch };

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
    const found = new Map(rows.map((row) => [headName(row.layer, row.head), row]));
    const places = new Map(config.heads.map(([layer, head]) => [headName(layer, head), { layer, head }]));
    this.heads = [...places]
      .map(([name, place]) => headEntry({ ...NOTHING, ...found.get(name), ...place }))
      .sort((one, other) => one.layer - other.layer || one.head - other.head);
    this.byName = new Map(this.heads.map((head) => [head.name, head]));
    const described = new Map(config.measures.map((measure) => [measure.name, measure]));
    this.measures = config.metrics.map((name) => described.get(name) ?? plainMeasure(name, config));
    this.measureByName = new Map(this.measures.map((measure) => [measure.name, measure]));
    this.kinds = config.kinds;
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

  headFile(layer: number, head: number): DataFile<Head> {
    const file = this.config.head_data_pattern.replace("{layer}", String(layer)).replace("{head}", String(head));
    return { name: `heads/${file.replace(/\.json$/, "")}`, read: readHead };
  }
}

const NOTHING = { kinds: [], label: null, numbers: {} };

function headEntry(row: ScatterRow): HeadEntry {
  return {
    name: headName(row.layer, row.head),
    layer: row.layer,
    head: row.head,
    kinds: row.kinds,
    label: row.label,
    value: (measure) => row.numbers[measure] ?? null,
    error: (measure) => row.numbers[`${measure}_error`] ?? null,
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
