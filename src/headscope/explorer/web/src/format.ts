// Numbers and names as people read them. A missing number is a dash, never a zero.

export const MISSING = "–";

const minus = (text: string): string => text.replaceAll("-", "−");

/** A number with three decimals, fewer for large ones, and a power of ten for those that would read as zero. */
export function number(value: number | null | undefined, { signed = false } = {}): string {
  if (value === null || value === undefined || Number.isNaN(value)) return MISSING;
  const size = Math.abs(value);
  const text =
    size === Infinity
      ? value < 0
        ? "-∞"
        : "∞"
      : size !== 0 && (size < 0.0005 || size >= 1e6)
        ? value.toExponential(1)
        : size >= 1000
          ? Math.round(value).toLocaleString("en")
          : value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
  return minus((signed && value > 0 ? "+" : "") + text);
}

/** Decimals that show two digits of an error. */
function decimalsOf(error: number): number {
  return Math.min(8, Math.max(0, 1 - Math.floor(Math.log10(error))));
}

/** "0.123 ± 0.014": as many digits as the error leaves; without an error, as `number` has it. */
export function withError(
  value: number | null | undefined,
  error: number | null | undefined,
  { signed = false } = {},
): string {
  if (value === null || value === undefined || Number.isNaN(value)) return MISSING;
  if (!error || !Number.isFinite(error)) return number(value, { signed });
  const decimals = decimalsOf(error);
  return minus(`${signed && value > 0 ? "+" : ""}${value.toFixed(decimals)} ± ${error.toFixed(decimals)}`);
}

/** A share as a percentage: 12.3 %, 0.45 %, <0.01 %. */
export function percent(share: number | null | undefined): string {
  if (share === null || share === undefined || Number.isNaN(share)) return MISSING;
  const size = Math.abs(share);
  if (size > 0 && size < 0.00005) return share < 0 ? ">−0.01\u00a0%" : "<0.01\u00a0%";
  return `${minus((100 * share).toFixed(size !== 0 && size < 0.01 ? 2 : 1))}\u00a0%`;
}

/** Whole numbers with separators: 12,345. */
export const count = (value: number): string => value.toLocaleString("en");

/** [3, 1] of "3.1"; null where it is no head's name. */
export function parseHead(name: string | null | undefined): [number, number] | null {
  const found = /^(\d{1,4})\.(\d{1,4})$/.exec(name ?? "");
  return found ? [Number(found[1]), Number(found[2])] : null;
}
