// A text as a run of tokens. Point at one, by mouse or keyboard, and it shows what it attends to (blue) and what
// attends to it (underlined); click keeps it.

import "./tokens.css";

import type { JSX } from "preact";
import { useRef } from "preact/hooks";

import { percent } from "../format";
import { opacity, shade } from "./shades";
import { plain, Quote, TokenText } from "./text";
import { walk } from "./walk";
import { type Place, strongest, type Weights } from "./weights";

/** What is pointed at: one token, or a query and a key in a pattern. */
export type Pointed = {
  query: number;
  key: number | null;
};

// Of a longer token the box may be broken over lines.
const LONG = 40;

type Props = {
  tokens: readonly string[];
  label: string;
  weights: Weights | null;
  /** A number from 0 to 1 a token, shown as a shade while nothing is pointed at. */
  shares?: readonly number[] | undefined;
  /** What a token's shade means, for its tooltip. */
  about?: ((at: number) => string) | undefined;
  pointed: Pointed | null;
  pinned: number | null;
  onPoint(pointed: Pointed | null): void;
  onPin(at: number | null): void;
};

export function TokenStrip(props: Props): JSX.Element {
  const { tokens, label, weights, shares, about, pointed, pinned, onPoint, onPin } = props;
  const box = useRef<HTMLDivElement>(null);
  const cursor = useRef<number | null>(null);
  const shown: Pointed | null = pinned !== null ? { query: pinned, key: null } : pointed;

  const spanOf = (event: Event): number | null => {
    const span = event.target instanceof Element ? event.target.closest<HTMLElement>(".strip-token") : null;
    return span ? Number(span.dataset.at) : null;
  };
  const point = (at: number | null) => onPoint(at === null ? null : { query: at, key: null });
  const pin = (at: number) => {
    cursor.current = at;
    onPin(at === pinned ? null : at);
  };
  const keyed = (event: KeyboardEvent) =>
    walk(event, {
      count: tokens.length,
      stride: 1,
      at: cursor.current,
      move: (to) => {
        cursor.current = to;
        box.current?.querySelector(`[data-at="${to}"]`)?.scrollIntoView({ block: "nearest" });
        point(to);
      },
      pick: pin,
      clear: () => {
        cursor.current = null;
        onPin(null);
        point(null);
      },
    });

  return (
    <div
      ref={box}
      class="strip"
      // biome-ignore lint/a11y/noNoninteractiveTabindex: the arrow keys work in it
      tabIndex={0}
      role="application"
      aria-label={`${label}. Arrow keys move from token to token; Enter keeps one.`}
      onPointerOver={(event) => point(spanOf(event))}
      onPointerLeave={() => point(null)}
      onBlur={() => point(null)}
      onClick={(event) => {
        const at = spanOf(event);
        if (at !== null) pin(at);
      }}
      onKeyDown={keyed}
    >
      {tokens.map((token, at) => {
        const look = weights && shown ? linked(weights, shown, at) : resting(shares?.[at]);
        const marks =
          (at === pinned ? " pinned" : shown && (at === shown.query || at === shown.key) ? " at" : "") +
          (token.includes("\n") || token.length > LONG ? " breaks" : "");
        return (
          <span
            class={`strip-token ${look.class}${marks}`}
            style={look.style}
            data-at={at}
            title={shown ? undefined : about?.(at)}
          >
            <TokenText text={token} breaks />
          </span>
        );
      })}
    </div>
  );
}

type Look = {
  class: string;
  style: Record<string, string>;
};

function linked(weights: Weights, shown: Pointed, at: number): Look {
  if (shown.key !== null) return shade(at === shown.key ? weights.at(shown.query, shown.key) : 0);
  const to = shade(weights.at(shown.query, at));
  const from = at === shown.query ? 0 : weights.at(at, shown.query);
  return { class: to.class, style: { ...to.style, "--from": opacity(from).toFixed(3) } };
}

const resting = (share: number | undefined): Look => ({
  class: "resting",
  style: { "--a": share === undefined ? "0" : (0.42 * share).toFixed(3) },
});

/** What is pointed at, said in words. */
export function Spoken({
  tokens,
  weights,
  pointed,
  pinned,
  rest,
}: {
  tokens: readonly string[];
  weights: Weights;
  pointed: Pointed | null;
  pinned: number | null;
  rest: string;
}): JSX.Element {
  const shown: Pointed | null = pinned !== null ? { query: pinned, key: null } : pointed;
  const named = (at: number) => (
    <>
      <Quote text={tokens[at] ?? ""} />
      <small class="place">{at}</small>
    </>
  );
  let said: JSX.Element;
  if (!shown) said = <p>{rest}</p>;
  else if (shown.key !== null) {
    const { query, key } = shown;
    said = (
      <p>
        {named(query)} attends to {named(key)} <b>{percent(weights.at(query, key))}</b>
      </p>
    );
  } else {
    const at = shown.query;
    said = (
      <>
        <p>
          {named(at)} <span class="to-word">attends to</span>{" "}
          <Listed places={strongest(weights, "query", at)} tokens={tokens} />
        </p>
        <p>
          <span class="from-word">attended from</span>{" "}
          <Listed places={strongest(weights, "key", at).filter((place) => place.at !== at)} tokens={tokens} />
          {pinned !== null && <span class="soft"> Kept; Escape or another click lets it go.</span>}
        </p>
      </>
    );
  }
  return (
    <div class="spoken" aria-live="polite">
      {said}
    </div>
  );
}

function Listed({ places, tokens }: { places: Place[]; tokens: readonly string[] }): JSX.Element {
  if (!places.length) return <span class="soft">nothing that was kept</span>;
  return (
    <>
      {places.map(({ at, weight }) => (
        <span class="listed" title={`position ${at}: ${plain(tokens[at] ?? "")}`}>
          <Quote text={tokens[at] ?? ""} />
          <small class="place">{at}</small> <b>{percent(weight)}</b>
        </span>
      ))}
    </>
  );
}
