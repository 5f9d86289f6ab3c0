import { useState } from "preact/hooks";
import { applyTheme, storedTheme, storeTheme, THEMES, type Theme } from "../look/theme";
import { address, currentRoute, go } from "../router";
import { useKeys } from "../shared/keys";
import { Help } from "./Help";

/** Pages of the navigation; those of all heads share their options, so that a selection goes along. */
const LINKS = [
  { path: "", label: "Overview", key: "1", shared: true },
  { path: "heads", label: "Table", key: "2", shared: true },
  { path: "grid", label: "Grid", key: "3", shared: true },
  { path: "search", label: "Search", key: "/", shared: false },
  { path: "compare", label: "Compare", key: "c", shared: false },
  { path: "live", label: "Live", key: "l", shared: false },
];
const SHARED = new Set(LINKS.filter((link) => link.shared).map((link) => link.path));
const SIGNS: Record<Theme, string> = { system: "◐", light: "☀", dark: "☾" };

let kept = new URLSearchParams(); // options of the pages of all heads, for the way back

export function Header({ model, current }: { model: string; current: string }) {
  const [theme, setTheme] = useState(storedTheme);
  const [help, setHelp] = useState(false);
  const options = currentRoute().options;
  if (SHARED.has(current)) kept = options;
  const target = (path: string, shared: boolean) => address(path ? [path] : [], shared ? kept : {});
  const nextTheme = () => {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? "system";
    storeTheme(next);
    setTheme(next);
  };
  useKeys("Everywhere", [
    ...LINKS.map(({ path, label, key, shared }) => ({ key, label, run: () => go(target(path, shared)) })),
    { key: "t", label: "Light, dark or the system's theme", run: nextTheme },
    { key: "?", label: "This help", run: () => setHelp(true) },
  ]);
  return (
    <header class="top">
      <p class="brand" title={model}>
        <a href={target("", true)}>
          <span class="soft">Heads of</span> <b>{model}</b>
        </a>
      </p>
      <nav aria-label="Pages">
        {LINKS.map(({ path, label, shared }) => (
          <a key={path} href={target(path, shared)} aria-current={path === current ? "page" : undefined}>
            {label}
          </a>
        ))}
      </nav>
      <div class="tools">
        <button type="button" onClick={nextTheme} title={`Theme: ${theme} (t)`} aria-label={`Theme: ${theme}`}>
          {SIGNS[theme]}
        </button>
        <button type="button" onClick={() => setHelp(true)} title="Keys (?)" aria-label="Keys">
          ?
        </button>
      </div>
      {help && <Help close={() => setHelp(false)} />}
    </header>
  );
}

applyTheme(storedTheme());
