import "./scatter.css";
import { useLayoutEffect, useMemo, useState } from "preact/hooks";
import { type HeadEntry, useTree } from "../data/tree";
import { go } from "../router";
import { headAddress } from "../shared/HeadLink";
import { useSelection } from "../shared/selection";
import { useWidth } from "../shared/useWidth";
import type { Choices } from "./choices";
import type { Coloring } from "./colors";
import { ARROWS, type Box, boxOf, extremes, isIn, labels, nearest, next, type Place, type Point } from "./geometry";
import { HeadTip, useNeighbors } from "./HeadTip";
import { labelWithUnit, type Quantity } from "./quantities";
import { type Axis, axis } from "./scales";

const REACH = 24; // pixels from a point that still point at it
const MOVED = 4; // and from where a press began that make it a brush
const MOST_LABELS = 40;
const EXTREMES = 7;

type Props = {
  x: Quantity;
  y: Quantity;
  log: Choices["log"];
  coloring: Coloring;
  /** What is told of a head pointed at. */
  told: Quantity[];
  shown: ReadonlySet<HeadEntry>;
};

/** All heads as points. Point at one, open it by a click, select many by dragging over them. */
export function Scatter({ x, y, log, coloring, told, shown }: Props) {
  const tree = useTree();
  const selection = useSelection();
  const [box, width] = useWidth<HTMLDivElement>();
  const [pointed, setPointed] = useState<HeadEntry | null>(null);
  const [brush, setBrush] = useState<{ from: Point; to: Point } | null>(null);
  const neighbors = useNeighbors(pointed);

  const frame = useMemo(() => frameOf(width), [width]);
  const { across, up, places } = useMemo(() => {
    const across = axis(x, log.x, tree.heads, [frame.left, frame.right]);
    const up = axis(y, log.y, tree.heads, [frame.bottom, frame.top]);
    const places = tree.heads.flatMap((head) => {
      const [right, down] = [across.place(head), up.place(head)];
      return right === null || down === null ? [] : [{ head, x: right, y: down }];
    });
    return { across, up, places };
  }, [tree, x.name, y.name, log.x, log.y, frame]);
  const open = useMemo(() => places.filter(({ head }) => shown.has(head)), [places, shown]);
  const byHead = useMemo(() => new Map(places.map((place) => [place.head, place])), [places]);
  const placeOf = (head: HeadEntry) => byHead.get(head) ?? null;
  const at = pointed && placeOf(pointed);
  const radius = tree.heads.length > 600 ? 3.6 : tree.heads.length > 200 ? 4.2 : 5.2;

  const select = (area: Box, add: boolean) => {
    const inside = open.filter((place) => isIn(place, area)).map(({ head }) => head);
    selection.set(add ? [...selection.heads, ...inside] : inside);
  };
  const pointer = usePointer({
    onPoint: (point) => setPointed(point && (nearest(open, point, REACH)?.head ?? null)),
    onBrush: setBrush,
    onBrushed: ({ from, to }, add) => select(boxOf(from, to), add),
    onPress: (point, { add, touch }) => {
      const head = nearest(open, point, REACH)?.head;
      if (!head) selection.set([]);
      else if (add) selection.toggle(head);
      else if (touch && head !== pointed) setPointed(head);
      else go(headAddress(head.name));
    },
  });
  const keyed = (event: KeyboardEvent) => {
    const towards = ARROWS[event.key];
    if (towards) {
      const middle = { x: (frame.left + frame.right) / 2, y: (frame.top + frame.bottom) / 2 };
      const to = at ? next(open, at, towards) : nearest(open, middle, Number.POSITIVE_INFINITY);
      if (to) setPointed(to.head);
    } else if (event.key === "Enter" && pointed) go(headAddress(pointed.name));
    else if (event.key === " " && pointed) selection.toggle(pointed);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };

  const missing = tree.heads.filter((head) => shown.has(head) && !placeOf(head));
  return (
    <>
      <div class="scatter" ref={box}>
        {width > 0 && (
          <svg
            width={frame.width}
            height={frame.height}
            viewBox={`0 0 ${frame.width} ${frame.height}`}
            // biome-ignore lint/a11y/noNoninteractiveTabindex: the arrow keys work in it
            tabIndex={0}
            role="application"
            aria-label={`${open.length} heads, ${y.label} against ${x.label}. Arrow keys move from head to head, Enter opens, Space selects.`}
            class={brush ? "brushing" : pointed ? "pointing" : ""}
            {...pointer}
            onKeyDown={keyed}
            onBlur={() => setPointed(null)}
          >
            <Axes across={across} up={up} frame={frame} />
            <Dots places={places} shown={shown} coloring={coloring} radius={radius} />
            <Selected selected={selection.heads} placeOf={placeOf} across={across} up={up} radius={radius} />
            <g class="alike">
              {at &&
                neighbors.map(({ head }) => {
                  const to = placeOf(head);
                  return (
                    to && (
                      <g key={head.name} data-neighbor={head.name}>
                        <path d={`M${at.x} ${at.y}L${to.x} ${to.y}`} />
                        <circle cx={to.x} cy={to.y} r={radius + 3} />
                      </g>
                    )
                  );
                })}
            </g>
            <Labels places={open} selected={selection.heads} placeOf={placeOf} frame={frame} radius={radius} />
            {at && <circle class="pointed" cx={at.x} cy={at.y} r={radius + 3} />}
            {brush && <BrushBox {...boxOf(brush.from, brush.to)} />}
          </svg>
        )}
        {at && !brush && <HeadTip head={at.head} quantities={told} neighbors={neighbors} at={at} width={frame.width} />}
      </div>
      {missing.length > 0 && <Missing heads={missing} axes={[across, up]} />}
    </>
  );
}

type Frame = Box & { width: number; height: number };

function frameOf(width: number): Frame {
  const height = Math.round(Math.max(320, Math.min(620, width * 0.72)));
  return { width, height, left: width < 480 ? 54 : 60, right: width - 14, top: 10, bottom: height - 46 };
}

function Axes({ across, up, frame }: { across: Axis; up: Axis; frame: Frame }) {
  return useMemo(() => {
    const named = ({ quantity, log }: Axis) => labelWithUnit(quantity) + (log ? ", log" : "");
    const zero = ({ quantity, domain }: Axis) => quantity.diverging && domain[0] < 0 && domain[1] > 0;
    return (
      <g class="axes">
        {across.ticks.map(({ at, text }) => (
          <g key={text}>
            <path d={`M${at} ${frame.top}V${frame.bottom}`} />
            <text x={at} y={frame.bottom + 17} text-anchor="middle">
              {text}
            </text>
          </g>
        ))}
        {up.ticks.map(({ at, text }) => (
          <g key={text}>
            <path d={`M${frame.left} ${at}H${frame.right}`} />
            <text x={frame.left - 7} y={at} dy="0.32em" text-anchor="end">
              {text}
            </text>
          </g>
        ))}
        {zero(across) && <path class="zero" d={`M${across.at(0)} ${frame.top}V${frame.bottom}`} />}
        {zero(up) && <path class="zero" d={`M${frame.left} ${up.at(0)}H${frame.right}`} />}
        <text class="name" x={(frame.left + frame.right) / 2} y={frame.height - 6} text-anchor="middle">
          {named(across)}
        </text>
        <text
          class="name"
          transform={`translate(13 ${(frame.top + frame.bottom) / 2}) rotate(-90)`}
          text-anchor="middle"
        >
          {named(up)}
        </text>
      </g>
    );
  }, [across, up, frame]);
}

type DotsProps = { places: readonly Place[]; shown: ReadonlySet<HeadEntry>; coloring: Coloring; radius: number };

/** The points; heads that the filters leave out stay as faint ones, to show where the others are among all. */
function Dots({ places, shown, coloring, radius }: DotsProps) {
  return useMemo(() => {
    const order = [...places].sort((one, other) => Number(shown.has(one.head)) - Number(shown.has(other.head)));
    return (
      <g class="dots">
        {order.map(({ head, x, y }) => (
          <circle
            key={head.name}
            data-head={head.name}
            class={shown.has(head) ? "" : "faint"}
            cx={x.toFixed(1)}
            cy={y.toFixed(1)}
            r={radius}
            style={{ fill: coloring.of(head) }}
          />
        ))}
      </g>
    );
  }, [places, shown, coloring, radius]);
}

type PlaceOf = (head: HeadEntry) => Place | null;
type SelectedProps = { selected: HeadEntry[]; placeOf: PlaceOf; across: Axis; up: Axis; radius: number };

/** Rings around the selected heads, and bars of one standard error. */
function Selected({ selected, placeOf, across, up, radius }: SelectedProps) {
  return (
    <g class="selected">
      {selected.map((head) => {
        const place = placeOf(head);
        return (
          place && (
            <g key={head.name} data-selected={head.name}>
              <path d={bar(head, across, (at) => `${at} ${place.y}`)} />
              <path d={bar(head, up, (at) => `${place.x} ${at}`)} />
              <circle cx={place.x} cy={place.y} r={radius + 1} />
            </g>
          )
        );
      })}
    </g>
  );
}

function bar(head: HeadEntry, { quantity, log, at, domain }: Axis, point: (at: number) => string): string {
  const [value, error] = [quantity.value(head), quantity.error(head)];
  if (value === null || error === null) return "";
  // Of a bar that reaches zero, a logarithmic axis shows the part that it has.
  const low = log && !quantity.diverging ? Math.max(value - error, domain[0]) : value - error;
  return `M${point(at(low))}L${point(at(value + error))}`;
}

type LabelsProps = { places: Place[]; selected: HeadEntry[]; placeOf: PlaceOf; frame: Frame; radius: number };

/** Names of the selected heads; of the extreme ones while none is selected. */
function Labels({ places, selected, placeOf, frame, radius }: LabelsProps) {
  const shown = useMemo(() => {
    const chosen = selected.map(placeOf).filter((place) => place !== null);
    const wanted = selected.length > 0 ? chosen.slice(0, MOST_LABELS) : extremes(places, EXTREMES);
    return labels(wanted, places, frame, radius);
  }, [places, selected, frame, radius]);
  return (
    <g class="labels">
      {shown.map(({ head, textX, textY, anchor }) => (
        <text key={head.name} x={textX} y={textY} dy="0.32em" text-anchor={anchor}>
          {head.name}
        </text>
      ))}
    </g>
  );
}

function BrushBox({ left, top, right, bottom }: Box) {
  return <rect class="brush" x={left} y={top} width={right - left} height={bottom - top} />;
}

/** Heads without a place in the plot are named: they would seem not to exist. */
function Missing({ heads, axes }: { heads: HeadEntry[]; axes: Axis[] }) {
  const some = heads.slice(0, 12).map((head) => head.name);
  const why = axes
    .filter((axis) => heads.some((head) => axis.place(head) === null))
    .map(({ quantity, log }) => `${quantity.label}${log && !quantity.diverging ? " above zero" : ""}`);
  return (
    <p class="soft unplaced">
      Not in the plot, for want of a value of {why.join(" or of ")}: {some.join(", ")}
      {heads.length > some.length && ` and ${heads.length - some.length} more`}.
    </p>
  );
}

type PointerUse = {
  onPoint: (point: Point | null) => void;
  onBrush: (brush: { from: Point; to: Point } | null) => void;
  onBrushed: (brush: { from: Point; to: Point }, add: boolean) => void;
  onPress: (point: Point, how: { add: boolean; touch: boolean }) => void;
};

/** Tell pointing, pressing and dragging apart. */
function usePointer({ onPoint, onBrush, onBrushed, onPress }: PointerUse) {
  const [from, setFrom] = useState<Point | null>(null);
  const pointOf = (event: PointerEvent): Point => {
    const corner = (event.currentTarget as SVGElement).getBoundingClientRect();
    return { x: event.clientX - corner.left, y: event.clientY - corner.top };
  };
  const isBrush = (to: Point) => from !== null && Math.hypot(to.x - from.x, to.y - from.y) > MOVED;
  const stop = () => {
    setFrom(null);
    onBrush(null);
  };
  // A brush that Escape ends selects nothing.
  useLayoutEffect(() => {
    if (!from) return;
    const listener = (event: KeyboardEvent) => event.key === "Escape" && stop();
    addEventListener("keydown", listener, { capture: true });
    return () => removeEventListener("keydown", listener, { capture: true });
  }, [from]);
  return {
    onPointerDown: (event: PointerEvent) => {
      if (event.button !== 0) return;
      (event.currentTarget as SVGElement).setPointerCapture(event.pointerId);
      setFrom(pointOf(event));
    },
    onPointerMove: (event: PointerEvent) => {
      const to = pointOf(event);
      if (from === null) onPoint(to);
      else if (isBrush(to)) {
        onPoint(null);
        onBrush({ from, to });
      }
    },
    onPointerUp: (event: PointerEvent) => {
      const to = pointOf(event);
      const add = event.shiftKey || event.ctrlKey || event.metaKey;
      if (from !== null && isBrush(to)) onBrushed({ from, to }, add);
      else if (from !== null) onPress(to, { add, touch: event.pointerType === "touch" });
      stop();
    },
    onPointerCancel: stop,
    onPointerLeave: (event: PointerEvent) => {
      if (from === null && event.pointerType !== "touch") onPoint(null);
    },
  };
}
