// Texts on which a head is most active, and typical ones of each level of activity.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import type { Sequence } from "../data/types";
import { number } from "../format";
import { address, setOptions } from "../router";
import { Switch } from "../shared/Switch";
import { Pattern, Thumbnail } from "../tokens/Pattern";
import { type Pointed, Spoken, TokenStrip } from "../tokens/TokenStrip";
import { sparseWeights } from "../tokens/weights";

const TOP = "top";

/** The choices of the list: the most active texts, then the intervals from the most active down. */
export function choicesOf(sequences: readonly Sequence[]): string[] {
  const intervals = new Set<number>();
  for (const sequence of sequences) if (sequence.rank !== TOP) intervals.add(sequence.interval);
  const found = [...intervals].sort((a, b) => b - a).map(String);
  return sequences.some((sequence) => sequence.rank === TOP) ? [TOP, ...found] : found;
}

const choiceOf = (sequence: Sequence): string => (sequence.rank === TOP ? TOP : String(sequence.interval));

type Props = {
  head: string;
  sequences: readonly Sequence[];
  intervals: number;
  options: URLSearchParams;
};

export function Sequences({ head, sequences, intervals, options }: Props) {
  const choices = useMemo(() => choicesOf(sequences), [sequences]);
  const linked = sequences.find((sequence) => String(sequence.sequence_id) === options.get("seq"));
  const wanted = options.get("texts") ?? (linked ? choiceOf(linked) : null);
  const chosen = wanted !== null && choices.includes(wanted) ? wanted : (choices[0] ?? TOP);
  const shown = sequences.filter((sequence) => choiceOf(sequence) === chosen);
  const norms = useMemo(() => rangeOfNorms(sequences), [sequences]);
  const token = options.get("token");
  return (
    <>
      <Switch
        label="Which texts"
        choices={choices.map((choice) => ({
          value: choice,
          label: choice === TOP ? "most active" : choice,
          title: choice === TOP ? "the texts on which the head writes most" : level(Number(choice), intervals),
        }))}
        value={chosen}
        onPick={(choice) => setOptions({ texts: choice, seq: null, token: null })}
      />
      <p class="soft note">
        {chosen === TOP ? "The texts on which the head writes most." : `${level(Number(chosen), intervals)}.`}
        {norms &&
          ` A token's shade is the size of what the head writes there, from ${number(norms[0])} to ${number(norms[1])}, the first token aside.`}
      </p>
      <ol class="sequences">
        {shown.map((sequence, at) => (
          <SequenceCard
            key={`${chosen} ${sequence.sequence_id}`}
            sequence={sequence}
            head={head}
            norms={norms}
            open={linked ? sequence === linked : at === 0}
            linked={sequence === linked}
            token={sequence === linked && token !== null ? Number(token) : null}
            onPin={(at) =>
              setOptions(
                at === null ? { token: null } : { texts: null, seq: String(sequence.sequence_id), token: String(at) },
              )
            }
          />
        ))}
      </ol>
    </>
  );
}

export type Range = [low: number, high: number];

/**
 * The smallest and the largest norm of what a head writes at a token; null where they were not kept. The first token
 * is left out, which is most often that of the beginning, and what is above a text's own norm: they are not counted.
 */
export function rangeOfNorms(sequences: readonly Sequence[]): Range | null {
  let [low, high] = [Infinity, -Infinity];
  for (const { output_norm: largest, output_norms: norms } of sequences) {
    for (const norm of norms?.slice(1) ?? []) {
      if (norm === null || norm > (largest ?? Infinity)) continue;
      low = Math.min(low, norm);
      high = Math.max(high, norm);
    }
  }
  return low <= high ? [low, high] : null;
}

/** Where a norm stands in a range, from 0 to 1; what was not counted may lie outside, and gets the nearer end. */
function shareOf(norm: number | null, [low, high]: Range): number {
  return norm === null ? 0 : Math.max(0, Math.min(1, (norm - low) / (high - low || 1)));
}

function level(interval: number, intervals: number): string {
  const end = interval === intervals ? " (most active)" : interval === 1 ? " (least active)" : "";
  return `Typical texts of level ${interval} of ${intervals}${end}`;
}

type CardProps = {
  sequence: Sequence;
  head: string;
  /** The smallest and the largest of what the head writes at a token, the ends of the shade. */
  norms: Range | null;
  open?: boolean;
  /** The text that the address names, and the token of it that is kept. */
  linked?: boolean;
  token?: number | null;
  /** Keep a token in the address; without this, in the card alone. */
  onPin?: (at: number | null) => void;
};

export function SequenceCard(props: CardProps) {
  const { sequence, head, norms: range, open = false, linked = false } = props;
  const { tokens, sequence_id: id, output_norms: norms } = sequence;
  const card = useRef<HTMLLIElement>(null);
  const [pointed, setPointed] = useState<Pointed | null>(null);
  const [large, setLarge] = useState(open);
  const [kept, setKept] = useState<number | null>(null);
  const token = props.onPin ? (props.token ?? null) : kept;
  const pinned = token !== null && token >= 0 && token < tokens.length ? token : null;
  const pin = props.onPin ?? setKept;
  const weights = useMemo(
    () => sparseWeights(sequence.tokens.length, sequence.attention_indices, sequence.attention_values),
    [sequence],
  );
  useEffect(() => {
    if (linked) card.current?.scrollIntoView({ block: "start" });
  }, []);
  return (
    <li ref={card} class={`sequence${large ? " large" : ""}${linked ? " linked" : ""}`} data-sequence={id}>
      <div class="sequence-side">
        {large && (
          <Pattern
            weights={weights}
            label={`Attention of head ${head} on text ${id}`}
            pointed={pointed}
            pinned={pinned}
            onPoint={setPointed}
            onPick={(query) => pin(query === pinned ? null : query)}
          />
        )}
        <button
          type="button"
          class={large ? "quiet" : "thumb"}
          aria-expanded={large}
          aria-label={`${large ? "Smaller" : "Larger"} pattern of text ${id}`}
          onClick={() => setLarge(!large)}
        >
          {large ? "smaller" : <Thumbnail weights={weights} />}
        </button>
      </div>
      <div class="sequence-main">
        <p class="sequence-about">
          <a href={address(["head", head], { seq: String(id) })} title="a link to this text">
            text {id}
          </a>
          {sequence.output_norm !== null && (
            <span>
              writes at most <b>{number(sequence.output_norm)}</b>
            </span>
          )}
          <span>
            largest attention <b>{number(sequence.max_activation)}</b>
          </span>
        </p>
        <TokenStrip
          tokens={tokens}
          label={`Text ${id}`}
          weights={weights}
          shares={range && norms ? norms.map((norm) => shareOf(norm, range)) : undefined}
          about={(at) => `position ${at}${norms ? `: writes ${number(norms[at])}` : ""}`}
          pointed={pointed}
          pinned={pinned}
          onPoint={setPointed}
          onPin={pin}
        />
        <Spoken
          tokens={tokens}
          weights={weights}
          pointed={pointed}
          pinned={pinned}
          rest="Point at a token, or at the square, to see what it attends to; click to keep it."
        />
      </div>
    </li>
  );
}
