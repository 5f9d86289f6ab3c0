/** What the pages know of a tree, whoever wrote it (`reading.ts`). What it does not have is undefined or null. */

export type HeadName = `${number}.${number}`;

export type Config = {
  generator: string;
  model_name: string;
  n_layers: number;
  n_heads: number;
  heads: [layer: number, head: number][];
  n_intervals: number;
  metrics: string[];
  metric_descriptions: Record<string, string>;
  head_data_pattern: string;
  custom_plots: { key: string; label: string }[];
  custom_tables: { key: string; label: string }[];
  /** Labels of a head's statistics. */
  statistics_display: Record<string, string>;
  pipeline_config: Record<string, unknown>;
  /** One for each metric, in reading order; trees written by others have none. */
  measures: Measure[];
  kinds: Kind[];
};

export const GROUPS = ["attention", "prediction", "ablation", "copying", "activity"] as const;
export type MeasureGroup = (typeof GROUPS)[number];

export type Measure = {
  name: string;
  label: string;
  unit: string;
  description: string;
  group: MeasureGroup;
  /** Whether zero is a middle, with values on both sides of it. */
  diverging: boolean;
  range: [low: number, high: number] | null;
  better_log: boolean;
  count: number | null;
  count_unit: string;
};

export type Kind = { name: string; label: string; description: string };

/** One head of the overview: its place, and `metric` and `metric_error` of every metric that was measured. */
export type ScatterRow = {
  layer: number;
  head: number;
  kinds: string[];
  label: string | null;
  numbers: Record<string, number>;
};

export type TokenPlace = "query" | "key" | "ov_source" | "promoted" | "suppressed";

/** Where tokens stand in the heads' lists, a column for each part of an entry. */
export type SearchIndex = {
  tokens: string[];
  places: TokenPlace[];
  /** Positions in `tokens`. */
  token: number[];
  layer: number[];
  head: number[];
  /** Positions in `places`. */
  where: number[];
  weight: number[];
};

export type TokenWeight = { token: string; weight: number };
export type TokenLogit = { token: string; logit: number };
export type Histogram = { bin_edges: number[]; bin_values: number[] };
export type Estimate = { value: number | null; error: number | null; count: number | null };

export type Sequence = {
  sequence_id: number;
  /** 1 to `n_intervals`; the highest is that of the most active sequences. */
  interval: number;
  rank: "top" | "typical";
  tokens: string[];
  /** query * tokens.length + key of each kept weight. */
  attention_indices: number[];
  attention_values: number[];
  max_activation: number | null;
  output_norm: number | null;
  /** Norm of what the head writes, at each query. */
  output_norms: (number | null)[] | null;
};

export type OvRow = {
  token: string;
  /** The token's share of the head's attention. */
  share: number | null;
  promoted: TokenLogit[];
  suppressed: TokenLogit[];
};

export type KindEvidence = { name: string; label: string; evidence: string; sure: boolean };

export type Head = {
  sequences: Sequence[] | undefined;
  qk_distance_histogram: Histogram | undefined;
  top_query_tokens: TokenWeight[] | undefined;
  top_key_tokens: TokenWeight[] | undefined;
  histogram: Histogram | undefined;
  statistics: Record<string, number>;
  measures: Record<string, Estimate> | undefined;
  kinds: KindEvidence[] | undefined;
  ov_table: OvRow[] | undefined;
  token_pairs: { query: string; key: string; weight: number }[] | undefined;
  output_norm_histogram: Histogram | undefined;
  neighbors: { layer: number; head: number; similarity: number }[] | undefined;
  /** All that the file holds, for plots and tables of others' making. */
  others: Record<string, unknown>;
};
