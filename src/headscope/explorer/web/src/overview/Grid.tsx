import "../tokens/tokens.css";
import "./grid.css";
import { useMemo, useState } from "preact/hooks";
import { type HeadEntry, headName, useTree } from "../data/tree";
import { go } from "../router";
import { headAddress } from "../shared/HeadLink";
import { useSelection } from "../shared/selection";
import { useWidth } from "../shared/useWidth";
import { shade } from "../tokens/shades";
import { shareOf } from "./colors";
import { ARROWS } from "./geometry";
import { HeadTip, useNeighbors } from "./HeadTip";
import { ColorBar } from "./Legend";
import type { Quantity } from "./quantities";

const MOST_CELL = 72; // pixels
const FIRST_COLUMN = 30;
const ROOM_FOR_NUMBER = 40;

type Props = { quantity: Quantity; log: boolean; shown: ReadonlySet<HeadEntry> };

/** Layers down, heads across. */
export function Grid({ quantity, log, shown }: Props) {
  const tree = useTree();
  const { n_layers, n_heads } = tree.config;
  const selection = useSelection();
  const [box, width] = useWidth<HTMLDivElement>();
  const [pointed, setPointed] = useState<HeadEntry | null>(null);
  const neighbors = useNeighbors(pointed);
  const shares = useMemo(() => shareOf(tree.heads.map(quantity.value), quantity.diverging, log), [tree, quantity, log]);
  const format = useMemo(() => cellFormat(tree.heads.map(quantity.value)), [tree, quantity]);
  const cell = Math.max(9, Math.min(MOST_CELL, Math.floor((width - FIRST_COLUMN) / n_heads)));
  const place = (head: HeadEntry) => ({
    x: FIRST_COLUMN + (head.head + 0.5) * cell,
    y: FIRST_COLUMN / 2 + 8 + (head.layer + 0.5) * cell,
  });
  const headOf = (event: Event) => {
    const found = event.target instanceof Element ? event.target.closest<HTMLElement>("[data-head]") : null;
    return tree.head(found?.dataset.head ?? "") ?? null;
  };
  const press = (event: PointerEvent) => {
    const head = headOf(event);
    if (!head || !shown.has(head)) return;
    if (event.shiftKey || event.ctrlKey || event.metaKey) selection.toggle(head);
    else if (event.pointerType === "touch" && head !== pointed) setPointed(head);
    else go(headAddress(head.name));
  };
  const keyed = (event: KeyboardEvent) => {
    const towards = ARROWS[event.key];
    if (towards) {
      const from = pointed ?? { layer: 0, head: -towards.x };
      const to = tree.head(headName(from.layer + towards.y, from.head + towards.x)) ?? (pointed ? null : tree.heads[0]);
      if (to) setPointed(to);
    } else if (event.key === "Enter" && pointed) go(headAddress(pointed.name));
    else if (event.key === " " && pointed) selection.toggle(pointed);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const near = new Set(neighbors.map(({ head }) => head));
  return (
    <div ref={box} class="head-grid-box">
      <ColorBar
        label={quantity.label}
        unit={quantity.unit}
        stops={quantity.diverging ? STOPS.diverging : STOPS.rising}
        low={shares.low}
        high={shares.high}
        log={log}
      />
      {width > 0 && (
        <div
          class={`head-grid${cell < ROOM_FOR_NUMBER ? " small" : ""}`}
          style={{ "--cell": `${cell}px`, "--columns": String(n_heads) }}
          // biome-ignore lint/a11y/noNoninteractiveTabindex: the arrow keys work in it
          tabIndex={0}
          role="application"
          aria-label={`${quantity.label} of ${n_layers} layers of ${n_heads} heads. Arrow keys move from head to head, Enter opens, Space selects.`}
          onPointerOver={(event) => event.pointerType !== "touch" && setPointed(headOf(event))}
          onPointerLeave={(event) => event.pointerType !== "touch" && setPointed(null)}
          onPointerUp={press}
          onBlur={() => setPointed(null)}
          onKeyDown={keyed}
        >
          <span />
          {Array.from({ length: n_heads }, (_, head) => (
            <span key={head} class="index">
              {cell >= 18 || head % 4 === 0 ? head : ""}
            </span>
          ))}
          {Array.from({ length: n_layers }, (_, layer) => [
            <span key={layer} class="index">
              {cell >= 18 || layer % 4 === 0 ? layer : ""}
            </span>,
            ...Array.from({ length: n_heads }, (_, head) => {
              const entry = tree.head(headName(layer, head));
              if (!entry) return <span key={headName(layer, head)} />;
              const value = quantity.value(entry);
              const look = shade(shares.share(value) ?? 0);
              const marks =
                (value === null ? " missing-cell" : "") +
                (shown.has(entry) ? "" : " faint") +
                (selection.has(entry) ? " chosen" : "") +
                (entry === pointed ? " at" : near.has(entry) ? " near" : "");
              return (
                <span key={entry.name} data-head={entry.name} class={`cell ${look.class}${marks}`} style={look.style}>
                  {cell >= ROOM_FOR_NUMBER && format(value)}
                </span>
              );
            }),
          ])}
          {pointed && (
            <HeadTip
              head={pointed}
              quantities={[quantity]}
              neighbors={neighbors}
              at={{ x: place(pointed).x + (place(pointed).x > width / 2 ? -cell / 2 : cell / 2), y: place(pointed).y }}
              width={width}
            />
          )}
        </div>
      )}
      <p class="soft caption">Layers down, heads across. Hatched: not measured.</p>
    </div>
  );
}

const STOPS = {
  rising: ["color-mix(in srgb, var(--pos) 6%, transparent)", "color-mix(in srgb, var(--pos) 90%, transparent)"],
  diverging: [
    "color-mix(in srgb, var(--neg) 90%, transparent)",
    "color-mix(in srgb, var(--neg) 6%, transparent)",
    "color-mix(in srgb, var(--pos) 6%, transparent)",
    "color-mix(in srgb, var(--pos) 90%, transparent)",
  ],
};

/** Numbers with as many decimals as the largest of them has room for in a cell. */
function cellFormat(values: readonly (number | null)[]): (value: number | null) => string {
  const largest = values.reduce<number>((most, value) => Math.max(most, Math.abs(value ?? 0)), 0);
  const decimals = Math.max(0, 2 - Math.max(0, Math.floor(Math.log10(largest || 1))));
  const tiny = largest < 0.05;
  return (value) => {
    if (value === null) return "";
    const text = tiny && value !== 0 ? value.toExponential(0) : value.toFixed(decimals);
    return text.replaceAll("-", "−").replace(/^−(0\.?0*)$/, "$1");
  };
}
