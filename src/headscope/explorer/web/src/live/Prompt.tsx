/** What the model reads. */
import { useLayoutEffect, useState } from "preact/hooks";
import type { ModelInfo, State } from "./answers";

const BEGIN: { value: string; label: string; is: boolean | null }[] = [
  { value: "usual", label: "as the model is used to", is: null },
  { value: "yes", label: "with a beginning token", is: true },
  { value: "no", label: "without one", is: false },
];

type Props = { state: State; model: ModelInfo; onRun: (state: State) => void };

export function Prompt({ state, model, onRun }: Props) {
  const [prompt, setPrompt] = useState(state.prompt);
  const [other, setOther] = useState(state.other);
  // At once: an effect after the next frame would take back what was typed until then.
  useLayoutEffect(() => setPrompt(state.prompt), [state.prompt]);
  useLayoutEffect(() => setOther(state.other), [state.other]);
  const run = () => {
    const second = other === "" ? null : other;
    const changes = second === null ? state.changes.filter((change) => change.action !== "patch") : state.changes;
    const same = prompt === state.prompt;
    onRun({ ...state, prompt, other: second, changes, position: same ? state.position : -1 });
  };
  const keyed = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    run();
  };
  const changed = prompt !== state.prompt || (other || null) !== state.other;
  return (
    <form
      class="prompt"
      onSubmit={(event) => {
        event.preventDefault();
        run();
      }}
    >
      <label for="prompt">Prompt</label>
      <textarea
        id="prompt"
        rows={3}
        value={prompt}
        maxLength={model.max_characters}
        spellcheck={false}
        placeholder="Type a text that the model continues"
        onInput={(event) => setPrompt(event.currentTarget.value)}
        onKeyDown={keyed}
      />
      {other !== null && (
        <>
          <label for="other">Second prompt, to patch from; it needs as many tokens</label>
          <textarea
            id="other"
            rows={3}
            value={other}
            maxLength={model.max_characters}
            spellcheck={false}
            onInput={(event) => setOther(event.currentTarget.value)}
            onKeyDown={keyed}
          />
        </>
      )}
      <div class="prompt-row">
        <button type="submit" class="button primary" disabled={!prompt} title="Ctrl+Enter">
          Run
        </button>
        <button type="button" class="button" onClick={() => setOther(other === null ? prompt : null)}>
          {other === null ? "Add a second prompt" : "Remove the second prompt"}
        </button>
        <label class="menu">
          read{" "}
          <select
            value={BEGIN.find(({ is }) => is === state.prepend_bos)?.value}
            onChange={(event) => {
              const begin = BEGIN.find(({ value }) => value === event.currentTarget.value);
              onRun({ ...state, prepend_bos: begin?.is ?? null, position: -1 });
            }}
          >
            {BEGIN.map(({ value, label }) => (
              <option key={value} value={value}>
                {label}
              </option>
            ))}
          </select>
        </label>
        {changed && state.prompt && <span class="soft">not run yet: Ctrl+Enter</span>}
      </div>
    </form>
  );
}
