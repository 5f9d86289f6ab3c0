/** A prompt of one's own: what the model makes of it, and what changes when parts of the model are switched off. */
import "../compare/compare.css";
import "../head/head.css";
import "./live.css";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { load } from "../data/load";
import { useTree } from "../data/tree";
import type { Head } from "../data/types";
import { parseHead } from "../format";
import { Part } from "../head/frame";
import { currentRoute, setOptions, useRoute } from "../router";
import { Notice } from "../shared/Notice";
import { Switch } from "../shared/Switch";
import { Quote } from "../tokens/text";
import type { Answer, Change, ModelInfo, PatternsAnswer, State } from "./answers";
import { Changes } from "./Changes";
import { ChosenHead } from "./Chosen";
import { type Asked, useAnswer } from "./client";
import { Editor } from "./Editor";
import { Effects, type View } from "./Effects";
import { Entropy } from "./Entropy";
import { Patterns } from "./Patterns";
import { Predictions } from "./Predictions";
import { Prompt } from "./Prompt";
import { advance, componentTitle, decode, EMPTY, encode, type History } from "./state";
import { Tokens } from "./Tokens";
import { Trouble } from "./Trouble";

export function LivePage() {
  return location.protocol === "file:" ? <Unserved /> : <Served />;
}

/** How to start what this page talks to. */
function Unserved() {
  const folder = location.protocol === "file:" ? decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "") : "DIR";
  return (
    <>
      <h1>Live</h1>
      <Notice title="A prompt of your own needs the model, which this page does not hold.">
        <p>Start it on this machine, and open the address that it prints:</p>
        <pre>
          <code>
            headscope explore {/[^\w./-]/.test(folder) ? `'${folder.replaceAll("'", "'\\''")}'` : folder} --serve
          </code>
        </pre>
        <p class="soft">
          It listens on this machine only. It needs <code>pip install 'headscope[live]'</code>.
        </p>
      </Notice>
    </>
  );
}

function Served() {
  const model = useAnswer<ModelInfo>("model", undefined);
  if (model.answer) return <Session model={model.answer} />;
  if (model.error && /^\d+$/.test(model.error.code)) return <Unserved />;
  return (
    <>
      <h1>Live</h1>
      <Trouble asked={model} />
    </>
  );
}

/** The state that the address holds, with its history; one without a prompt begins with this one. */
function useHistory(example: string): [History, (history: History) => void] {
  const { options } = useRoute();
  const coded = options.get("state");
  const [history, setHistory] = useState<History>(() => ({
    past: [],
    now: decode(coded) ?? { ...EMPTY, prompt: example },
    future: [],
  }));
  useLayoutEffect(() => {
    // Drawn later than the address moved on, an older state is no link to follow.
    const linked = currentRoute().options.get("state") === coded ? decode(coded) : null;
    if (linked) setHistory((current) => advance(current, linked));
  }, [coded]);
  useLayoutEffect(() => {
    // So that the address holds what is shown from the beginning.
    if (history.now.prompt) setOptions({ state: encode(history.now) });
  }, []);
  const update = (next: History) => {
    setHistory(next);
    setOptions({ state: encode(next.now) });
  };
  return [history, update];
}

/** A text to begin with: what this head is most active on; empty where there is none, null while it is loaded. */
function useExample(wanted: boolean, name: string | null): string | null {
  const tree = useTree();
  const entry = (name ? tree.head(name) : undefined) ?? tree.heads[0];
  const [example, setExample] = useState<string | null>(wanted && entry ? null : "");
  useEffect(() => {
    if (!wanted || !entry) return;
    load(tree.headFile(entry.layer, entry.head)).then(
      (head) => setExample((kept) => kept ?? exampleOf(head)),
      () => setExample((kept) => kept ?? ""),
    );
  }, []);
  return example;
}

const EXAMPLE_TOKENS = 40;

/** The beginning of a head's first text, without the token that texts begin with. */
export function exampleOf(head: Head): string {
  const tokens = head.sequences?.[0]?.tokens ?? [];
  const special = (token: string) => /^<[^<>]+>$/.test(token);
  const start = tokens.findIndex((token) => !special(token));
  const rest = start < 0 ? [] : tokens.slice(start, start + EXAMPLE_TOKENS);
  const end = rest.findIndex(special);
  return rest
    .slice(0, end < 0 ? undefined : end)
    .join("")
    .trim();
}

function Session({ model }: { model: ModelInfo }) {
  const { options } = useRoute();
  const example = useExample(options.get("state") === null, options.get("part"));
  return example === null ? <p class="soft">Loading…</p> : <Prompted model={model} example={example} />;
}

function Prompted({ model, example }: { model: ModelInfo; example: string }) {
  const { options } = useRoute();
  const [history, setHistory] = useHistory(example);
  const state = history.now;
  const chosen = componentOf(options.get("part"), model);
  const broken = options.get("state") !== null && decode(options.get("state")) === null;
  const run = useAnswer<Answer>("run", state.prompt ? state : null);
  // What was cancelled or failed is asked again by the same button that asks for something else.
  const to = (next: State) => {
    const following = advance(history, next);
    if (following !== history) setHistory(following);
    else if (run.stale && !run.busy) run.again();
  };
  const pick = (component: string) => setOptions({ part: component });
  return (
    <article class="live-page">
      <h1>Live</h1>
      {broken && (
        <Notice title="The link's state cannot be read.">
          <p>It may have been cut off.</p>
        </Notice>
      )}
      <Prompt state={state} model={model} onRun={to} />
      <Trouble asked={run} />
      {run.answer && (
        <Results
          answer={run.answer}
          state={state}
          run={run}
          model={model}
          chosen={chosen}
          history={history}
          onHistory={setHistory}
          onPick={pick}
        />
      )}
    </article>
  );
}

/** The component that an address names, if the model has it. */
function componentOf(name: string | null, model: ModelInfo): string | null {
  const [layer, head] = parseHead(name) ?? [];
  if (layer !== undefined && head !== undefined) return layer < model.n_layers && head < model.n_heads ? name : null;
  const mlp = /^mlp(\d{1,4})$/.exec(name ?? "");
  return mlp && model.has_mlps && Number(mlp[1]) < model.n_layers ? name : null;
}

type ResultsProps = {
  answer: Answer;
  state: State;
  /** Where the answer came from; it may be that of an earlier state. */
  run: Asked<Answer>;
  model: ModelInfo;
  chosen: string | null;
  history: History;
  onHistory: (history: History) => void;
  onPick: (component: string) => void;
};

// More heads than this are drawn a layer at a time.
const MOST_HEADS = 288;

function Results({ answer, state, run, model, chosen, history, onHistory, onPick }: ResultsProps) {
  const [wanted, setView] = useState<View>("after");
  const view = answer.after ? wanted : "before";
  const n = answer.tokens.length;
  const position = state.position < 0 ? n + state.position : Math.min(state.position, n - 1);
  const to = (next: State) => onHistory(advance(history, next));
  const isHead = chosen !== null && parseHead(chosen) !== null;
  const side = useRef<HTMLElement>(null);
  // The server does one thing after the other: first the run, and the rest only once that is there. So it is the run
  // alone that is waited for, cancelled, or told to have failed.
  const answered = run.stale ? null : state;
  return (
    <div class={run.stale ? "live-columns stale" : "live-columns"} aria-busy={run.busy}>
      <div class="live-main">
        <Part title="Tokens" id="tokens">
          <Tokens answer={answer} position={position} onPick={(at) => to({ ...state, position: at })} />
        </Part>
        <Part title="What comes next" id="predictions">
          <Predictions answer={answer} chosen={state.target} onPick={(target) => to({ ...state, target })} />
        </Part>
        <Part title="Along the layers" id="entropy">
          <Entropy before={answer.before} after={answer.after} />
        </Part>
        {answer.after && <Views view={view} onPick={setView} />}
        <Part title="What each part adds" id="effects">
          <p class="soft note">
            Directly to the logit of <Quote text={answer.target.token} /> less the mean of all logits
            {view === "difference" ? ": with the changes less as it is" : view === "after" ? ", with the changes" : ""}.
            Blue raises it, red lowers it.
          </p>
          <Effects answer={answer} view={view} chosen={chosen} changes={state.changes} onPick={onPick} />
        </Part>
        <Part title="Where every head looks" id="patterns">
          <AllPatterns
            state={answered}
            model={model}
            changes={state.changes}
            view={view}
            chosen={chosen}
            onPick={onPick}
          />
        </Part>
        {chosen !== null && (
          <button type="button" class="button primary to-side" onClick={() => side.current?.scrollIntoView()}>
            {capitalized(componentTitle(chosen))}: see and change it
          </button>
        )}
      </div>
      <aside ref={side} class="live-side" aria-label="The chosen part and the changes">
        <Changes history={history} onHistory={onHistory} onPick={onPick} />
        <section class="chosen-part" aria-label="The chosen part">
          {chosen === null ? (
            <p class="soft">Choose a head or an MLP to switch it off, scale it, patch it, or see where it looks.</p>
          ) : (
            <>
              <h2>{capitalized(componentTitle(chosen))}</h2>
              <Editor component={chosen} state={state} model={model} n={n} position={position} onChange={to} />
              {isHead && <ChosenHead key={chosen} name={chosen} state={answered} answer={answer} view={view} />}
            </>
          )}
        </section>
      </aside>
    </div>
  );
}

const capitalized = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

function Views({ view, onPick }: { view: View; onPick: (view: View) => void }) {
  return (
    <div class="views">
      <Switch
        label="What the pictures show"
        value={view}
        onPick={(value) => onPick(value as View)}
        choices={[
          { value: "before", label: "as it is" },
          { value: "after", label: "with the changes" },
          { value: "difference", label: "difference" },
        ]}
      />
    </div>
  );
}

type AllProps = {
  model: ModelInfo;
  /** What the run was of, null while there is none of what is asked. */
  state: State | null;
  changes: readonly Change[];
  view: View;
  chosen: string | null;
  onPick: (component: string) => void;
};

type Wanted = { state: State; layer: number | null };

function AllPatterns({ model, state, changes, view, chosen, onPick }: AllProps) {
  const split = model.n_layers * model.n_heads > MOST_HEADS;
  const [shown, setShown] = useState(parseHead(chosen)?.[0] ?? 0);
  const layer = split ? shown : null;
  const asked = useAnswer<PatternsAnswer, Wanted>("patterns", state && { state, layer });
  return (
    <div class={asked.stale ? "stale" : ""} aria-busy={asked.busy}>
      {split && (
        <label class="menu">
          layer{" "}
          <select value={shown} onChange={(event) => setShown(Number(event.currentTarget.value))}>
            {Array.from({ length: model.n_layers }, (_, at) => (
              <option key={at} value={at}>
                {at}
              </option>
            ))}
          </select>
        </label>
      )}
      <Trouble asked={asked} />
      {asked.answer && (
        <Patterns
          patterns={asked.answer}
          first={asked.of?.layer ?? 0}
          view={view}
          chosen={chosen}
          changes={changes}
          onPick={onPick}
        />
      )}
    </div>
  );
}
