import "./overview.css";
import "./table.css";
import { useMemo, useState } from "preact/hooks";
import { type HeadEntry, type Tree, useTree } from "../data/tree";
import type { Measure } from "../data/types";
import { setOptions, useRoute } from "../router";
import { useKeys } from "../shared/keys";
import { useSelection } from "../shared/selection";
import { copy, csv } from "./csv";
import { FilterBar } from "./Filters";
import { useShown } from "./filters";
import { HeadTable, type Sorting } from "./HeadTable";
import { GROUPS, grouped } from "./quantities";

const BY_PLACE: Sorting = { by: "head", descending: false };

export function TablePage() {
  const tree = useTree();
  const { shown } = useShown();
  const selection = useSelection();
  const { options } = useRoute();
  const groups = useGroups(tree);
  const sort = options.get("sort") ?? "";
  const sorting = useMemo(() => readSorting(sort, tree), [sort, tree]);
  const measures = tree.measures.filter(({ group }) => groups.shown.has(group));
  const heads = useMemo(
    () =>
      sorted(
        tree.heads.filter((head) => shown.has(head)),
        sorting,
        tree,
      ),
    [tree, shown, sorting],
  );
  useKeys("Table", [{ key: "Escape", label: "Select nothing", run: () => selection.set([]) }]);
  return (
    <>
      <h1 class="unseen">All heads in a table</h1>
      <FilterBar />
      <div class="fields">
        <fieldset class="groups" aria-label="Columns">
          {grouped(tree.measures).map(([label, [first]]) => (
            <label key={label} class="field check">
              <input
                type="checkbox"
                checked={groups.shown.has(first?.group ?? "")}
                onChange={() => groups.toggle(first?.group ?? "")}
              />
              <span>{label}</span>
            </label>
          ))}
        </fieldset>
        <CopyButton heads={heads} measures={measures} />
      </div>
      <HeadTable heads={heads} measures={measures} sorting={sorting} onSort={writeSorting} />
      <p class="soft caption">± is one standard error. A dash is a value that was not measured.</p>
    </>
  );
}

/** "entropy_diff" sorts from the least on, "-entropy_diff" from the most. */
function readSorting(text: string, tree: Tree): Sorting {
  const descending = text.startsWith("-");
  const by = descending ? text.slice(1) : text;
  return by === "kind" || by === "head" || tree.measure(by) ? { by, descending } : BY_PLACE;
}

function writeSorting({ by, descending }: Sorting): void {
  const plain = by === BY_PLACE.by && descending === BY_PLACE.descending;
  setOptions({ sort: plain ? null : `${descending ? "-" : ""}${by}` });
}

/** In order; heads without a value come last either way. */
function sorted(heads: HeadEntry[], { by, descending }: Sorting, tree: Tree): HeadEntry[] {
  const sign = descending ? -1 : 1;
  if (by === "head") return descending ? [...heads].reverse() : heads;
  if (by === "kind") {
    const text = (head: HeadEntry) => tree.labelOf(head);
    const rank = (head: HeadEntry) => (text(head) ? 0 : 1);
    return [...heads].sort((one, other) => rank(one) - rank(other) || sign * text(one).localeCompare(text(other)));
  }
  return [...heads].sort((one, other) => {
    const [a, b] = [one.value(by), other.value(by)];
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    return sign * (a - b);
  });
}

/** Which groups of measures have columns: `groups=attention,ablation`, all of them without. */
function useGroups(tree: Tree): { shown: ReadonlySet<string>; toggle: (group: string) => void } {
  const written = useRoute().options.get("groups");
  const all = Object.keys(GROUPS).filter((group) => tree.measures.some((measure) => measure.group === group));
  const shown = new Set<string>(written === null ? all : written.split(","));
  return {
    shown,
    toggle: (group) => {
      const next = all.filter((other) => shown.has(other) !== (other === group));
      setOptions({ groups: next.length === all.length ? null : next.join(",") || "-" });
    },
  };
}

function CopyButton({ heads, measures }: { heads: HeadEntry[]; measures: Measure[] }) {
  const [said, setSaid] = useState("");
  const run = async () => {
    const done = await copy(csv(heads, measures));
    setSaid(done ? `Copied ${heads.length} rows.` : "The browser does not let this page copy.");
    setTimeout(() => setSaid(""), 4000);
  };
  return (
    <span class="copy">
      <span class="soft" aria-live="polite">
        {said}
      </span>
      <button type="button" class="button" onClick={run}>
        Copy as CSV
      </button>
    </span>
  );
}
