import type { ComponentChildren } from "preact";
import { useTree } from "../data/tree";
import { grouped, labelWithUnit } from "./quantities";

type Props = {
  label: string;
  value: string;
  onPick: (name: string) => void;
  /** Choices before the measures. */
  children?: ComponentChildren;
};

/** A menu of all measures, under the headings of their groups. */
export function MeasureMenu({ label, value, onPick, children }: Props) {
  const { measures } = useTree();
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => onPick(event.currentTarget.value)}>
        {children}
        {grouped(measures).map(([group, members]) => (
          <optgroup key={group} label={group}>
            {members.map((measure) => (
              <option key={measure.name} value={measure.name}>
                {labelWithUnit(measure)}
              </option>
            ))}
          </optgroup>
        ))}
      </select>
    </label>
  );
}
