// Colors of values. Red is below zero and blue above it, as in every view of headscope.

/** How opaque the color of a share from -1 to 1 is: nothing near zero, and room to tell small shares apart. */
export const opacity = (share: number): number =>
  Math.abs(share) < 0.004 || Number.isNaN(share) ? 0 : 0.06 + 0.84 * Math.min(1, Math.abs(share));

/** The class and style of something colored by a share from -1 to 1; its text stays readable on the color. */
export function shade(share: number): { class: string; style: Record<string, string> } {
  const alpha = opacity(share);
  const strong = alpha > (share < 0 ? 0.765 : 0.875);
  return {
    class: `shaded${share < 0 ? " neg" : ""}${strong ? " strong" : alpha > 0.62 ? " mid" : ""}`,
    style: { "--a": alpha.toFixed(3) },
  };
}

/** The three numbers of a resolved color, "rgb(33, 102, 172)". */
export function channels(color: string): [number, number, number] {
  const [red = 0, green = 0, blue = 0] = (color.match(/[\d.]+/g) ?? []).map(Number);
  return [red, green, blue];
}
