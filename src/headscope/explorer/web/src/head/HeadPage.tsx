/** One head: what kind it is, its measures, the texts it is active on, and the tokens it joins. */
import "./head.css";
import { useEffect } from "preact/hooks";
import { load, useData } from "../data/load";
import { readHistogram, readWeights } from "../data/reading";
import { type HeadEntry, useTree } from "../data/tree";
import type { Head, Histogram, KindEvidence, TokenWeight } from "../data/types";
import { number } from "../format";
import { address, go, useRoute } from "../router";
import { useKeys } from "../shared/keys";
import { Notice } from "../shared/Notice";
import { Bars, binNames, Distribution, shares } from "./charts";
import { HeadMenu, Missing, Part, UnknownHead } from "./frame";
import { Measures } from "./Measures";
import { Sequences } from "./Sequences";
import { OvTable, PairTable, WeightTable } from "./TokenTables";

export function HeadPage() {
  const tree = useTree();
  const { parts } = useRoute();
  const name = parts[1] ?? tree.heads[0]?.name ?? "";
  const entry = tree.head(name);
  if (!entry) return <UnknownHead name={name} />;
  return <Known key={name} entry={entry} />;
}

function Known({ entry }: { entry: HeadEntry }) {
  const tree = useTree();
  const loaded = useData(tree.headFile(entry.layer, entry.head));
  const at = tree.heads.indexOf(entry);
  const before = tree.heads[at - 1];
  const after = tree.heads[at + 1];
  const to = (other: HeadEntry | undefined) => other && go(address(["head", other.name]));
  const compared = address(["compare", entry.name, (after ?? before ?? entry).name]);
  useKeys("This head", [
    { key: "n", label: "Next head", run: () => to(after) },
    { key: "p", label: "Previous head", run: () => to(before) },
    { key: "c", label: "Compare with another head", run: () => go(compared) },
  ]);
  const ready = loaded.state === "ready";
  useEffect(() => {
    // The neighbors' files, so that the next page is there at once.
    if (ready)
      for (const other of [after, before]) if (other) load(tree.headFile(other.layer, other.head)).catch(() => {});
  }, [ready, tree, after, before]);
  return (
    <article class="head-page">
      <header class="head-title">
        <h1>Head {entry.name}</h1>
        <nav aria-label="Heads">
          <Step to={before} sign="‹" word="Previous" letter="p" />
          <HeadMenu value={entry.name} label="Head to show" onPick={(name) => go(address(["head", name]))} />
          <Step to={after} sign="›" word="Next" letter="n" />
          <a class="button" href={compared}>
            Compare
          </a>
          <a class="button" href={address(["live"], { part: entry.name })}>
            Try it live
          </a>
        </nav>
      </header>
      {loaded.state === "loading" && <p class="soft">Loading…</p>}
      {loaded.state === "failed" && (
        <Notice title="The data of this head are not there.">
          <p>{loaded.message}</p>
        </Notice>
      )}
      {loaded.state === "ready" && <Details entry={entry} head={loaded.data} />}
    </article>
  );
}

/** Tables and plots of a head's file that have no place of their own on the page. */
function others(custom: { key: string; label: string }[]): { key: string; label: string }[] {
  return custom.filter(({ key }) => !SHOWN.has(key));
}

const SHOWN = new Set([
  "qk_distance_histogram",
  "output_norm_histogram",
  "histogram",
  "top_query_tokens",
  "top_key_tokens",
]);

function Step({ to, sign, word, letter }: { to: HeadEntry | undefined; sign: string; word: string; letter: string }) {
  if (!to) {
    return (
      <span class="button step" aria-disabled="true">
        {sign}
      </span>
    );
  }
  const label = `${word} head, ${to.name}`;
  return (
    <a class="button step" href={address(["head", to.name])} aria-label={label} title={`${label} (${letter})`}>
      {sign}
    </a>
  );
}

function Details({ entry, head }: { entry: HeadEntry; head: Head }) {
  const tree = useTree();
  const { options } = useRoute();
  const distances = head.qk_distance_histogram;
  return (
    <>
      <Kinds kinds={head.kinds} />
      <Part title="Measures" id="measures">
        <Measures entry={entry} head={head} />
        {!head.measures && <Facts statistics={head.statistics} />}
      </Part>
      <Part title="On real text" id="texts" missing={!head.sequences?.length}>
        <Sequences
          head={entry.name}
          sequences={head.sequences ?? []}
          intervals={tree.config.n_intervals}
          options={options}
        />
      </Part>
      <Part title="What looks at what" id="tokens">
        <div class="listings">
          <section class="listing">
            <h3>How far back</h3>
            {distances ? (
              <Bars
                names={binNames(distances.bin_edges)}
                series={[{ name: entry.name, kind: "one", values: shares(distances) }]}
                label="Share of its attention, in %, by distance in tokens: from each number to below the next"
                across="distance"
              />
            ) : (
              <Missing />
            )}
          </section>
          <Weights
            title="Tokens that look"
            about="By how much attention they pay, all in all."
            rows={head.top_query_tokens}
            lost={head.statistics.query_tokens_lost}
          />
          <Weights
            title="Tokens looked at"
            about="By how much attention they get, all in all."
            rows={head.top_key_tokens}
            lost={head.statistics.key_tokens_lost}
          />
          {head.token_pairs ? (
            <PairTable rows={head.token_pairs} lost={head.statistics.token_pairs_lost} />
          ) : (
            <MissingListing title="Pairs it joins most" />
          )}
          {others(tree.config.custom_tables).map(({ key, label }) => (
            <Weights key={key} title={label} about="" rows={readWeights(head.others[key])} />
          ))}
        </div>
      </Part>
      <Part title="What it writes" id="ov" missing={!head.ov_table?.length}>
        <p class="soft note">
          What it adds to each token's logit, above the mean over all tokens, when all its attention is on one token;
          for the tokens that it attends to most.
        </p>
        <OvTable rows={head.ov_table ?? []} />
      </Part>
      <Part title="How its activity is spread" id="activity">
        <div class="listings">
          <Spread
            title="Size of what it writes"
            histogram={head.output_norm_histogram}
            label="Norm of its output at a token"
          />
          <Spread
            title="Largest attention"
            histogram={head.histogram}
            label="Largest weight in a text, off the diagonal and the first token"
          />
          {others(tree.config.custom_plots).map(({ key, label }) => (
            <Spread key={key} title={label} histogram={readHistogram(head.others[key])} label={label} />
          ))}
        </div>
      </Part>
      <Part title="Heads that behave alike" id="neighbors" missing={!head.neighbors?.length}>
        <Neighbors entry={entry} neighbors={head.neighbors ?? []} />
      </Part>
    </>
  );
}

function MissingListing({ title }: { title: string }) {
  return (
    <section class="listing">
      <h3>{title}</h3>
      <Missing />
    </section>
  );
}

type WeightsProps = { title: string; about: string; rows: TokenWeight[] | undefined; lost?: number | undefined };

function Weights({ title, about, rows, lost }: WeightsProps) {
  return rows ? <WeightTable title={title} about={about} rows={rows} lost={lost} /> : <MissingListing title={title} />;
}

function Spread({ title, histogram, label }: { title: string; histogram: Histogram | undefined; label: string }) {
  return (
    <section class="listing">
      <h3>{title}</h3>
      {histogram ? <Distribution histogram={histogram} label={label} /> : <Missing />}
    </section>
  );
}

function Kinds({ kinds }: { kinds: KindEvidence[] | undefined }) {
  const tree = useTree();
  if (!kinds) return <p class="missing">What kind of head it is was not measured.</p>;
  if (!kinds.length) {
    return (
      <p class="kinds-none">
        None of the kinds looked for{tree.kinds.length > 0 && `: ${tree.kinds.map((kind) => kind.label).join(", ")}`}.
      </p>
    );
  }
  return (
    <ul class="kinds">
      {kinds.map(({ name, label, evidence, sure }) => (
        <li key={name}>
          <b title={tree.kinds.find((kind) => kind.name === name)?.description}>{label}</b>{" "}
          <span class={sure ? "tag sure" : "tag"}>{sure ? "sure" : "not sure"}</span>
          <p>{evidence}</p>
        </li>
      ))}
    </ul>
  );
}

function Facts({ statistics }: { statistics: Head["statistics"] }) {
  const tree = useTree();
  const shown = Object.entries(statistics).flatMap(([key, value]) => {
    const label = tree.config.statistics_display[key];
    return label ? [{ key, label, value }] : [];
  });
  if (!shown.length) return null;
  return (
    <dl class="facts">
      {shown.map(({ key, label, value }) => (
        <div key={key}>
          <dt>{label}</dt>
          <dd>{Number.isInteger(value) ? value.toLocaleString("en") : number(value)}</dd>
        </div>
      ))}
    </dl>
  );
}

function Neighbors({ entry, neighbors }: { entry: HeadEntry; neighbors: NonNullable<Head["neighbors"]> }) {
  const tree = useTree();
  return (
    <>
      <p class="soft note">The cosine of their attention patterns, estimated to about 0.02.</p>
      <ul class="neighbors">
        {neighbors.map(({ layer, head, similarity }) => {
          const name = `${layer}.${head}`;
          const kinds = tree.head(name)?.kinds ?? [];
          return (
            <li key={name}>
              <a href={address(["head", name])}>{name}</a>
              <span class="soft">{kinds.map((kind) => tree.kindLabel(kind)).join(", ")}</span>
              <span class="value">{similarity.toFixed(2).replace("-", "−")}</span>
              <a class="quiet" href={address(["compare", entry.name, name])}>
                compare
              </a>
            </li>
          );
        })}
      </ul>
    </>
  );
}
