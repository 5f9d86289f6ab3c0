/** The changes in force, to take back one by one or in turn, and a link to all of it. */
import { useState } from "preact/hooks";
import { useKeys } from "../shared/keys";
import type { State } from "./answers";
import { advance, changeTitle, componentTitle, type History, redo, undo, withChange } from "./state";

type Props = { history: History; onHistory: (history: History) => void; onPick: (component: string) => void };

export function Changes({ history, onHistory, onPick }: Props) {
  const state = history.now;
  const [copied, setCopied] = useState(false);
  const to = (next: State) => onHistory(advance(history, next));
  const back = () => onHistory(undo(history));
  const forth = () => onHistory(redo(history));
  useKeys("Changes", [
    { key: "u", label: "Undo", run: back },
    { key: "r", label: "Redo", run: forth },
  ]);
  const copy = () =>
    navigator.clipboard.writeText(location.href).then(
      () => {
        setCopied(true);
        setTimeout(() => setCopied(false), 1500);
      },
      () => setCopied(false), // refused: the address bar has it too
    );
  return (
    <section class="changes" aria-label="Changes">
      <div class="changes-tools">
        <button type="button" class="button" disabled={!history.past.length} title="u" onClick={back}>
          Undo
        </button>
        <button type="button" class="button" disabled={!history.future.length} title="r" onClick={forth}>
          Redo
        </button>
        <button
          type="button"
          class="button"
          disabled={!state.changes.length}
          onClick={() => to({ ...state, changes: [] })}
        >
          Remove all
        </button>
        <button type="button" class="button" onClick={copy}>
          {copied ? "Copied" : "Copy link"}
        </button>
      </div>
      {state.changes.length ? (
        <ul>
          {state.changes.map((change) => (
            <li key={change.component}>
              <button type="button" class="quiet" onClick={() => onPick(change.component)}>
                {changeTitle(change)}
              </button>
              <button
                type="button"
                class="remove"
                aria-label={`Leave ${componentTitle(change.component)} as it is`}
                onClick={() => to(withChange(state, change.component, null))}
              >
                ×
              </button>
            </li>
          ))}
        </ul>
      ) : (
        <p class="soft note">Nothing is changed. Choose a head or an MLP and switch it off.</p>
      )}
    </section>
  );
}
