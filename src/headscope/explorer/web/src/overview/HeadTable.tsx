import "../tokens/tokens.css";
import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type HeadEntry, useTree } from "../data/tree";
import type { Measure } from "../data/types";
import { withError } from "../format";
import { HeadLink } from "../shared/HeadLink";
import { useSelection } from "../shared/selection";
import { shade } from "../tokens/shades";
import { shareOf } from "./colors";
import { labelWithUnit } from "./quantities";

export type Sorting = { by: string; descending: boolean };
type Props = { heads: HeadEntry[]; measures: Measure[]; sorting: Sorting; onSort: (sorting: Sorting) => void };

const ROW = 32; // pixels; the style sheet holds rows to it
const ALL = 200; // rows that are drawn whole; of more, those in view
const BEYOND = 12; // and some on both sides

export function HeadTable({ heads, measures, sorting, onSort }: Props) {
  const tree = useTree();
  const selection = useSelection();
  const view = useView(heads.length);
  const shares = useMemo(
    () =>
      new Map(
        tree.measures.map(({ name, diverging, better_log }) => [
          name,
          shading(tree.heads, name, diverging, better_log),
        ]),
      ),
    [tree],
  );
  const column = (by: string, label: string, title: string) => (
    <th
      scope="col"
      class={by === "kind" ? "words" : ""}
      aria-sort={sorting.by !== by ? "none" : sorting.descending ? "descending" : "ascending"}
    >
      <button type="button" title={title} onClick={() => onSort({ by, descending: nextOrder(sorting, by) })}>
        {label}
      </button>
    </th>
  );
  const all = heads.length > 0 && heads.every(selection.has);
  const rows = heads.slice(view.first, view.last);
  return (
    <div class="heads" ref={view.box} onScroll={view.onScroll}>
      <table aria-rowcount={heads.length + 1}>
        <thead>
          <tr aria-rowindex={1}>
            <th scope="col">
              <input
                type="checkbox"
                aria-label="Select all heads shown"
                checked={all}
                onChange={() => selection.set(all ? [] : heads)}
              />
            </th>
            {column("head", "Head", "By layer and head")}
            {column("kind", "Kind", "By kind")}
            {measures.map((measure) => column(measure.name, labelWithUnit(measure), measure.description))}
          </tr>
        </thead>
        <tbody>
          <Gap rows={view.first} columns={measures.length + 3} />
          {rows.map((head, at) => (
            <Row
              key={head.name}
              head={head}
              index={view.first + at + 2}
              measures={measures}
              shares={shares}
              selected={selection.has(head)}
              onSelect={selection.toggle}
            />
          ))}
          <Gap rows={heads.length - view.last} columns={measures.length + 3} />
        </tbody>
      </table>
      {heads.length === 0 && <p class="soft empty">No head passes the filters.</p>}
    </div>
  );
}

/** Numbers begin with the largest, words with the first. */
function nextOrder(sorting: Sorting, by: string): boolean {
  if (sorting.by === by) return !sorting.descending;
  return by !== "head" && by !== "kind";
}

type Shade = (head: HeadEntry) => { class: string; style: Record<string, string> };

function shading(heads: HeadEntry[], name: string, diverging: boolean, log: boolean): Shade {
  const { share } = shareOf(
    heads.map((head) => head.value(name)),
    diverging,
    log,
  );
  // Pale enough for a table of numbers.
  return (head) => shade(0.45 * (share(head.value(name)) ?? 0));
}

type RowProps = {
  head: HeadEntry;
  index: number;
  measures: Measure[];
  shares: Map<string, Shade>;
  selected: boolean;
  onSelect: (head: HeadEntry) => void;
};

function Row({ head, index, measures, shares, selected, onSelect }: RowProps): JSX.Element {
  const tree = useTree();
  const kinds = tree.labelOf(head);
  return (
    <tr data-head={head.name} aria-rowindex={index} class={selected ? "chosen" : ""}>
      <td>
        <input type="checkbox" aria-label={`Select ${head.name}`} checked={selected} onChange={() => onSelect(head)} />
      </td>
      <th scope="row">
        <HeadLink name={head.name} />
      </th>
      <td class="words" title={kinds}>
        {kinds}
      </td>
      {measures.map(({ name }) => (
        <td key={name} data-measure={name} {...shares.get(name)?.(head)}>
          {withError(head.value(name), head.error(name))}
        </td>
      ))}
    </tr>
  );
}

/** As tall as the rows that are not drawn. */
function Gap({ rows, columns }: { rows: number; columns: number }) {
  if (rows <= 0) return null;
  return (
    <tr class="gap">
      <td colSpan={columns} style={{ height: `${rows * ROW}px` }} />
    </tr>
  );
}

/** Which rows are in view; all of a short table, and all on paper. */
function useView(count: number) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [printing, setPrinting] = useState(false);
  useEffect(() => {
    const paper = matchMedia("print");
    const listener = () => setPrinting(paper.matches);
    paper.addEventListener("change", listener);
    return () => paper.removeEventListener("change", listener);
  }, []);
  const whole = count <= ALL || printing;
  const tall = Math.ceil((box.current?.clientHeight ?? 900) / ROW);
  const first = whole ? 0 : Math.max(0, Math.min(Math.floor(top / ROW) - BEYOND, count - tall));
  return {
    box,
    first,
    last: whole ? count : Math.min(count, first + tall + 2 * BEYOND),
    onScroll: () => {
      // In steps, so that scrolling by a few pixels draws nothing.
      const step = Math.floor((box.current?.scrollTop ?? 0) / ROW / 4) * ROW * 4;
      if (step !== top) setTop(step);
    },
  };
}
