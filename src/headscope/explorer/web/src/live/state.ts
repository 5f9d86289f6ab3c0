/** What is asked of the model, as the address keeps it, and its undo history. */
import { parseHead } from "../format";
import type { Action, Change, State } from "./answers";

export const EMPTY: State = {
  prompt: "",
  other: null,
  prepend_bos: null,
  changes: [],
  position: -1,
  target: null,
  top: 10,
};

const ACTIONS: readonly Action[] = ["zero", "mean", "scale", "patch"];

/** The state as text for an address. */
export function encode(state: State): string {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The state that an address holds; null where it holds none, or one that is not of this page. */
export function decode(text: string | null): State | null {
  if (!text) return null;
  try {
    const raw = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(raw, (char) => char.charCodeAt(0));
    return checked(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    return null; // no base64, or no JSON
  }
}

function checked(found: unknown): State | null {
  if (typeof found !== "object" || found === null) return null;
  const { prompt, other, prepend_bos, changes, position, target, top } = found as Record<string, unknown>;
  const whole = (value: unknown) => typeof value === "number" && Number.isInteger(value);
  if (typeof prompt !== "string" || !(other === null || typeof other === "string")) return null;
  if (!(prepend_bos === null || typeof prepend_bos === "boolean")) return null;
  if (!whole(position) || !whole(top) || !(target === null || whole(target))) return null;
  if (!Array.isArray(changes) || !changes.every(isChange)) return null;
  return { prompt, other, prepend_bos, changes, position, target, top } as State;
}

function isChange(found: unknown): found is Change {
  if (typeof found !== "object" || found === null) return false;
  const { component, action, factor, positions } = found as Record<string, unknown>;
  return (
    typeof component === "string" &&
    ACTIONS.includes(action as Action) &&
    (factor === null || (typeof factor === "number" && Number.isFinite(factor))) &&
    (positions === null || (Array.isArray(positions) && positions.every(Number.isInteger)))
  );
}

export type History = { past: State[]; now: State; future: State[] };

const LONGEST = 200;

/** Go on to another state, which undo takes back. */
export function advance(history: History, next: State): History {
  if (encode(next) === encode(history.now)) return history;
  return { past: [...history.past, history.now].slice(-LONGEST), now: next, future: [] };
}

export function undo({ past, now, future }: History): History {
  const last = past.at(-1);
  return last ? { past: past.slice(0, -1), now: last, future: [now, ...future] } : { past, now, future };
}

export function redo({ past, now, future }: History): History {
  const [next, ...rest] = future;
  return next ? { past: [...past, now], now: next, future: rest } : { past, now, future };
}

/** The state with this change in the place of the component's former one; null leaves the component as it is. */
export function withChange(state: State, component: string, change: Change | null): State {
  const at = state.changes.findIndex((other) => other.component === component);
  const changes = state.changes.filter((other) => other.component !== component);
  if (change) changes.splice(at < 0 ? changes.length : at, 0, change);
  return { ...state, changes };
}

/** "head 3.1", "MLP 3". */
export function componentTitle(component: string): string {
  if (parseHead(component)) return `head ${component}`;
  return component.replace(/^mlp/, "MLP ").replace(/^mixer/, "mixer ");
}

const WORDS: Record<Action, string> = {
  zero: "off (zero)",
  mean: "off (mean)",
  scale: "times",
  patch: "from the second prompt",
};

/** "head 3.1 times 0.5 at 3–5", in words. */
export function changeTitle({ component, action, factor, positions }: Change): string {
  const where = positions ? ` at ${rangesOf(positions)}` : "";
  return `${componentTitle(component)} ${WORDS[action]}${factor === null ? "" : ` ${factor}`}${where}`.replaceAll(
    "-",
    "−",
  );
}

/** [3, 4, 5, 8] as "3–5, 8". */
export function rangesOf(positions: readonly number[]): string {
  const sorted = [...new Set(positions)].sort((a, b) => a - b);
  const runs: [number, number][] = [];
  for (const position of sorted) {
    const last = runs.at(-1);
    if (last && position === last[1] + 1) last[1] = position;
    else runs.push([position, position]);
  }
  return runs.map(([from, to]) => (from === to ? String(from) : `${from}–${to}`)).join(", ");
}

/** Positions written as "3-5, 8"; null for none written, and the part that is not understood where there is one. */
export function parsePositions(text: string, n: number): number[] | null | { wrong: string } {
  const positions = new Set<number>();
  for (const part of text.split(/[,\s]+/).filter(Boolean)) {
    const found = /^(\d+)(?:[-–](\d+))?$/.exec(part);
    const from = Number(found?.[1]);
    const to = Number(found?.[2] ?? found?.[1]);
    if (!found || from > to || to >= n) return { wrong: part };
    for (let position = from; position <= to; position++) positions.add(position);
  }
  return positions.size ? [...positions].sort((a, b) => a - b) : null;
}
