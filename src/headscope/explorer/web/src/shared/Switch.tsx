/** A few choices in a row, of which one is taken; arrow keys move between them. */
import "./switch.css";
import { useId } from "preact/hooks";

export type Choice = { value: string; label: string; title?: string; disabled?: boolean };

type Props = { label: string; choices: Choice[]; value: string; onPick: (value: string) => void };

export function Switch({ label, choices, value, onPick }: Props) {
  const name = useId();
  return (
    <fieldset class="switch" aria-label={label}>
      {choices.map((choice) => (
        <label key={choice.value} title={choice.title}>
          <input
            type="radio"
            name={name}
            value={choice.value}
            checked={choice.value === value}
            disabled={choice.disabled ?? false}
            onChange={() => onPick(choice.value)}
          />
          <span>{choice.label}</span>
        </label>
      ))}
    </fieldset>
  );
}
