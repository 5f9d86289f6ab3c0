// Attention weights of one head on one text, however they came: sparse from a tree, packed or exact from a server.

export type Weights = {
  readonly n: number;
  /** The weight of a key for a query; zero where it was too small to be kept. */
  at(query: number, key: number): number;
};

export type Place = {
  at: number;
  weight: number;
};

function square(values: Float32Array, n: number): Weights {
  return { n, at: (query, key) => values[query * n + key] ?? 0 };
}

/** Weights kept as coordinates, query * n + key. Of a text with more tokens than rows, what lies outside is left out. */
export function sparseWeights(n: number, indices: readonly number[], kept: readonly number[]): Weights {
  const values = new Float32Array(n * n);
  indices.forEach((index, i) => {
    values[index] = kept[i] ?? 0;
  });
  return square(values, n);
}

/** Weights as rows of numbers. */
export function denseWeights(rows: readonly (readonly number[])[]): Weights {
  return { n: rows.length, at: (query, key) => rows[query]?.[key] ?? 0 };
}

/** Weights in base64, a byte each: 255 is all attention. */
export function packedWeights(text: string, n: number): Weights {
  const raw = atob(text);
  const values = new Float32Array(n * n);
  for (let i = 0; i < values.length; i++) values[i] = raw.charCodeAt(i) / 255;
  return square(values, n);
}

/** The strongest of the keys that a query attends to (`of: "query"`), or of the queries that attend to a key. */
export function strongest(weights: Weights, of: "query" | "key", index: number, most = 5): Place[] {
  const places: Place[] = [];
  for (let other = 0; other < weights.n; other++) {
    const weight = of === "query" ? weights.at(index, other) : weights.at(other, index);
    if (weight > 0) places.push({ at: other, weight });
  }
  return places.sort((a, b) => b.weight - a.weight).slice(0, most);
}

/** How much larger each weight is in one pattern than in the other. */
export function differenceOf(after: Weights, before: Weights): Weights {
  return { n: after.n, at: (query, key) => after.at(query, key) - before.at(query, key) };
}
