/** Two heads side by side, everything on the same scales. */
import "../head/head.css";
import "./compare.css";
import { useData } from "../data/load";
import { type HeadEntry, useTree } from "../data/tree";
import type { Head, Histogram, Measure, Sequence, TokenWeight } from "../data/types";
import { withError } from "../format";
import { Bars, binNames, Distribution, densities, Standing, shares } from "../head/charts";
import { HeadMenu, Missing, Part, UnknownHead } from "../head/frame";
import { estimate, MeasureName, MeasureTable, valuesOf } from "../head/Measures";
import { rangeOfNorms, SequenceCard } from "../head/Sequences";
import { OvTable, WeightTable } from "../head/TokenTables";
import { address, go, useRoute } from "../router";
import { useKeys } from "../shared/keys";
import { Notice } from "../shared/Notice";

type Side = { entry: HeadEntry; head: Head; kind: "one" | "two" };

export function ComparePage() {
  const tree = useTree();
  const { parts } = useRoute();
  const wanted = [parts[1] ?? tree.heads[0]?.name ?? "", parts[2] ?? tree.heads[1]?.name ?? tree.heads[0]?.name ?? ""];
  const [one, two] = wanted.map((name) => tree.head(name));
  if (!one || !two) return <UnknownHead name={wanted[one ? 1 : 0] ?? ""} />;
  return <Pair one={one} two={two} />;
}

function Pair({ one, two }: { one: HeadEntry; two: HeadEntry }) {
  const tree = useTree();
  const [first, second] = [one, two].map((entry) => useData(tree.headFile(entry.layer, entry.head)));
  const to = (a: string, b: string) => go(address(["compare", a, b]));
  useKeys("These two heads", [{ key: "x", label: "Swap them", run: () => to(two.name, one.name) }]);
  return (
    <article class="compare-page">
      <header class="head-title">
        <h1>
          <span class="one-name">{one.name}</span> and <span class="two-name">{two.name}</span>
        </h1>
        <nav class="picks" aria-label="Heads">
          <HeadMenu value={one.name} label="First head" onPick={(name) => to(name, two.name)} />
          <button
            type="button"
            class="button"
            title="Swap them (x)"
            aria-label="Swap"
            onClick={() => to(two.name, one.name)}
          >
            ⇄
          </button>
          <HeadMenu value={two.name} label="Second head" onPick={(name) => to(one.name, name)} />
        </nav>
      </header>
      {[first, second].map(
        (loaded, at) =>
          loaded?.state === "failed" && (
            <Notice key={at} title={`The data of head ${(at ? two : one).name} are not there.`}>
              <p>{loaded.message}</p>
            </Notice>
          ),
      )}
      {first?.state === "ready" && second?.state === "ready" && (
        <Both
          one={{ entry: one, head: first.data, kind: "one" }}
          two={{ entry: two, head: second.data, kind: "two" }}
        />
      )}
    </article>
  );
}

function Both({ one, two }: { one: Side; two: Side }) {
  const sides = [one, two];
  return (
    <>
      <div class="two">
        {sides.map(({ entry, head }) => (
          <p key={entry.name}>
            <a href={address(["head", entry.name])}>
              <b>{entry.name}</b>
            </a>{" "}
            {head.kinds
              ? head.kinds.map((kind) => kind.label + (kind.sure ? "" : " (not sure)")).join(", ") ||
                "none of the kinds looked for"
              : "kind not measured"}
          </p>
        ))}
      </div>
      <Part title="Measures" id="measures">
        <Differences one={one} two={two} />
      </Part>
      <Part title="How far back" id="distances">
        <Distances one={one} two={two} />
      </Part>
      <Part title="Activity" id="activity">
        <h3>Size of what they write</h3>
        <Spreads sides={sides} of={(head) => head.output_norm_histogram} label="Norm of the output at a token" />
        <h3>Largest attention</h3>
        <Spreads
          sides={sides}
          of={(head) => head.histogram}
          label="Largest weight in a text, off the diagonal and the first token"
        />
      </Part>
      <Part title="Tokens" id="tokens">
        <p class="soft note">A frame marks the tokens that both lists have.</p>
        <Tokens
          one={one}
          two={two}
          title="Tokens that look"
          of={(head) => head.top_query_tokens}
          lost="query_tokens_lost"
        />
        <Tokens
          one={one}
          two={two}
          title="Tokens looked at"
          of={(head) => head.top_key_tokens}
          lost="key_tokens_lost"
        />
      </Part>
      <Part title="What they write" id="ov">
        <div class="two">
          {sides.map(({ entry, head }) => (
            <section key={entry.name}>
              <h3>{entry.name}</h3>
              {head.ov_table?.length ? <OvTable rows={head.ov_table} /> : <Missing />}
            </section>
          ))}
        </div>
      </Part>
      <Part title="On text" id="texts">
        <Texts one={one} two={two} />
      </Part>
    </>
  );
}

/** The standard error of a difference, of two estimates taken as independent; null where one has none. */
export function errorOfDifference(one: number | null, two: number | null): number | null {
  return one === null || two === null ? null : Math.hypot(one, two);
}

function Differences({ one, two }: { one: Side; two: Side }) {
  return (
    <>
      <MeasureTable
        columns={[
          { name: one.entry.name, class: "value one-name" },
          { name: two.entry.name, class: "value two-name" },
          { name: `${two.entry.name} − ${one.entry.name}`, class: "value" },
          { name: "among all heads", class: "strip-column" },
        ]}
        row={(measure) => <Difference key={measure.name} one={one} two={two} measure={measure} />}
      />
      <p class="soft note">
        ± is one standard error; that of a difference takes the two heads as independent, though they were measured on
        the same text. Bold: a difference of more than two of its errors.
      </p>
    </>
  );
}

function Difference({ one, two, measure }: { one: Side; two: Side; measure: Measure }) {
  const tree = useTree();
  const [first, second] = [one, two].map(({ entry, head }) => estimate(entry, head, measure));
  if (!first || !second) return null;
  const both = first.value !== null && second.value !== null;
  const difference = both ? (second.value as number) - (first.value as number) : null;
  const error = errorOfDifference(first.error, second.error);
  const marks = [
    { value: first.value, kind: "one" as const },
    { value: second.value, kind: "two" as const },
  ].filter((mark): mark is { value: number; kind: "one" | "two" } => mark.value !== null);
  const signed = { signed: measure.diverging };
  const clear = difference !== null && error !== null && Math.abs(difference) > 2 * error;
  return (
    <tr data-measure={measure.name}>
      <th scope="row">
        <MeasureName measure={measure} />
      </th>
      <td class="value">{withError(first.value, first.error, signed)}</td>
      <td class="value">{withError(second.value, second.error, signed)}</td>
      <td class={clear ? "value clear" : "value"}>{withError(difference, error, { signed: true })}</td>
      <td class="strip-column">
        <Standing
          values={valuesOf(tree, measure)}
          marks={marks}
          log={measure.better_log}
          diverging={measure.diverging}
        />
      </td>
    </tr>
  );
}

function Distances({ one, two }: { one: Side; two: Side }) {
  const histograms = [one, two].map(({ head }) => head.qk_distance_histogram);
  const [first, second] = histograms;
  if (!first || !second) return <Missing />;
  const names = binNames(first.bin_edges.length >= second.bin_edges.length ? first.bin_edges : second.bin_edges);
  const series = [one, two].map(({ entry, kind }, at) => {
    const histogram = (at ? second : first) as Histogram;
    const own = binNames(histogram.bin_edges);
    const values = shares(histogram);
    return { name: entry.name, kind, values: names.map((name) => values[own.indexOf(name)] ?? 0) };
  });
  return (
    <Bars
      names={names}
      series={series}
      label="Share of their attention by distance in tokens: from each number to below the next"
      across="distance"
    />
  );
}

function Spreads(props: { sides: Side[]; of: (head: Head) => Histogram | undefined; label: string }) {
  const histograms = props.sides.map(({ head }) => props.of(head));
  const present = histograms.filter((histogram) => histogram !== undefined);
  const edges = present.flatMap((histogram) => histogram.bin_edges);
  const domain: [number, number] = [Math.min(...edges), Math.max(...edges)];
  const top = Math.max(...present.flatMap(densities), 1e-9);
  return (
    <div class="two">
      {histograms.map((histogram, at) => {
        const side = props.sides[at] as Side;
        const label = `${side.entry.name}: ${props.label}`;
        return histogram ? (
          <Distribution
            key={side.entry.name}
            histogram={histogram}
            kind={side.kind}
            label={label}
            domain={domain}
            top={top}
          />
        ) : (
          <Missing key={side.entry.name} />
        );
      })}
    </div>
  );
}

type TokensProps = {
  one: Side;
  two: Side;
  title: string;
  of: (head: Head) => TokenWeight[] | undefined;
  lost: "query_tokens_lost" | "key_tokens_lost";
};

function Tokens(props: TokensProps) {
  const lists = [props.one, props.two].map(({ head }) => props.of(head));
  const [first, second] = lists.map((rows) => new Set(rows?.map((row) => row.token)));
  const shared = new Set([...(first ?? [])].filter((token) => second?.has(token)));
  return (
    <div class="two">
      {[props.one, props.two].map(({ entry, head }, at) => {
        const rows = lists[at];
        const title = `${entry.name}: ${props.title.toLowerCase()}`;
        return rows ? (
          <WeightTable
            key={entry.name}
            title={title}
            about={`${shared.size} of ${rows.length} in both lists`}
            rows={rows}
            shared={shared}
            lost={head.statistics[props.lost]}
          />
        ) : (
          <section key={entry.name}>
            <h3>{title}</h3>
            <Missing />
          </section>
        );
      })}
    </div>
  );
}

/** A text that both heads have, else each head's first. */
export function textsOf(
  one: readonly Sequence[],
  two: readonly Sequence[],
): [Sequence | undefined, Sequence | undefined] {
  const others = new Map(two.map((sequence) => [sequence.sequence_id, sequence]));
  const shared = one.find((sequence) => others.has(sequence.sequence_id));
  return shared ? [shared, others.get(shared.sequence_id)] : [one[0], two[0]];
}

function Texts({ one, two }: { one: Side; two: Side }) {
  const texts = textsOf(one.head.sequences ?? [], two.head.sequences ?? []);
  const same = texts[0]?.sequence_id === texts[1]?.sequence_id;
  return (
    <>
      <p class="soft note">
        {same
          ? "The same text, as each of them reads it."
          : "No text is kept for both: the one each of them is most active on."}
      </p>
      <div class="two">
        {[one, two].map(({ entry }, at) => {
          const sequence = texts[at];
          return (
            <section key={entry.name}>
              <h3>{entry.name}</h3>
              {sequence ? <CompareText entry={entry} sequence={sequence} /> : <Missing />}
            </section>
          );
        })}
      </div>
    </>
  );
}

function CompareText({ entry, sequence }: { entry: HeadEntry; sequence: Sequence }) {
  return (
    <ul class="sequences stacked">
      <SequenceCard sequence={sequence} head={entry.name} norms={rangeOfNorms([sequence])} open />
    </ul>
  );
}
