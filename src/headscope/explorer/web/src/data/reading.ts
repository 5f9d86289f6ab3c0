/**
 * What the files of a tree hold, read as `headscope.explorer.read_tree` reads it: this package's trees, and those of
 * HeadVis and Neuronpedia. What is missing, empty or not of its shape is undefined or null, and the pages say so.
 */
import {
  type Config,
  type Estimate,
  GROUPS,
  type Head,
  type Histogram,
  type Kind,
  type KindEvidence,
  type Measure,
  type OvRow,
  type ScatterRow,
  type SearchIndex,
  type Sequence,
  type TokenLogit,
  type TokenPlace,
  type TokenWeight,
} from "./types";

type Found = Record<string, unknown>;

const FORMAT_VERSION = 1;
const LARGEST = 9999; // the layers and heads that a name such as 3.1 has room for
/** Names that others give to measures of this package. */
const ALIASES = new Map([["previous_token_score", "prev_token_score"]]);

const named = (measure: string): string => ALIASES.get(measure) ?? measure;

/** The entries of an object, without a prototype's; none of what is no object. */
function record(found: unknown): Found {
  const isRecord = typeof found === "object" && found !== null && !Array.isArray(found);
  return Object.assign(Object.create(null), isRecord ? found : {});
}

/** What can be read of a list's entries; undefined for what is no list. */
function entries<T>(found: unknown, read: (entry: Found) => T | null): T[] | undefined {
  return Array.isArray(found) ? found.map((entry) => read(record(entry))).filter((entry) => entry !== null) : undefined;
}

/** The same of an object's entries, by name. */
function byName<T>(found: unknown, read: (entry: unknown) => T | null, name = (own: string) => own): Record<string, T> {
  const kept: Record<string, T> = Object.create(null);
  for (const [own, entry] of Object.entries(record(found))) {
    const value = read(entry);
    if (value !== null) kept[name(own)] = value;
  }
  return kept;
}

const text = (found: unknown, otherwise = ""): string => (typeof found === "string" ? found : otherwise);
const texts = (found: unknown): string[] =>
  Array.isArray(found) ? found.filter((each) => typeof each === "string") : [];
const finite = (found: unknown): number | null => (typeof found === "number" && Number.isFinite(found) ? found : null);
const whole = (found: unknown, most = LARGEST): found is number =>
  Number.isInteger(found) && (found as number) >= 0 && (found as number) <= most;
const isHead = (found: unknown): found is [number, number] =>
  Array.isArray(found) && found.length === 2 && found.every((each) => whole(each));
const titled = (found: Found): { key: string; label: string } | null =>
  typeof found.key === "string" ? { key: found.key, label: text(found.label, found.key) } : null;

export function readConfig(found: unknown): Config {
  const config = record(found);
  const version = config.format_version ?? FORMAT_VERSION;
  if (!whole(version, FORMAT_VERSION))
    throw new Error(`The tree is of format version ${version}; this page reads versions up to ${FORMAT_VERSION}.`);
  const { heads } = config;
  if (!Array.isArray(heads) || !heads.length || !heads.every(isHead))
    throw new Error("config names no heads, as [[layer, head], ...].");
  const size = (given: unknown, needed: number) => (whole(given) && given >= needed ? given : needed);
  const described = entries(config.measures, readMeasure);
  const pattern = text(config.head_data_pattern);
  return {
    generator: text(config.generator),
    model_name: text(config.model_name),
    n_layers: size(config.n_layers, 1 + Math.max(...heads.map(([layer]) => layer))),
    n_heads: size(config.n_heads, 1 + Math.max(...heads.map(([, head]) => head))),
    heads,
    n_intervals: whole(config.n_intervals) && config.n_intervals > 0 ? config.n_intervals : 10,
    metrics: [...new Set(texts(config.metrics).map(named))],
    metric_descriptions: byName(config.metric_descriptions, (each) => text(each), named),
    head_data_pattern: pattern.includes("{layer}") && pattern.includes("{head}") ? pattern : "L{layer}H{head}.json",
    custom_plots: entries(config.custom_plots, titled) ?? [],
    custom_tables: entries(config.custom_tables, titled) ?? [],
    statistics_display: byName(config.statistics_display, (each) => text(record(each).label) || null),
    pipeline_config: record(config.pipeline_config),
    measures: described ?? [],
    kinds: entries(config.kinds, readKind) ?? [],
  };
}

function readMeasure(found: Found): Measure | null {
  const name = text(found.name);
  if (!name) return null;
  const [low, high] = Array.isArray(found.range) ? found.range.map(finite) : [];
  return {
    name: named(name),
    label: text(found.label) || name.replaceAll("_", " "),
    unit: text(found.unit),
    description: text(found.description),
    group: GROUPS.find((group) => group === found.group) ?? "attention",
    diverging: found.diverging === true,
    range: typeof low === "number" && typeof high === "number" ? [low, high] : null,
    better_log: found.better_log === true,
    count: finite(found.count),
    count_unit: text(found.count_unit),
  };
}

/** A measure of which a tree says no more than its name, and perhaps a description. */
export function plainMeasure(name: string, config: Config): Measure {
  return readMeasure({ name, description: config.metric_descriptions[name] }) as Measure;
}

function readKind({ name, label, description }: Found): Kind | null {
  return typeof name === "string" ? { name, label: text(label, name), description: text(description) } : null;
}

export function readRows(found: unknown): ScatterRow[] {
  const rows = entries(found, (row) => {
    const { layer, head } = row;
    if (!whole(layer) || !whole(head)) throw new Error("scatter_data is damaged: a row has no layer and head.");
    const numbers = byName(row, finite, named);
    return { layer, head, kinds: texts(row.kinds), label: text(row.label) || null, numbers };
  });
  if (!rows) throw new Error("scatter_data is damaged: it holds no list.");
  return rows;
}

export function readHead(found: unknown): Head {
  const head = record(found);
  const measures = byName(head.measures, readEstimate, named);
  return {
    sequences: entries(head.sequences, readSequence),
    qk_distance_histogram: readHistogram(head.qk_distance_histogram),
    top_query_tokens: readWeights(head.top_query_tokens),
    top_key_tokens: readWeights(head.top_key_tokens),
    histogram: readHistogram(head.histogram),
    statistics: byName(head.statistics, finite),
    measures: Object.keys(measures).length ? measures : undefined,
    kinds: entries(head.kinds, readEvidence),
    ov_table: entries(head.ov_table, readOvRow),
    token_pairs: entries(head.token_pairs, ({ query, key, weight }) => {
      const share = finite(weight);
      return typeof query === "string" && typeof key === "string" && share !== null
        ? { query, key, weight: share }
        : null;
    }),
    output_norm_histogram: readHistogram(head.output_norm_histogram),
    neighbors: entries(head.neighbors, ({ layer, head, similarity }) => {
      const cosine = finite(similarity);
      return whole(layer) && whole(head) && cosine !== null ? { layer, head, similarity: cosine } : null;
    }),
    others: head,
  };
}

function readEstimate(found: unknown): Estimate | null {
  const { value, error, count } = record(found);
  return value === undefined ? null : { value: finite(value), error: finite(error), count: finite(count) };
}

function readSequence(found: Found): Sequence | null {
  const { sequence_id, interval, seq_len, output_norms } = found;
  const tokens = (Array.isArray(found.tokens) ? found.tokens : []).map((token) => text(token, "\ufffd"));
  const n = tokens.length;
  if (!n || !whole(sequence_id, Number.MAX_SAFE_INTEGER)) return null;
  const stride = whole(seq_len, Number.MAX_SAFE_INTEGER) && seq_len > 0 ? seq_len : n;
  const [attention_indices, attention_values] = readAttention(found, stride, n);
  const norms = Array.isArray(output_norms) && output_norms.length === n ? output_norms.map(finite) : null;
  return {
    sequence_id,
    interval: whole(interval) ? interval : 1,
    rank: found.rank === "top" ? "top" : "typical",
    tokens,
    attention_indices,
    attention_values,
    max_activation: finite(found.max_activation),
    output_norm: finite(found.output_norm),
    output_norms: norms,
  };
}

/** The kept weights at query * n + key, for indices made with another length; those that lie outside are left out. */
function readAttention(found: Found, stride: number, n: number): [number[], number[]] {
  const indices: unknown[] = Array.isArray(found.attention_indices) ? found.attention_indices : [];
  const values: unknown[] = Array.isArray(found.attention_values) ? found.attention_values : [];
  const kept: [number[], number[]] = [[], []];
  indices.forEach((index, at) => {
    const weight = finite(values[at]);
    if (weight === null || !whole(index, stride * stride - 1)) return;
    const key = index % stride;
    const query = (index - key) / stride;
    if (query >= n || key >= n) return;
    kept[0].push(query * n + key);
    kept[1].push(weight);
  });
  return kept;
}

/** A histogram whose edges rise, with a number for each bin. */
export function readHistogram(found: unknown): Histogram | undefined {
  const { bin_edges: edges, bin_values: values } = record(found);
  const numbers = (list: unknown): list is number[] =>
    Array.isArray(list) && list.every((each) => finite(each) !== null);
  if (!numbers(edges) || !numbers(values) || !values.length || edges.length !== values.length + 1) return undefined;
  return edges.every((edge, at) => at === 0 || edge > (edges[at - 1] as number))
    ? { bin_edges: edges, bin_values: values }
    : undefined;
}

/** A list of tokens with the size of each. */
export function readWeights(found: unknown): TokenWeight[] | undefined {
  return entries(found, ({ token, weight }) => {
    const size = finite(weight);
    return typeof token === "string" && size !== null ? { token, weight: size } : null;
  });
}

function readLogits(found: unknown): TokenLogit[] {
  const read = ({ token, logit }: Found) => {
    const size = finite(logit);
    return typeof token === "string" && size !== null ? { token, logit: size } : null;
  };
  return entries(found, read) ?? [];
}

function readOvRow({ token, share, promoted, suppressed }: Found): OvRow | null {
  if (typeof token !== "string") return null;
  return { token, share: finite(share), promoted: readLogits(promoted), suppressed: readLogits(suppressed) };
}

function readEvidence({ name, label, evidence, sure }: Found): KindEvidence | null {
  return typeof name === "string"
    ? { name, label: text(label, name), evidence: text(evidence), sure: sure === true }
    : null;
}

export function readSearch(found: unknown): SearchIndex {
  const { tokens, places, ...columns } = record(found);
  const [token, layer, head, where, weight] = ["token", "layer", "head", "where", "weight"].map(
    (name) => columns[name],
  );
  const lists = [tokens, places, token, layer, head, where, weight];
  const entriesOf = (list: unknown) => (Array.isArray(list) ? list.length : -1);
  if (!lists.every(Array.isArray) || new Set(lists.slice(2).map(entriesOf)).size > 1)
    throw new Error("search is damaged: it does not hold columns of one length.");
  return {
    tokens: tokens as string[],
    places: places as TokenPlace[],
    token: token as number[],
    layer: layer as number[],
    head: head as number[],
    where: where as number[],
    weight: weight as number[],
  };
}
