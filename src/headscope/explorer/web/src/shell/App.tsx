import type { ComponentChildren, ComponentType } from "preact";
import { useEffect, useErrorBoundary, useLayoutEffect, useMemo } from "preact/hooks";
import { ComparePage } from "../compare/ComparePage";
import { useData } from "../data/load";
import { CONFIG, ROWS, Tree, TreeContext } from "../data/tree";
import { HeadPage } from "../head/HeadPage";
import { LivePage } from "../live/LivePage";
import { GridPage } from "../overview/GridPage";
import { ScatterPage } from "../overview/ScatterPage";
import { TablePage } from "../overview/TablePage";
import { address, useRoute } from "../router";
import { SearchPage } from "../search/SearchPage";
import { Notice } from "../shared/Notice";
import { Header } from "./Header";

/** The page of each first part of a route. */
const PAGES = new Map<string, { title: string; page: ComponentType }>([
  ["", { title: "Overview", page: ScatterPage }],
  ["heads", { title: "Table", page: TablePage }],
  ["grid", { title: "Grid", page: GridPage }],
  ["head", { title: "Head", page: HeadPage }],
  ["compare", { title: "Compare", page: ComparePage }],
  ["search", { title: "Search", page: SearchPage }],
  ["live", { title: "Live", page: LivePage }],
]);

export function App() {
  const config = useData(CONFIG);
  const rows = useData(ROWS);
  const tree = useMemo(
    () => (config.state === "ready" && rows.state === "ready" ? new Tree(config.data, rows.data) : null),
    [config.state, rows.state],
  );
  const { parts } = useRoute();
  const [first = "", ...rest] = parts;
  const found = PAGES.get(first);

  const title = [found?.title ?? "Not found", ...rest].join(" ");
  const model = tree?.config.model_name;
  useLayoutEffect(() => {
    document.title = model ? `${title} · ${model} · Head explorer` : "Head explorer";
  }, [title, model]);

  for (const loaded of [config, rows]) {
    if (loaded.state === "failed") return <Broken message={loaded.message} />;
  }
  if (!tree) return <p class="loading">Loading…</p>;
  return (
    <TreeContext.Provider value={tree}>
      <a
        class="skip"
        href={location.hash}
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the content
      </a>
      <Header model={tree.config.model_name} current={first} />
      <main id="main" tabIndex={-1} aria-label={title}>
        <Guarded place={parts.join("/")}>{found ? <found.page /> : <NotFound />}</Guarded>
      </main>
    </TreeContext.Provider>
  );
}

/** A page, or why it cannot be drawn, until the reader goes elsewhere. */
function Guarded({ place, children }: { place: string; children: ComponentChildren }) {
  const [error, reset] = useErrorBoundary();
  useEffect(reset, [place]);
  if (!error) return <>{children}</>;
  return (
    <Notice title="This page cannot be drawn.">
      <p>Something in the tree's data is not as it should be: {String(error)}</p>
    </Notice>
  );
}

function NotFound() {
  return (
    <Notice title="There is no such page.">
      <p>
        <a href={address([])}>All heads</a>
      </p>
    </Notice>
  );
}

function Broken({ message }: { message: string }) {
  return (
    <main id="main" tabIndex={-1}>
      <Notice title="The data of this page are not there.">
        <p>{message}</p>
        <p>
          <code>index.html</code> belongs in the folder that <code>headscope explore</code> wrote, beside{" "}
          <code>config.js</code> and <code>heads</code>.
        </p>
      </Notice>
    </main>
  );
}
