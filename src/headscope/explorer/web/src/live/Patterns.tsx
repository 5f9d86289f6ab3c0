/** Where every head looks, as small pictures layer by layer. */
import { useMemo, useRef } from "preact/hooks";
import { Thumbnail } from "../tokens/Pattern";
import { walk } from "../tokens/walk";
import { differenceOf, packedWeights, type Weights } from "../tokens/weights";
import type { Change, PatternsAnswer } from "./answers";
import type { View } from "./Effects";

type Props = {
  patterns: PatternsAnswer;
  /** The layer of the first row. */
  first: number;
  view: View;
  chosen: string | null;
  changes: readonly Change[];
  onPick: (component: string) => void;
};

export function Patterns({ patterns, first, view, chosen, changes, onPick }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const rows = useMemo(() => weightsOf(patterns, view), [patterns, view]);
  const names = rows.flatMap((row, layer) => row.map((_, head) => `${first + layer}.${head}`));
  const at = chosen === null ? -1 : names.indexOf(chosen);
  const altered = new Set(changes.map((change) => change.component));
  const pick = (to: number) => {
    const name = names[to];
    if (name) onPick(name);
  };
  return (
    // biome-ignore lint/a11y/useSemanticElements: a group of buttons within the form of the page, not a form's part
    <div
      ref={box}
      class="thumbs"
      role="group"
      aria-label="Attention patterns; arrow keys move from head to head"
      onKeyDown={(event) =>
        walk(event, {
          count: names.length,
          stride: rows[0]?.length ?? 1,
          at: at < 0 ? null : at,
          move: (to) => {
            box.current?.querySelectorAll<HTMLElement>("button")[to]?.focus();
            pick(to);
          },
          pick,
          clear: () => {},
        })
      }
    >
      {rows.map((row, layer) => (
        <div key={first + layer} class="thumbs-row">
          {row.map((weights, head) => {
            const name = `${first + layer}.${head}`;
            return (
              <button
                key={name}
                type="button"
                class={altered.has(name) ? "altered" : ""}
                data-head={name}
                aria-pressed={name === chosen}
                aria-label={`head ${name}${altered.has(name) ? ", changed" : ""}`}
                tabIndex={name === chosen || (at < 0 && layer === 0 && head === 0) ? 0 : -1}
                onClick={() => onPick(name)}
              >
                <Thumbnail weights={weights} size={56} />
                <span>{name}</span>
              </button>
            );
          })}
        </div>
      ))}
    </div>
  );
}

function weightsOf({ before, after, n }: PatternsAnswer, view: View): Weights[][] {
  const unpacked = (rows: string[][]) => rows.map((row) => row.map((text) => packedWeights(text, n)));
  if (!after || view === "before") return unpacked(before);
  const changed = unpacked(after);
  if (view === "after") return changed;
  const plain = unpacked(before);
  return changed.map((row, layer) =>
    row.map((weights, head) => {
      const former = plain[layer]?.[head];
      return former ? differenceOf(weights, former) : weights;
    }),
  );
}
