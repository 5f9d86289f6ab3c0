/** Which heads are shown, by options of the address that all pages of all heads share. */
import { useMemo } from "preact/hooks";
import { type HeadEntry, type Tree, useTree } from "../data/tree";
import { setOptions, useRoute } from "../router";

export type Condition = { measure: string; above: boolean; than: number };

export type Filters = {
  /** Part of a head's name, kind or label. */
  find: string;
  /** A kind's name, "none" for heads of no kind, or nothing. */
  kind: string;
  /** First and last layer. */
  layers: readonly [number, number];
  /** `measure` above or below a number. */
  where: Condition | null;
  /** Only selected heads. */
  only: boolean;
};

export const NO_KIND = "none";
const OPTIONS = ["find", "kind", "layers", "where", "only"] as const;

export function readFilters(options: URLSearchParams, tree: Tree): Filters {
  const last = tree.config.n_layers - 1;
  const [from, to] = /^(\d+)-(\d+)$/
    .exec(options.get("layers") ?? "")
    ?.slice(1)
    .map(Number) ?? [0, last];
  return {
    find: options.get("find") ?? "",
    kind: options.get("kind") ?? "",
    layers: [from ?? 0, Math.min(to ?? last, last)],
    where: readCondition(options.get("where") ?? "", tree),
    only: options.get("only") === "1",
  };
}

function readCondition(text: string, tree: Tree): Condition | null {
  const at = text.search(/[<>][^<>]*$/);
  const measure = text.slice(0, at);
  const than = Number(text.slice(at + 1));
  if (at < 0 || !tree.measure(measure) || text.length === at + 1 || Number.isNaN(than)) return null;
  return { measure, above: text[at] === ">", than };
}

export function writeFilters(changes: Partial<Filters>, tree: Tree): void {
  const written: Record<string, string | null> = {};
  const { layers, where } = changes;
  if (changes.find !== undefined) written.find = changes.find;
  if (changes.kind !== undefined) written.kind = changes.kind;
  if (layers) {
    const all = layers[0] === 0 && layers[1] === tree.config.n_layers - 1;
    written.layers = all ? null : `${layers[0]}-${layers[1]}`;
  }
  if (where !== undefined) written.where = where && `${where.measure}${where.above ? ">" : "<"}${where.than}`;
  if (changes.only !== undefined) written.only = changes.only ? "1" : null;
  setOptions(written);
}

export function clearFilters(): void {
  setOptions(Object.fromEntries(OPTIONS.map((option) => [option, null])));
}

/** Tell which heads pass; the answer is the same object while the address says the same. */
export function useShown(): { shown: ReadonlySet<HeadEntry>; filters: Filters; filtered: boolean } {
  const tree = useTree();
  const { options } = useRoute();
  const kept = OPTIONS.map((option) => options.get(option) ?? "");
  const selected = options.get("only") === "1" ? (options.get("sel") ?? "") : "";
  return useMemo(() => {
    const filters = readFilters(options, tree);
    const names = new Set(selected.split(","));
    const passes = (head: HeadEntry) => passed(head, filters, tree) && (!filters.only || names.has(head.name));
    return { shown: new Set(tree.heads.filter(passes)), filters, filtered: kept.some(Boolean) };
  }, [tree, selected, ...kept]);
}

function passed(head: HeadEntry, { find, kind, layers, where }: Filters, tree: Tree): boolean {
  if (head.layer < layers[0] || head.layer > layers[1]) return false;
  if (kind === NO_KIND ? head.kinds.length > 0 : kind !== "" && !head.kinds.includes(kind)) return false;
  if (where) {
    const value = head.value(where.measure);
    if (value === null || (where.above ? value <= where.than : value >= where.than)) return false;
  }
  return find.trim() === "" || matches(head, find.trim().toLowerCase(), tree);
}

/** Every word must be the head's layer ("3."), its name, or part of a kind or label. */
function matches(head: HeadEntry, find: string, tree: Tree): boolean {
  const words = [head.label ?? "", ...head.kinds.map((kind) => tree.kindLabel(kind))].join("\n").toLowerCase();
  return find
    .split(/[\s,]+/)
    .every((word) => (/^\d+\.\d*$/.test(word) ? isNamed(head.name, word) : words.includes(word)));
}

function isNamed(name: string, word: string): boolean {
  return word.endsWith(".") ? name.startsWith(word) : name === word;
}
