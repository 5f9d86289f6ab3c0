/** The chosen head's pattern in full, and why it looks where it looks. */
import { useMemo, useState } from "preact/hooks";
import { useTree } from "../data/tree";
import { number, parseHead, percent } from "../format";
import { address } from "../router";
import { Pattern } from "../tokens/Pattern";
import { type Pointed, Spoken } from "../tokens/TokenStrip";
import { Quote } from "../tokens/text";
import { denseWeights, differenceOf } from "../tokens/weights";
import type { Answer, OnePatternAnswer, Part, Rest, State, WhyAnswer } from "./answers";
import { useAnswer } from "./client";
import type { View } from "./Effects";
import { Trouble } from "./Trouble";

type Props = { name: string; state: State | null; answer: Answer; view: View };
type Cell = { query: number; key: number };

export function ChosenHead({ name, state, answer, view }: Props) {
  const tree = useTree();
  const [layer = 0, head = 0] = parseHead(name) ?? [];
  const [pointed, setPointed] = useState<Pointed | null>(null);
  const [cell, setCell] = useState<Cell | null>(null);
  const asked = useAnswer<OnePatternAnswer>("pattern", state && { state, layer, head });
  const weights = useMemo(() => {
    if (!asked.answer) return null;
    const before = denseWeights(asked.answer.before);
    if (!asked.answer.after || view === "before") return before;
    const after = denseWeights(asked.answer.after);
    return view === "after" ? after : differenceOf(after, before);
  }, [asked.answer, view]);
  const kinds = tree.head(name)?.kinds ?? [];
  const { tokens } = answer;
  const inText = cell !== null && cell.query < tokens.length && cell.key < tokens.length;
  return (
    <div class={asked.stale ? "chosen-head stale" : "chosen-head"} aria-busy={asked.busy}>
      <p class="soft note">
        {kinds.length > 0 && `${kinds.map((kind) => tree.kindLabel(kind)).join(", ")}. `}
        {tree.head(name) && <a href={address(["head", name])}>This head on the corpus</a>}
      </p>
      <Trouble asked={asked} />
      {weights && weights.n === tokens.length && (
        <>
          <Pattern
            weights={weights}
            label={`Attention of head ${name}`}
            pointed={pointed ?? (inText ? cell : null)}
            pinned={null}
            onPoint={setPointed}
            onPick={(query, key) => setCell(key <= query ? { query, key } : null)}
          />
          <Spoken
            tokens={tokens}
            weights={weights}
            pointed={pointed}
            pinned={null}
            rest="Queries go down, keys across. Click a cell to see why the head looks there."
          />
        </>
      )}
      {inText && (
        <Why state={state} layer={layer} head={head} cell={cell} answer={answer} close={() => setCell(null)} />
      )}
    </div>
  );
}

type WhyProps = {
  state: State | null;
  layer: number;
  head: number;
  cell: Cell;
  answer: Answer;
  close: () => void;
};

function Why({ state, layer, head, cell, answer, close }: WhyProps) {
  const { tokens } = answer;
  const asked = useAnswer<WhyAnswer>("why", state && { state, layer, head, ...cell });
  const why = asked.answer;
  return (
    <section class="why" aria-label="Why it looks there" aria-busy={asked.busy} data-why={`${cell.query},${cell.key}`}>
      <h3>
        Why does <Quote text={tokens[cell.query] ?? ""} /> look at <Quote text={tokens[cell.key] ?? ""} />?
        <button type="button" class="remove" aria-label="Close" onClick={close}>
          ×
        </button>
      </h3>
      <Trouble asked={asked} />
      {why && (
        <>
          <p>
            Attention <b>{percent(why.attention)}</b>, from a score of{" "}
            <b data-value="score">{number(why.score, { signed: true })}</b> before the softmax
            {answer.after && ", with the changes"}
            {why.penalty !== 0 && `, of which ${number(why.penalty, { signed: true })} is for the distance`}. The score
            {why.penalty !== 0 && " without that"} is the sum of each of these lists:
          </p>
          <Parts title="what the query is made of" parts={why.query_parts} />
          <Parts title="what the key is made of" parts={why.key_parts} />
          <Parts title="pairs of the two" parts={why.parts} beyond={why.pairs_rest} />
        </>
      )}
    </section>
  );
}

const SHOWN = 6;

type PartsProps = { title: string; parts: Part[] /** Parts that were not told one by one. */; beyond?: Rest };

function Parts({ title, parts, beyond = { count: 0, value: 0 } }: PartsProps) {
  const largest = Math.max(...parts.map(({ value }) => Math.abs(value)), 1e-9);
  const rest = parts.slice(SHOWN).reduce((sum, { value }) => sum + value, beyond.value);
  const hidden = Math.max(0, parts.length - SHOWN) + beyond.count;
  return (
    <table class="parts">
      <caption>{title}</caption>
      <tbody>
        {parts.slice(0, SHOWN).map(({ name, value }) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            <td class="bar">
              <i class={value < 0 ? "neg" : ""} style={{ width: `${(100 * Math.abs(value)) / largest}%` }} />
            </td>
            <td class="value">{number(value, { signed: true })}</td>
          </tr>
        ))}
        {hidden > 0 && (
          <tr class="rest">
            <th scope="row">{hidden} more</th>
            <td />
            <td class="value">{number(rest, { signed: true })}</td>
          </tr>
        )}
      </tbody>
    </table>
  );
}
