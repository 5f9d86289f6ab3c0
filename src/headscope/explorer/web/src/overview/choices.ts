/** What the plot of all heads shows, by options of the address. */
import { type Tree, useTree } from "../data/tree";
import { setOptions, useRoute } from "../router";
import { KIND } from "./colors";
import { LAYER, type Quantity, quantity } from "./quantities";

export type Part = "x" | "y" | "color";
export type Choices = Record<Part, string> & { log: Record<Part, boolean> };

/** What to look at first: which heads have effects, and what they look at. */
const FIRST: Record<Part, string[]> = {
  x: ["entropy_diff", "prev_token_score", "previous_token_score"],
  y: ["ablation_total", "induction_score"],
  color: [KIND],
};
const LETTERS: Record<Part, string> = { x: "x", y: "y", color: "c" };

export function useChoices(): Choices {
  return readChoices(useTree(), useRoute().options);
}

function readChoices(tree: Tree, options: URLSearchParams): Choices {
  const name = (part: Part) => {
    const asked = options.get(part);
    return asked && isKnown(tree, part, asked) ? asked : firstOf(tree, part);
  };
  const chosen = { x: name("x"), y: name("y"), color: name("color") };
  const letters = options.get("log");
  const log = (part: Part) => {
    const better = quantity(tree, chosen[part])?.betterLog ?? false;
    return chosen[part] !== LAYER && (letters === null ? better : letters.includes(LETTERS[part]));
  };
  return { ...chosen, log: { x: log("x"), y: log("y"), color: log("color") } };
}

function isKnown(tree: Tree, part: Part, name: string): boolean {
  return (part === "color" && name === KIND) || quantity(tree, name) !== null;
}

function firstOf(tree: Tree, part: Part): string {
  if (part === "color" && tree.kinds.length === 0) return LAYER;
  const { measures } = tree;
  const found = FIRST[part].find((name) => name === KIND || tree.measure(name)) ?? measures[part === "x" ? 0 : 1]?.name;
  return found ?? LAYER;
}

/** Choose what a part shows; its scale becomes that which suits the measure. */
export function choose(choices: Choices, part: Part, chosen: Quantity | null, name: string): void {
  setOptions({ [part]: name, log: letters({ ...choices.log, [part]: chosen?.betterLog ?? false }) });
}

export function chooseLog(choices: Choices, part: Part, log: boolean): void {
  setOptions({ log: letters({ ...choices.log, [part]: log }) });
}

export function swapAxes({ x, y, log }: Choices): void {
  setOptions({ x: y, y: x, log: letters({ ...log, x: log.y, y: log.x }) });
}

/** "-" says that no scale is logarithmic, where leaving the option out would ask for those that suit. */
function letters(log: Record<Part, boolean>): string {
  const parts: Part[] = ["x", "y", "color"];
  return (
    parts
      .filter((part) => log[part])
      .map((part) => LETTERS[part])
      .join("") || "-"
  );
}
