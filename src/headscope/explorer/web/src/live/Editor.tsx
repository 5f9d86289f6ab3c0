/** What is put in the place of what a component gives: nothing, its mean, a multiple, or the second prompt's. */
import { useLayoutEffect, useState } from "preact/hooks";
import { Switch } from "../shared/Switch";
import type { Action, Change, ModelInfo, State } from "./answers";
import { componentTitle, parsePositions, rangesOf, withChange } from "./state";

type Props = {
  component: string;
  state: State;
  model: ModelInfo;
  /** Tokens of the prompt, and the chosen one. */
  n: number;
  position: number;
  onChange: (state: State) => void;
};

export function Editor({ component, state, model, n, position, onChange }: Props) {
  const change = state.changes.find((other) => other.component === component) ?? null;
  const put = (next: Change | null) => onChange(withChange(state, component, next));
  const act = (action: string) => {
    if (action === "none") put(null);
    else {
      put({
        component,
        action: action as Action,
        factor: action === "scale" ? 0.5 : null,
        positions: change?.positions ?? null,
      });
    }
  };
  return (
    <div class="editor">
      <Switch
        label={`Change of ${componentTitle(component)}`}
        value={change?.action ?? "none"}
        onPick={act}
        choices={[
          { value: "none", label: "as it is" },
          { value: "zero", label: "off", title: "zero in its place" },
          {
            value: "mean",
            label: "mean",
            title: model.measured_mean ? "its mean over the corpus in its place" : "this tree holds no means",
            disabled: !model.measured_mean,
          },
          { value: "scale", label: "scale", title: "a multiple of it" },
          {
            value: "patch",
            label: "patch",
            title: state.other === null ? "add a second prompt to patch from" : "what it gives on the second prompt",
            disabled: state.other === null,
          },
        ]}
      />
      {change?.action === "scale" && <Factor change={change} onChange={put} />}
      {change && <Where change={change} n={n} position={position} onChange={put} />}
    </div>
  );
}

function Factor({ change, onChange }: { change: Change; onChange: (change: Change) => void }) {
  const [shown, setShown] = useState(change.factor ?? 1);
  useLayoutEffect(() => setShown(change.factor ?? 1), [change.factor]);
  const commit = (text: string) => {
    const factor = Number(text);
    if (text !== "" && Number.isFinite(factor) && Math.abs(factor) <= 1e6) onChange({ ...change, factor });
  };
  return (
    <div class="factor">
      <label>
        times{" "}
        <input
          type="number"
          step="any"
          value={shown}
          aria-label="factor"
          onChange={(event) => commit(event.currentTarget.value)}
        />
      </label>
      <input
        type="range"
        min="-1"
        max="3"
        step="0.05"
        value={shown}
        aria-label="factor, as a slider"
        onInput={(event) => setShown(Number(event.currentTarget.value))}
        onChange={(event) => commit(event.currentTarget.value)}
      />
    </div>
  );
}

type WhereProps = { change: Change; n: number; position: number; onChange: (change: Change) => void };

function Where({ change, n, position, onChange }: WhereProps) {
  const written = change.positions ? rangesOf(change.positions).replaceAll("–", "-") : "";
  const [text, setText] = useState(written);
  useLayoutEffect(() => setText(written), [written]);
  const found = parsePositions(text, n);
  const wrong = found !== null && "wrong" in found ? found.wrong : null;
  const commit = () => {
    if (wrong === null) onChange({ ...change, positions: found as number[] | null });
  };
  return (
    <div class="where">
      <label>
        at{" "}
        <input
          type="text"
          inputMode="numeric"
          value={text}
          placeholder="all positions"
          aria-invalid={wrong !== null}
          aria-label="positions"
          onInput={(event) => setText(event.currentTarget.value)}
          onChange={commit}
          onKeyDown={(event) => event.key === "Enter" && commit()}
        />
      </label>{" "}
      <button type="button" class="quiet" onClick={() => onChange({ ...change, positions: [position] })}>
        the chosen token ({position})
      </button>{" "}
      {change.positions && (
        <button type="button" class="quiet" onClick={() => onChange({ ...change, positions: null })}>
          everywhere
        </button>
      )}
      {wrong !== null && (
        <p role="alert" class="wrong">
          “{wrong}” is no position: numbers from 0 to {n - 1} and ranges as in 2-4.
        </p>
      )}
    </div>
  );
}
