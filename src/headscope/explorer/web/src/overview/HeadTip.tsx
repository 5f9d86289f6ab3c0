import "./tip.css";
import { useEffect, useState } from "preact/hooks";
import { load } from "../data/load";
import { type HeadEntry, headName, useTree } from "../data/tree";
import type { Head } from "../data/types";
import { withError } from "../format";
import type { Quantity } from "./quantities";

export type Neighbor = { head: HeadEntry; similarity: number };
const REST_MS = 120; // a head's file is read once the pointer rests on it
const MOST = 5;
const WIDEST = 360; // pixels

/** The heads whose behavior is most like that of the head pointed at; none until its file is read. */
export function useNeighbors(head: HeadEntry | null): Neighbor[] {
  const tree = useTree();
  const [found, setFound] = useState<{ of: HeadEntry; neighbors: Neighbor[] } | null>(null);
  useEffect(() => {
    if (!head) return;
    let current = true;
    const timer = setTimeout(() => {
      load(tree.headFile(head.layer, head.head)).then(
        (data) => current && setFound({ of: head, neighbors: known(data) }),
        () => undefined, // no neighbors are shown; the head's page says what is missing
      );
    }, REST_MS);
    const known = (data: Head) =>
      (data.neighbors ?? []).flatMap(({ layer, head: number, similarity }) => {
        const other = tree.head(headName(layer, number));
        return other && other !== head ? [{ head: other, similarity }] : [];
      });
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [tree, head]);
  return head && found?.of === head ? found.neighbors.slice(0, MOST) : [];
}

type Props = {
  head: HeadEntry;
  quantities: Quantity[];
  neighbors: Neighbor[];
  /** In pixels of the box around the plot, which is `width` wide. */
  at: { x: number; y: number };
  width: number;
};

/** What is pointed at: a head's kinds, the values shown, and its neighbors. */
export function HeadTip({ head, quantities, neighbors, at, width }: Props) {
  const tree = useTree();
  const right = at.x > width / 2;
  const style = {
    top: `${at.y}px`,
    left: `${right ? at.x - 14 : at.x + 14}px`,
    transform: `translate(${right ? "-100%" : "0"}, -50%)`,
    maxWidth: `${Math.min(WIDEST, Math.max(180, (right ? at.x : width - at.x) - 20))}px`,
  };
  return (
    <div class="tip" role="status" style={style}>
      <p>
        <b>{head.name}</b> {tree.labelOf(head)}
      </p>
      <dl>
        {quantities.map(({ name, label, value, error }) => (
          <div key={name}>
            <dt>{label}</dt>
            <dd class="number">{withError(value(head), error(head))}</dd>
          </div>
        ))}
        {neighbors.length > 0 && (
          <div>
            <dt>Most alike</dt>
            <dd>
              {neighbors.map((neighbor) => `${neighbor.head.name} (${neighbor.similarity.toFixed(2)})`).join(", ")}
            </dd>
          </div>
        )}
      </dl>
    </div>
  );
}
