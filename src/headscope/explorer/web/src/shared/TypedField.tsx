import "./fields.css";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";

const PAUSE_MS = 150; // typing is followed, but not every letter is an address of its own

type TypedProps = {
  label: string;
  /** The label is told to screen readers alone. */
  hidden?: boolean;
  type: "search" | "number";
  value: string;
  placeholder: string;
  /** Whether it has the focus from the beginning. */
  focused?: boolean;
  onType: (text: string) => void;
};

/** A text field that tells what is typed once there is a pause. */
export function TypedField({ label, hidden = false, type, value, placeholder, focused = false, onType }: TypedProps) {
  const [text, setText] = useState(value);
  const told = useRef(value);
  const timer = useRef(0);
  const input = useRef<HTMLInputElement>(null);
  // Before a letter more can be typed, which it would take back.
  useLayoutEffect(() => {
    if (value !== told.current) setText(value); // changed from elsewhere
    told.current = value;
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  useLayoutEffect(() => {
    if (focused) input.current?.focus();
  }, [focused]);
  const id = useId();
  const field = {
    id,
    ref: input,
    value: text,
    placeholder,
    spellcheck: false,
    // Letters are keys of the page again.
    onKeyDown: (event: KeyboardEvent) => event.key === "Escape" && input.current?.blur(),
    onInput: (event: { currentTarget: HTMLInputElement }) => {
      const typed = event.currentTarget.value;
      setText(typed);
      clearTimeout(timer.current);
      timer.current = window.setTimeout(() => {
        told.current = typed;
        onType(typed);
      }, PAUSE_MS);
    },
  };
  return (
    <label class="field" for={id}>
      <span class={hidden ? "unseen" : ""}>{label}</span>
      {type === "number" ? <input type="number" step="any" {...field} /> : <input type="search" {...field} />}
    </label>
  );
}
