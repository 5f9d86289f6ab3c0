// A head's attention on one text as a square: queries down, keys across.

import "./tokens.css";

import type { JSX } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";

import { useRepaint } from "./repaint";
import { channels, opacity } from "./shades";
import type { Pointed } from "./TokenStrip";
import { walk } from "./walk";
import type { Weights } from "./weights";

/** Paint a pattern; on fewer pixels than tokens each shows the strongest of the pairs that fall on it. */
export function paint(canvas: HTMLCanvasElement, weights: Weights, most: number): void {
  const { n } = weights;
  const size = Math.max(1, Math.min(n, most));
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  if (!context || n === 0) return;
  // The style gives a canvas both colors, by two properties that it does not show.
  const style = getComputedStyle(canvas);
  const positive = channels(style.color);
  const negative = channels(style.outlineColor);
  const kept = new Float32Array(size * size);
  for (let query = 0; query < n; query++) {
    const line = Math.floor((query * size) / n) * size;
    for (let key = 0; key < n; key++) {
      const weight = weights.at(query, key);
      const pixel = line + Math.floor((key * size) / n);
      if (Math.abs(weight) > Math.abs(kept[pixel] ?? 0)) kept[pixel] = weight;
    }
  }
  const image = context.createImageData(size, size);
  kept.forEach((weight, pixel) => {
    image.data.set(weight < 0 ? negative : positive, 4 * pixel);
    image.data[4 * pixel + 3] = 255 * opacity(weight);
  });
  context.putImageData(image, 0, 0);
}

/** A small picture of a pattern. */
export function Thumbnail({ weights, size = 64 }: { weights: Weights; size?: number }): JSX.Element {
  const canvas = useRef<HTMLCanvasElement>(null);
  const repaint = useRepaint();
  useLayoutEffect(() => {
    if (canvas.current) paint(canvas.current, weights, size);
  }, [weights, size, repaint]);
  return <canvas ref={canvas} class="thumbnail" style={{ width: `${size}px`, height: `${size}px` }} />;
}

type Props = {
  weights: Weights;
  label: string;
  pointed: Pointed | null;
  /** The token whose row is kept. */
  pinned: number | null;
  onPoint(pointed: Pointed | null): void;
  /** A cell was clicked, or Enter was pressed on it. */
  onPick(query: number, key: number): void;
};

/** The whole pattern: point at a cell by mouse or arrow keys. */
export function Pattern({ weights, label, pointed, pinned, onPoint, onPick }: Props): JSX.Element {
  const { n } = weights;
  const canvas = useRef<HTMLCanvasElement>(null);
  const cursor = useRef<number | null>(null);
  const repaint = useRepaint();
  useLayoutEffect(() => {
    if (canvas.current) paint(canvas.current, weights, 512);
  }, [weights, repaint]);

  const cell = (event: PointerEvent | MouseEvent): [number, number] => {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const clamp = (share: number) => Math.max(0, Math.min(n - 1, Math.floor(share * n)));
    return [clamp((event.clientY - box.top) / box.height), clamp((event.clientX - box.left) / box.width)];
  };
  const point = (at: number | null) => {
    cursor.current = at;
    onPoint(at === null ? null : { query: Math.floor(at / n), key: at % n });
  };
  const row = pinned ?? pointed?.query ?? null;
  const column = pinned === null ? (pointed?.key ?? null) : null;
  const line = (at: number) => ({ offset: `${(100 * at) / n}%`, width: `max(3px, ${100 / n}%)` });
  return (
    <div
      class="pattern"
      // biome-ignore lint/a11y/noNoninteractiveTabindex: the arrow keys work in it
      tabIndex={0}
      role="application"
      aria-label={`${label}, from each of ${n} tokens to each. Arrow keys move from cell to cell.`}
      onPointerMove={(event) => {
        const [query, key] = cell(event);
        point(query * n + key);
      }}
      onPointerLeave={() => point(null)}
      onBlur={() => point(null)}
      onClick={(event) => onPick(...cell(event))}
      onKeyDown={(event) =>
        walk(event, {
          count: n * n,
          stride: n,
          at: cursor.current,
          move: point,
          pick: (at) => onPick(Math.floor(at / n), at % n),
          clear: () => point(null),
        })
      }
    >
      <canvas ref={canvas} />
      {row !== null && <i style={{ top: line(row).offset, height: line(row).width, left: "0", right: "0" }} />}
      {column !== null && <i style={{ left: line(column).offset, width: line(column).width, top: "0", bottom: "0" }} />}
    </div>
  );
}
