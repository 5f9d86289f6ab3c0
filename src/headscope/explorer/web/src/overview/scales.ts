/** Axes of plots: where a value stands, and which values are marked. */
import { type ScaleContinuousNumeric, scaleLinear, scaleLog, scaleSymlog } from "d3-scale";
import type { HeadEntry } from "../data/tree";
import { LAYER, type Quantity } from "./quantities";

export type Axis = {
  quantity: Quantity;
  log: boolean;
  /** In pixels; null where the head has no value, or none that a logarithm has. */
  place: (head: HeadEntry) => number | null;
  at: (value: number) => number;
  domain: readonly [number, number];
  ticks: { at: number; text: string }[];
};

export function axis(
  quantity: Quantity,
  log: boolean,
  heads: readonly HeadEntry[],
  pixels: readonly [number, number],
): Axis {
  const values = heads.map(quantity.value).filter((value) => value !== null);
  const positive = log && !quantity.diverging ? values.filter((value) => value > 0) : values;
  const scale = log ? (quantity.diverging ? symlog(positive) : logarithmic(positive)) : linear(quantity, values);
  scale.range([...pixels]);
  const [low = 0, high = 1] = scale.domain();
  const lengths = Math.abs(pixels[1] - pixels[0]);
  const usable = (value: number | null): value is number => value !== null && (value > 0 || !log || quantity.diverging);
  return {
    quantity,
    log,
    domain: [low, high],
    at: (value) => scale(value),
    place: (head) => {
      const value = quantity.value(head);
      return usable(value) ? scale(value) : null;
    },
    ticks: ticksOf(quantity, log, scale, lengths),
  };
}

type Scale = ScaleContinuousNumeric<number, number>;

function extent(values: readonly number[]): [number, number] {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : [0, 1];
}

/** A twentieth of room on both sides; shares begin at zero, and nothing goes beyond what is possible. */
function linear(quantity: Quantity, values: readonly number[]): Scale {
  let [low, high] = extent(values);
  if (quantity.range?.[0] === 0) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  const [least, most] = quantity.range ?? [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
  if (quantity.name === LAYER) return scaleLinear().domain([least, most]);
  const from = low === 0 && quantity.range?.[0] === 0 ? -room / 2 : low - room;
  return scaleLinear().domain([from, Math.min(high + room, most + room / 2)]);
}

function logarithmic(values: readonly number[]): Scale {
  const [low, high] = extent(values.length > 0 ? values : [1]);
  const room = (high / low) ** 0.05 * 1.02;
  return scaleLog().domain([low / room, high * room]);
}

/** Logarithmic on both sides of zero, and linear within the smallest tenth of the values. */
function symlog(values: readonly number[]): Scale {
  const sizes = values
    .map(Math.abs)
    .filter((size) => size > 0)
    .sort((one, other) => one - other);
  const [low, high] = extent(values);
  const scale = scaleSymlog().constant(sizes[Math.floor(sizes.length / 10)] ?? 1);
  const [from, to] = [low, high].map((end) => scale.domain([low, high]).range([0, 1])(end));
  const room = ((to ?? 1) - (from ?? 0)) * 0.05;
  return scale.domain([scale.invert((from ?? 0) - room), scale.invert((to ?? 1) + room)]);
}

function ticksOf(quantity: Quantity, log: boolean, scale: Scale, length: number): Axis["ticks"] {
  const [low = 0, high = 1] = scale.domain();
  const most = Math.max(2, Math.floor(length / 70));
  if (quantity.name === LAYER) {
    const step = Math.max(1, Math.ceil((high - low) / Math.max(2, length / 30)));
    const layers = Array.from({ length: Math.ceil(high) }, (_, layer) => layer).filter((layer) => layer % step === 0);
    return layers.map((layer) => ({ at: scale(layer), text: String(layer) }));
  }
  if (!log) {
    const format = scale.tickFormat(most);
    return scale.ticks(most).map((value) => ({ at: scale(value), text: format(value) }));
  }
  const within = (values: number[]) => values.filter((value) => value >= low && value <= high);
  const powers = powersOfTen(low, high, quantity.diverging ? smallest(scale) / 10 : 0);
  const finer = powers.flatMap((power) => (power === 0 ? [0] : [power, 2 * power, 5 * power]));
  const values = within(within(powers).length < 4 ? finer.sort((one, other) => one - other) : powers);
  return thinned(
    values.map((value) => ({ at: scale(value), text: powerText(value) })),
    28,
  );
}

function smallest(scale: Scale): number {
  return "constant" in scale && typeof scale.constant === "function" ? Number(scale.constant()) : 1;
}

/** Powers of ten in a range that may go over zero, none of them smaller than `least`. */
function powersOfTen(low: number, high: number, least: number): number[] {
  const powers = (from: number, to: number): number[] => {
    const first = Math.floor(Math.log10(Math.max(from, least || from)));
    const last = Math.floor(Math.log10(to));
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, at) => 10 ** (first + at)).filter(
      (power) => power >= least,
    );
  };
  if (low > 0) return powers(low, high);
  const below = low < 0 ? powers(least, -low).map((power) => -power) : [];
  const above = high > 0 ? powers(least, high) : [];
  return [...below.reverse(), 0, ...above];
}

function powerText(value: number): string {
  const size = Math.abs(value);
  const text =
    size === 0 || (size >= 0.001 && size < 100_000) ? String(Number(size.toPrecision(3))) : size.toExponential(0);
  return (value < 0 ? "−" : "") + text.replace("e+", "e").replace("e-", "e−");
}

/** Ticks whose texts do not run into each other. */
function thinned(ticks: Axis["ticks"], apart: number): Axis["ticks"] {
  const kept: Axis["ticks"] = [];
  for (const tick of ticks) {
    const last = kept.at(-1);
    if (!last || Math.abs(tick.at - last.at) >= apart || tick.text === "0") {
      if (tick.text === "0" && last && Math.abs(tick.at - last.at) < apart) kept.pop();
      kept.push(tick);
    }
  }
  return kept;
}
