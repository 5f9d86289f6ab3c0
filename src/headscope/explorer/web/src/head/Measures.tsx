// All measures of a head, with their errors, and where the head stands among all.

import { Fragment, type JSX } from "preact";

import { type HeadEntry, type Tree, useTree } from "../data/tree";
import type { Estimate, Head, Measure } from "../data/types";
import { count, MISSING, number, withError } from "../format";
import { Standing } from "./charts";

export const GROUPS: Record<Measure["group"], string> = {
  attention: "Where it looks",
  prediction: "What it does to the prediction",
  ablation: "What is lost without it",
  copying: "Copying and suppressing",
  activity: "How active it is",
};

/** A head's estimate of a measure: from its own file, else from the overview. */
export function estimate(entry: HeadEntry, head: Head | null, measure: Measure): Estimate {
  return (
    head?.measures?.[measure.name] ?? {
      value: entry.value(measure.name),
      error: entry.error(measure.name),
      count: measure.count,
    }
  );
}

/** Every head's value of a measure, as far as it was measured. */
export function valuesOf(tree: Tree, measure: Measure): number[] {
  return tree.heads.map((entry) => entry.value(measure.name)).filter((value) => value !== null);
}

/** 1 for the head with the largest value. */
export function rankOf(value: number, all: readonly number[]): number {
  return 1 + all.filter((other) => other > value).length;
}

/** Measures by their groups, in the order of the tree. */
function grouped(measures: readonly Measure[]): [string, Measure[]][] {
  const groups = new Map<string, Measure[]>();
  for (const measure of measures) {
    const title = GROUPS[measure.group];
    groups.set(title, [...(groups.get(title) ?? []), measure]);
  }
  return [...groups];
}

/** A measure's name; what it means is said on hover and to screen readers. */
export function MeasureName({ measure }: { measure: Measure }): JSX.Element {
  return (
    <span class="measure-name" title={measure.description}>
      {measure.label}
      {measure.unit && <small class="soft"> {measure.unit}</small>}
    </span>
  );
}

type TableProps = { columns: { name: string; class: string }[]; row: (measure: Measure) => JSX.Element };

/** A table of all measures by their groups; `row` draws one of them. */
export function MeasureTable({ columns, row }: TableProps): JSX.Element {
  const tree = useTree();
  return (
    <div class="scroll">
      <table class="measures">
        <thead>
          <tr>
            <th scope="col">measure</th>
            {columns.map((column) => (
              <th key={column.name} scope="col" class={column.class}>
                {column.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {grouped(tree.measures).map(([title, measures]) => (
            <Fragment key={title}>
              <tr class="group">
                <th scope="rowgroup" colSpan={columns.length + 1}>
                  {title}
                </th>
              </tr>
              {measures.map(row)}
            </Fragment>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const COLUMNS = [
  { name: "value ± standard error", class: "value" },
  { name: "rank", class: "rank" },
  { name: "among all heads", class: "strip-column" },
  { name: "measured on", class: "value counted" },
];

export function Measures({ entry, head }: { entry: HeadEntry; head: Head }): JSX.Element {
  return (
    <MeasureTable
      columns={COLUMNS}
      row={(measure) => <Row key={measure.name} entry={entry} head={head} measure={measure} />}
    />
  );
}

function Row({ entry, head, measure }: { entry: HeadEntry; head: Head; measure: Measure }): JSX.Element {
  const tree = useTree();
  const { value, error, count: measured } = estimate(entry, head, measure);
  const all = valuesOf(tree, measure);
  return (
    <tr data-measure={measure.name}>
      <th scope="row">
        <MeasureName measure={measure} />
      </th>
      {value === null ? (
        <td class="missing" colSpan={4}>
          not measured
        </td>
      ) : (
        <>
          <td class="value">{withError(value, error, { signed: measure.diverging })}</td>
          <td class="rank">
            {rankOf(value, all)}
            <small class="soft"> of {count(all.length)}</small>
          </td>
          <td class="strip-column" title={`all heads: ${number(Math.min(...all))} to ${number(Math.max(...all))}`}>
            <Standing
              values={all}
              marks={[{ value, kind: "one" }]}
              log={measure.better_log}
              diverging={measure.diverging}
            />
          </td>
          <td class="value counted">{measured ? `${count(measured)} ${measure.count_unit}` : MISSING}</td>
        </>
      )}
    </tr>
  );
}
