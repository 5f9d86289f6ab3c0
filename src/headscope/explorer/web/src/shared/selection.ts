/** The selected heads, shared by all pages of all heads through the address: `sel=3.1,5.0`. */
import { useMemo } from "preact/hooks";
import { type HeadEntry, useTree } from "../data/tree";
import { setOptions, useRoute } from "../router";

export type Selection = {
  heads: HeadEntry[];
  has: (head: HeadEntry) => boolean;
  set: (heads: Iterable<HeadEntry>) => void;
  toggle: (head: HeadEntry) => void;
};

export function useSelection(): Selection {
  const tree = useTree();
  const written = useRoute().options.get("sel") ?? "";
  return useMemo(() => {
    const names = new Set(written.split(","));
    const heads = tree.heads.filter((head) => names.has(head.name));
    const set = (chosen: Iterable<HeadEntry>) => {
      const wanted = new Set(chosen);
      const inOrder = tree.heads.filter((head) => wanted.has(head));
      setOptions({ sel: inOrder.map((head) => head.name).join(",") });
    };
    return {
      heads,
      has: (head) => names.has(head.name),
      set,
      toggle: (head) => set(names.has(head.name) ? heads.filter((other) => other !== head) : [...heads, head]),
    };
  }, [tree, written]);
}
