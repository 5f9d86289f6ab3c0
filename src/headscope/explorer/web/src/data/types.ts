/** The files of a tree, as `headscope explore` writes them. What was not measured is null or left out. */

export type HeadName = `${number}.${number}`;

export type Config = {
  format_version?: number;
  generator?: string;
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
  statistics_display: Record<string, { label: string; format: string }>;
  pipeline_config: Record<string, unknown>;
  /** One for each metric, in reading order; trees written by others have none. */
  measures?: Measure[];
  kinds?: Kind[];
};

export type MeasureGroup = "attention" | "prediction" | "ablation" | "copying" | "activity";

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

/** One head of the overview: its place, and `metric` and `metric_error` for every metric. */
export type ScatterRow = {
  layer: number;
  head: number;
  kinds?: string[];
  label?: string | null;
  [measure: string]: number | string | string[] | null | undefined;
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
  rank?: "top" | "typical";
  tokens: string[];
  /** query * seq_len + key of each kept weight. */
  attention_indices: number[];
  attention_values: number[];
  seq_len: number;
  max_activation: number;
  output_norm?: number;
  /** Norm of what the head writes, at each query. */
  output_norms?: number[];
};

export type OvRow = {
  token: string;
  id: number;
  /** The token's share of the head's attention. */
  share: number;
  promoted: TokenLogit[];
  suppressed: TokenLogit[];
};

export type KindEvidence = { name: string; label: string; evidence: string; sure: boolean };

export type Head = {
  layer: number;
  head: number;
  sequences: Sequence[];
  qk_distance_histogram?: Histogram;
  top_query_tokens?: TokenWeight[];
  top_key_tokens?: TokenWeight[];
  histogram?: Histogram;
  statistics?: Record<string, number | null>;
  measures?: Record<string, Estimate>;
  kinds?: KindEvidence[];
  ov_table?: OvRow[];
  token_pairs?: { query: string; key: string; weight: number }[];
  output_norm_histogram?: Histogram;
  neighbors?: { layer: number; head: number; similarity: number }[];
};
