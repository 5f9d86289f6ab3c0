/** The table as text for spreadsheets and data frames: full precision, missing values empty. */
import type { HeadEntry } from "../data/tree";
import type { Measure } from "../data/types";

export function csv(heads: readonly HeadEntry[], measures: readonly Measure[]): string {
  const names = measures.flatMap(({ name }) => [name, `${name}_error`]);
  const rows = heads.map((head) => [
    head.layer,
    head.head,
    head.kinds.join(";"),
    head.label,
    ...measures.flatMap(({ name }) => [head.value(name), head.error(name)]),
  ]);
  return [["layer", "head", "kinds", "label", ...names], ...rows]
    .map((row) => `${row.map(field).join(",")}\n`)
    .join("");
}

function field(value: string | number | null): string {
  const text = value === null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Put text on the clipboard; false where the browser refuses. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // no permission, or a page that the browser does not trust
  }
}

function copyBySelection(text: string): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
