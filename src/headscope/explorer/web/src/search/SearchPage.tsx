import "../tokens/tokens.css";
import "./search.css";
import { useMemo } from "preact/hooks";
import { useData } from "../data/load";
import { headName, useTree } from "../data/tree";
import type { HeadName, SearchIndex, TokenPlace } from "../data/types";
import { count, number } from "../format";
import { setOptions, useRoute } from "../router";
import { HeadLink } from "../shared/HeadLink";
import { Notice } from "../shared/Notice";
import { TypedField } from "../shared/TypedField";
import { Quote } from "../tokens/text";

const PLACES: Record<TokenPlace, { label: string; description: string }> = {
  query: { label: "Looks from", description: "Among the tokens that the head looks from most" },
  key: { label: "Looks at", description: "Among the tokens that the head looks at most" },
  ov_source: { label: "Reads", description: "Among the tokens whose output is in the head's OV table" },
  promoted: { label: "Promotes", description: "The head raises the token's logit" },
  suppressed: { label: "Suppresses", description: "The head lowers the token's logit" },
};
const SHOWN = 100;

type Hit = { token: string; head: HeadName; where: TokenPlace; weight: number };

/** Heads by the tokens they look from, look at, read, promote or suppress. */
export function SearchPage() {
  const index = useData<SearchIndex>("search");
  const { options } = useRoute();
  const query = options.get("q") ?? "";
  const where = options.get("where") ?? "";
  const more = Math.max(SHOWN, Number(options.get("show")) || 0);
  return (
    <>
      <h1>Search by token</h1>
      <div class="fields search-fields">
        <TypedField
          label="Token"
          type="search"
          value={query}
          placeholder="for example the"
          focused
          onType={(q) => setOptions({ q, show: null })}
        />
        <label class="field">
          <span>Where</span>
          <select value={where} onChange={(event) => setOptions({ where: event.currentTarget.value, show: null })}>
            <option value="">anywhere</option>
            {Object.entries(PLACES).map(([place, { label }]) => (
              <option key={place} value={place}>
                {label}
              </option>
            ))}
          </select>
        </label>
      </div>
      {index.state === "failed" && (
        <Notice title="This tree has no index of tokens.">
          <p>{index.message} Trees written by other programs may have none.</p>
        </Notice>
      )}
      {index.state === "loading" && <p class="soft">Loading…</p>}
      {index.state === "ready" && <Results index={index.data} query={query} where={where} show={more} />}
    </>
  );
}

type ResultsProps = { index: SearchIndex; query: string; where: string; show: number };

function Results({ index, query, where, show }: ResultsProps) {
  const tree = useTree();
  const hits = useMemo(() => find(index, query), [index, query]);
  const wanted = where ? hits.filter((hit) => hit.where === where) : hits;
  if (query === "") {
    return (
      <p class="soft">
        Type part of a token: {count(index.tokens.length)} tokens of {count(tree.heads.length)} heads are here. A space
        before or after it counts; upper and lower case do not.
      </p>
    );
  }
  if (wanted.length === 0) {
    return (
      <p class="soft" role="status">
        No head has <Quote text={query} /> {where ? "there" : "among its tokens"}.
      </p>
    );
  }
  const heads = new Set(wanted.map(({ head }) => head)).size;
  return (
    <>
      <p class="soft" role="status">
        {count(wanted.length)} places in {heads === 1 ? "1 head" : `${count(heads)} heads`}
      </p>
      <table class="results">
        <thead>
          <tr>
            <th scope="col">Head</th>
            <th scope="col">Where</th>
            <th scope="col">Token</th>
            <th scope="col">Weight</th>
            <th scope="col">Kind</th>
          </tr>
        </thead>
        <tbody>
          {wanted.slice(0, show).map((hit) => {
            const head = tree.head(hit.head);
            return (
              <tr key={`${hit.head} ${hit.where} ${hit.token}`}>
                <th scope="row">
                  <HeadLink name={hit.head} />
                </th>
                <td title={PLACES[hit.where]?.description}>{PLACES[hit.where]?.label ?? hit.where}</td>
                <td>
                  <Quote text={hit.token} />
                </td>
                <td class="number">{number(hit.weight)}</td>
                <td class="soft">{head && tree.labelOf(head)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {wanted.length > show && (
        <button type="button" class="button" onClick={() => setOptions({ show: String(show + SHOWN) })}>
          Show {Math.min(SHOWN, wanted.length - show)} more of {count(wanted.length - show)}
        </button>
      )}
    </>
  );
}

/** Where the text is found: whole tokens first, then by weight. */
function find({ tokens, entries }: SearchIndex, query: string): Hit[] {
  if (query === "") return [];
  const wanted = query.toLowerCase();
  const whole = new Map<number, boolean>();
  tokens.forEach((token, at) => {
    const text = token.toLowerCase();
    if (text.includes(wanted)) whole.set(at, text === wanted || text.trim() === wanted.trim());
  });
  return entries
    .filter(([token]) => whole.has(token))
    .sort(
      ([one, , , , weight], [other, , , , otherWeight]) =>
        Number(whole.get(other)) - Number(whole.get(one)) || Math.abs(otherWeight) - Math.abs(weight),
    )
    .map(([token, layer, head, where, weight]) => ({
      token: tokens[token] ?? "",
      head: headName(layer, head),
      where,
      weight,
    }));
}
