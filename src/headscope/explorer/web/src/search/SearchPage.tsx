import "../tokens/tokens.css";
import "./search.css";
import { useMemo } from "preact/hooks";
import { useData } from "../data/load";
import { headName, SEARCH, useTree } from "../data/tree";
import type { HeadName, SearchIndex, TokenPlace } from "../data/types";
import { count, number } from "../format";
import { setOptions, useRoute } from "../router";
import { HeadLink } from "../shared/HeadLink";
import { Notice } from "../shared/Notice";
import { TypedField } from "../shared/TypedField";
import { Quote } from "../tokens/text";

const PLACES: Record<TokenPlace, { title: string; description: string; weight: string }> = {
  query: { title: "Looks from", description: "The head attends most strongly from it", weight: "Weight" },
  key: { title: "Looks at", description: "The head attends most strongly to it", weight: "Weight" },
  ov_source: { title: "Reads", description: "The head's OV table has what it writes there", weight: "Share" },
  promoted: { title: "Promotes", description: "The head raises its logit, looking at some token", weight: "Logit" },
  suppressed: { title: "Suppresses", description: "The head lowers its logit, looking at some token", weight: "Logit" },
};
const SHOWN = 20; // of each place, when all are shown
const MORE = 200; // of the one place that is asked for

type Hit = { token: string; head: HeadName; weight: number };

/** Heads by the tokens they look from, look at, read, promote or suppress. */
export function SearchPage() {
  const index = useData(SEARCH);
  const { options } = useRoute();
  const query = options.get("q") ?? "";
  const where = options.get("where") ?? "";
  return (
    <>
      <h1>Search by token</h1>
      <div class="fields search-fields">
        <TypedField
          label="Token"
          type="search"
          value={query}
          placeholder="part of a token"
          focused
          onType={(q) => setOptions({ q })}
        />
        <label class="field">
          <span>Where</span>
          <select value={where} onChange={(event) => setOptions({ where: event.currentTarget.value })}>
            <option value="">anywhere</option>
            {Object.entries(PLACES).map(([place, { title }]) => (
              <option key={place} value={place}>
                {title}
              </option>
            ))}
          </select>
        </label>
      </div>
      {index.state === "failed" && (
        <Notice title="This tree has no index of tokens.">
          <p>{index.message} Trees written by other programs have none.</p>
        </Notice>
      )}
      {index.state === "loading" && <p class="soft">Loading…</p>}
      {index.state === "ready" && <Results index={index.data} query={query} where={where} />}
    </>
  );
}

function Results({ index, query, where }: { index: SearchIndex; query: string; where: string }) {
  const { heads } = useTree();
  const found = useMemo(() => find(index, query), [index, query]);
  if (query === "") {
    return (
      <p class="soft">
        {count(index.tokens.length)} tokens stand in the lists of {count(heads.length)} heads. Type part of one: spaces
        before and after it count, upper and lower case do not.
      </p>
    );
  }
  const places = index.places.filter((place) => found.get(place)?.length && (where === "" || where === place));
  const total = places.reduce((sum, place) => sum + (found.get(place)?.length ?? 0), 0);
  return (
    <>
      <p class="soft" role="status">
        {total === 0 ? "No head has " : `${count(total)} ${total === 1 ? "entry has" : "entries have"} `}
        <Quote text={query} /> {total === 0 && (where ? "there." : "in its lists.")}
      </p>
      <div class="places">
        {places.map((place) => (
          <Place key={place} place={place} hits={found.get(place) ?? []} most={where ? MORE : SHOWN} />
        ))}
      </div>
    </>
  );
}

function Place({ place, hits, most }: { place: TokenPlace; hits: Hit[]; most: number }) {
  const tree = useTree();
  const { title, description, weight } = PLACES[place] ?? { title: place, description: "", weight: "Weight" };
  const left = hits.length - most;
  return (
    <section data-place={place}>
      <h2>
        {title} <span class="soft">{count(hits.length)}</span>
      </h2>
      <p class="soft">{description}.</p>
      <table class="results">
        <thead>
          <tr>
            <th scope="col">Head</th>
            <th scope="col">Token</th>
            <th scope="col">{weight}</th>
          </tr>
        </thead>
        <tbody>
          {hits.slice(0, most).map(({ head, token, weight }) => {
            const entry = tree.head(head);
            return (
              <tr key={`${head} ${token}`}>
                <th scope="row">
                  <HeadLink name={head} /> <small class="soft">{entry && tree.labelOf(entry)}</small>
                </th>
                <td>
                  <Quote text={token} />
                </td>
                <td class="number">{number(weight)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {left > 0 && most === SHOWN && (
        <button type="button" class="button" onClick={() => setOptions({ where: place }, true)}>
          {count(left)} more
        </button>
      )}
      {left > 0 && most === MORE && <p class="soft">And {count(left)} more, of less weight.</p>}
    </section>
  );
}

/** Where the text is found, by place: in whole tokens first, then by weight. */
function find(index: SearchIndex, query: string): Map<TokenPlace, Hit[]> {
  const wanted = query.toLowerCase();
  const whole = new Map<number, boolean>();
  index.tokens.forEach((token, at) => {
    const text = token.toLowerCase();
    if (wanted !== "" && text.includes(wanted)) whole.set(at, text === wanted || text.trim() === wanted);
  });
  const entries = index.token.flatMap((token, at) => (whole.has(token) ? [at] : []));
  const size = (at: number) => Math.abs(index.weight[at] ?? 0);
  const isWhole = (at: number) => Number(whole.get(index.token[at] ?? -1));
  entries.sort((one, other) => isWhole(other) - isWhole(one) || size(other) - size(one));
  const found = new Map<TokenPlace, Hit[]>(index.places.map((place) => [place, []]));
  for (const at of entries) {
    const place = index.places[index.where[at] ?? -1];
    const hit = {
      token: index.tokens[index.token[at] ?? -1] ?? "",
      head: headName(index.layer[at] ?? 0, index.head[at] ?? 0),
      weight: index.weight[at] ?? 0,
    };
    if (place) found.get(place)?.push(hit);
  }
  return found;
}
