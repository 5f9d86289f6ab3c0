// Arrow keys that move through things in lines.

export type Walk = {
  count: number;
  /** How many stand in a line: 1 for a running text. */
  stride: number;
  at: number | null;
  move(to: number): void;
  pick(at: number): void;
  clear(): void;
};

/** Answer a key with a step of the walk; true where the key was one of the walk's. */
export function walk(event: KeyboardEvent, { count, stride, at, move, pick, clear }: Walk): boolean {
  if (event.ctrlKey || event.metaKey || event.altKey || count === 0) return false;
  const step = { ArrowRight: 1, ArrowDown: stride, ArrowLeft: -1, ArrowUp: -stride }[event.key];
  if (step !== undefined) {
    const to = at === null ? (step > 0 ? 0 : count - 1) : at + step;
    move(to >= 0 && to < count ? to : (at ?? 0));
  } else if (event.key === "Home") move(0);
  else if (event.key === "End") move(count - 1);
  else if ((event.key === "Enter" || event.key === " ") && at !== null) pick(at);
  else if (event.key === "Escape") clear();
  else return false;
  event.preventDefault();
  event.stopPropagation();
  return true;
}
