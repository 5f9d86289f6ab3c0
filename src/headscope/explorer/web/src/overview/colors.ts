/** Colors of heads by what they have: mixed by the style sheet, so that each theme has its own. */
import type { HeadEntry, Tree } from "../data/tree";
import { LAYER, type Quantity, quantity } from "./quantities";

export const KIND = "kind";

export type Coloring = {
  label: string;
  of: (head: HeadEntry) => string;
  scale: { stops: string[]; low: number; high: number; log: boolean; unit: string } | null;
  keys: { name: string; label: string; description: string; color: string; count: number }[];
};

export const MISSING_COLOR = "var(--missing)";
const KIND_COLORS = 9; // --kind-0 to --kind-8

export function coloring(tree: Tree, name: string, log: boolean): Coloring | null {
  if (name === KIND) return byKind(tree);
  const found = quantity(tree, name);
  return found && byQuantity(tree, found, log);
}

/** A head of several kinds has the color of the first that its label would name. */
function byKind(tree: Tree): Coloring {
  const colors = new Map(tree.kinds.map((kind, at) => [kind.name, `var(--kind-${at % KIND_COLORS})`]));
  const first = (head: HeadEntry) => head.kinds[0] ?? "";
  const present = tree.kinds.filter((kind) => tree.heads.some((head) => first(head) === kind.name));
  const none = { name: "none", label: "No kind", description: "Heads of none of these kinds.", color: MISSING_COLOR };
  return {
    label: "Kind",
    of: (head) => colors.get(first(head)) ?? MISSING_COLOR,
    scale: null,
    keys: [...present.map((kind) => ({ ...kind, color: colors.get(kind.name) ?? MISSING_COLOR })), none].map((key) => ({
      ...key,
      count: tree.heads.filter((head) => (first(head) || "none") === key.name).length,
    })),
  };
}

function byQuantity(tree: Tree, found: Quantity, log: boolean): Coloring {
  const isLayer = found.name === LAYER;
  const value = isLayer ? (head: HeadEntry) => head.layer : found.value;
  const shares = shareOf(tree.heads.map(value), found.diverging, log && !isLayer);
  const stops = isLayer ? LAYERS : found.diverging ? DIVERGING : RISING;
  return {
    label: found.label,
    of: (head) => {
      const share = shares.share(value(head));
      return share === null ? MISSING_COLOR : mixed(stops, found.diverging ? (share + 1) / 2 : share);
    },
    scale: { stops, ...shares, log: log && !isLayer, unit: found.unit },
    keys: [],
  };
}

export type Shares = { share: (value: number | null) => number | null; low: number; high: number };

/** Values as shares of their range: from 0 to 1, or from -1 to 1 with zero in the middle. */
export function shareOf(values: readonly (number | null)[], diverging: boolean, log: boolean): Shares {
  const present = values.filter((value) => value !== null);
  if (diverging) {
    const most = present.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
    return { share: (value) => value && value / most, low: -most, high: most };
  }
  const usable = log ? present.filter((value) => value > 0) : present;
  const low = usable.reduce((least, value) => Math.min(least, value), Number.POSITIVE_INFINITY);
  const high = usable.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  if (!(low < high))
    return { share: (value) => (value === null ? null : 1), low: usable[0] ?? 0, high: usable[0] ?? 0 };
  const scaled = log ? Math.log : (value: number) => value;
  return {
    share: (value) => {
      if (value === null || (log && value <= 0)) return null;
      return (scaled(value) - scaled(low)) / (scaled(high) - scaled(low));
    },
    low,
    high,
  };
}

const RISING = ["var(--rise-0)", "var(--rise-1)", "var(--rise-2)"];
const LAYERS = ["var(--layer-0)", "var(--layer-1)", "var(--layer-2)"];
const DIVERGING = ["var(--fall-1)", "var(--fall-0)", "var(--middle)", "var(--rise-1)", "var(--rise-2)"];

/** The color at a share from 0 to 1 of the way through the stops. */
function mixed(stops: readonly string[], share: number): string {
  const along = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const at = Math.min(Math.floor(along), stops.length - 2);
  return `color-mix(in oklab, ${stops[at + 1]} ${(100 * (along - at)).toFixed(1)}%, ${stops[at]})`;
}
