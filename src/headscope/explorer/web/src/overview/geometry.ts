/** Where points and their labels stand in a plot. */
import type { HeadEntry } from "../data/tree";

export type Point = { x: number; y: number };
export type Place = Point & { head: HeadEntry };
export type Box = { left: number; top: number; right: number; bottom: number };

export function boxOf(one: Point, other: Point): Box {
  return {
    left: Math.min(one.x, other.x),
    top: Math.min(one.y, other.y),
    right: Math.max(one.x, other.x),
    bottom: Math.max(one.y, other.y),
  };
}

export const isIn = ({ x, y }: Point, box: Box): boolean =>
  x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;

export const overlaps = (one: Box, other: Box): boolean =>
  one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;

/** The place nearest to a point, if any is within reach. */
export function nearest(places: readonly Place[], { x, y }: Point, reach: number): Place | null {
  let best: Place | null = null;
  let least = reach * reach;
  for (const place of places) {
    const distance = (place.x - x) ** 2 + (place.y - y) ** 2;
    if (distance <= least) [best, least] = [place, distance];
  }
  return best;
}

export const ARROWS: Record<string, Point> = {
  ArrowLeft: { x: -1, y: 0 },
  ArrowRight: { x: 1, y: 0 },
  ArrowUp: { x: 0, y: -1 },
  ArrowDown: { x: 0, y: 1 },
};

/** The next place in a direction: near, and not far off to the side. */
export function next(places: readonly Place[], from: Place, towards: Point): Place | null {
  let best: Place | null = null;
  let least = Number.POSITIVE_INFINITY;
  for (const place of places) {
    const [right, down] = [place.x - from.x, place.y - from.y];
    const along = right * towards.x + down * towards.y;
    const aside = Math.abs(right * towards.y) + Math.abs(down * towards.x);
    const cost = along + 2 * aside;
    if (place !== from && along > 0 && cost < least) [best, least] = [place, cost];
  }
  return best;
}

/** The places farthest from where most are, as sizes of both spreads. */
export function extremes(places: readonly Place[], most: number): Place[] {
  if (places.length <= most) return [...places];
  const middle = (values: number[]) => values.sort((one, other) => one - other)[values.length >> 1] ?? 0;
  const [x, y] = [middle(places.map((place) => place.x)), middle(places.map((place) => place.y))];
  const [wide, high] = [
    middle(places.map((place) => Math.abs(place.x - x))) || 1,
    middle(places.map((place) => Math.abs(place.y - y))) || 1,
  ];
  const distance = (place: Place) => ((place.x - x) / wide) ** 2 + ((place.y - y) / high) ** 2;
  return [...places].sort((one, other) => distance(other) - distance(one)).slice(0, most);
}

export type Label = Place & { anchor: "start" | "end" | "middle"; textX: number; textY: number };

const LETTER = 7; // pixels
const TALL = 13;

/** Labels beside their points where there is room: right, left, above or below; those without room are left out. */
export function labels(wanted: readonly Place[], all: readonly Place[], within: Box, radius: number): Label[] {
  const taken: Box[] = [];
  const placed: Label[] = [];
  for (const place of wanted) {
    const long = place.head.name.length * LETTER;
    const off = radius + 3;
    const tries = [
      { anchor: "start" as const, x: place.x + off, y: place.y, left: place.x + off },
      { anchor: "end" as const, x: place.x - off, y: place.y, left: place.x - off - long },
      { anchor: "middle" as const, x: place.x, y: place.y - off - 6, left: place.x - long / 2 },
      { anchor: "middle" as const, x: place.x, y: place.y + off + 6, left: place.x - long / 2 },
    ].map((label) => ({
      ...label,
      box: { left: label.left, right: label.left + long, top: label.y - TALL / 2, bottom: label.y + TALL / 2 },
    }));
    const free = tries.filter(
      ({ box }) =>
        box.left >= within.left &&
        box.right <= within.right &&
        box.top >= within.top &&
        box.bottom <= within.bottom &&
        !taken.some((other) => overlaps(box, other)),
    );
    const covered = (box: Box) => all.filter((other) => isIn(other, box)).length;
    const best = free.sort((one, other) => covered(one.box) - covered(other.box))[0];
    if (!best) continue;
    taken.push(best.box);
    placed.push({ ...place, anchor: best.anchor, textX: best.x, textY: best.y });
  }
  return placed;
}
