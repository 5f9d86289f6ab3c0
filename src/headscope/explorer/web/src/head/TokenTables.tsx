// Tokens of a head: those that look, those looked at, pairs, and what it writes when it looks at one.

import type { ComponentChildren, JSX } from "preact";
import { useState } from "preact/hooks";

import type { OvRow, TokenLogit, TokenWeight } from "../data/types";
import { number, percent } from "../format";
import { address } from "../router";
import { Quote } from "../tokens/text";

const FIRST = 10;

/** A token that leads to the heads it is found at. */
export function TokenLink({ token }: { token: string }): JSX.Element {
  return (
    <a class="token-link" href={address(["search"], { q: token })}>
      <Quote text={token} />
    </a>
  );
}

/** A list of which the first ten are shown until more is asked for. */
function useSome<T>(rows: readonly T[], first: number, noun: string): [readonly T[], JSX.Element | null] {
  const [all, setAll] = useState(false);
  const button =
    rows.length > first ? (
      <button type="button" class="quiet" aria-expanded={all} onClick={() => setAll(!all)}>
        {all ? "fewer" : `all ${rows.length} ${noun}`}
      </button>
    ) : null;
  return [all ? rows : rows.slice(0, first), button];
}

/** Our weights are shares, and known to be too low by no more than so much; those of others are what they are. */
const shareOf = (weight: number, lost: number | undefined): string =>
  lost === undefined ? number(weight) : percent(weight);

function Listing({
  title,
  about,
  children,
  more,
  lost,
}: {
  title: string;
  about: string;
  children: ComponentChildren;
  more: ComponentChildren;
  /** The most that a share may be too low by. */
  lost: number | undefined;
}): JSX.Element {
  return (
    <section class="listing">
      <h3>{title}</h3>
      <p class="soft note">{about}</p>
      {children}
      {!!lost && (
        <p class="soft note lost">
          Counted in bounded memory: a share may be too low by up to {percent(lost)}, and is pale if no larger.
        </p>
      )}
      {more}
    </section>
  );
}

export function WeightTable({
  title,
  about,
  rows,
  shared,
  lost,
}: {
  title: string;
  about: string;
  rows: readonly TokenWeight[];
  shared?: ReadonlySet<string>;
  lost?: number | undefined;
}): JSX.Element {
  const [shown, more] = useSome(rows, FIRST, "tokens");
  const largest = Math.max(...rows.map((row) => row.weight), 1e-9);
  return (
    <Listing title={title} about={about} more={more} lost={lost}>
      <table class="weights">
        <tbody>
          {shown.map(({ token, weight }) => (
            <tr class={`${shared?.has(token) ? "shared" : ""}${weight <= (lost ?? 0) ? " pale" : ""}`}>
              <th scope="row">
                <TokenLink token={token} />
              </th>
              <td class="bar">
                <i style={{ width: `${(100 * weight) / largest}%` }} />
              </td>
              <td class="value">{shareOf(weight, lost)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Listing>
  );
}

type PairProps = { rows: readonly { query: string; key: string; weight: number }[]; lost: number | undefined };

export function PairTable({ rows, lost }: PairProps): JSX.Element {
  const [shown, more] = useSome(rows, FIRST, "pairs");
  return (
    <Listing title="Pairs it joins most" about="The token that looks, and the one looked at." more={more} lost={lost}>
      <table class="weights">
        <tbody>
          {shown.map(({ query, key, weight }) => (
            <tr class={weight <= (lost ?? 0) ? "pale" : ""}>
              <th scope="row">
                <TokenLink token={query} /> <span class="soft">→</span> <TokenLink token={key} />
              </th>
              <td class="value">{shareOf(weight, lost)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Listing>
  );
}

export function OvTable({ rows }: { rows: readonly OvRow[] }): JSX.Element {
  const [shown, more] = useSome(rows, FIRST, "tokens");
  return (
    <>
      <div class="scroll">
        <table class="ov">
          <thead>
            <tr>
              <th scope="col">looking at</th>
              <th scope="col" class="value">
                share of attention
              </th>
              <th scope="col">it raises</th>
              <th scope="col">and lowers</th>
            </tr>
          </thead>
          <tbody>
            {shown.map(({ token, share, promoted, suppressed }) => (
              <tr>
                <th scope="row">
                  <TokenLink token={token} />
                </th>
                <td class="value">{percent(share)}</td>
                <td>
                  <Logits rows={promoted} own={token} />
                </td>
                <td>
                  <Logits rows={suppressed} own={token} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {more}
    </>
  );
}

function Logits({ rows, own }: { rows: readonly TokenLogit[]; own: string }): JSX.Element {
  return (
    <ul class="logits">
      {rows.slice(0, 5).map(({ token, logit }) => (
        <li class={token === own ? "own" : ""} title={token === own ? "the token it looks at itself" : undefined}>
          <Quote text={token} /> <small>{number(logit, { signed: true })}</small>
        </li>
      ))}
    </ul>
  );
}
