import "../shared/fields.css";
import "./filters.css";
import { useState } from "preact/hooks";
import { useTree } from "../data/tree";
import { useSelection } from "../shared/selection";
import { TypedField } from "../shared/TypedField";
import { type Condition, clearFilters, NO_KIND, useShown, writeFilters } from "./filters";
import { MeasureMenu } from "./MeasureMenu";

// Where the filters would push the plot out of the first screen, they wait behind a button.
const NARROW = "(max-width: 640px)";

/** What the heads shown must have in common; the same on all pages of all heads. */
export function FilterBar() {
  const tree = useTree();
  const { shown, filters, filtered } = useShown();
  const selection = useSelection();
  const layers = Array.from({ length: tree.config.n_layers }, (_, layer) => layer);
  const [from, to] = filters.layers;
  const [open, setOpen] = useState(() => filtered || !matchMedia(NARROW).matches);
  if (!open) {
    return (
      <p class="fields">
        <button type="button" class="button" aria-expanded={false} onClick={() => setOpen(true)}>
          Filter {tree.heads.length} heads
        </button>
      </p>
    );
  }
  return (
    <fieldset class="fields filters" aria-label="Filters">
      <TypedField
        label="Find"
        type="search"
        value={filters.find}
        placeholder="3.1, 5. or a kind"
        onType={(find) => writeFilters({ find }, tree)}
      />
      {tree.kinds.length > 0 && (
        <label class="field">
          <span>Kind</span>
          <select value={filters.kind} onChange={(event) => writeFilters({ kind: event.currentTarget.value }, tree)}>
            <option value="">any</option>
            {tree.kinds.map((kind) => (
              <option key={kind.name} value={kind.name}>
                {kind.label}
              </option>
            ))}
            <option value={NO_KIND}>none</option>
          </select>
        </label>
      )}
      <span class="field">
        <span aria-hidden="true">Layers</span>
        <select
          aria-label="First layer"
          value={from}
          onChange={({ currentTarget }) => {
            const first = Number(currentTarget.value);
            writeFilters({ layers: [first, Math.max(first, to)] }, tree);
          }}
        >
          {layers.map((layer) => (
            <option key={layer}>{layer}</option>
          ))}
        </select>
        –
        <select
          aria-label="Last layer"
          value={to}
          onChange={({ currentTarget }) => {
            const last = Number(currentTarget.value);
            writeFilters({ layers: [Math.min(from, last), last] }, tree);
          }}
        >
          {layers.map((layer) => (
            <option key={layer}>{layer}</option>
          ))}
        </select>
      </span>
      <ConditionFields where={filters.where} onChange={(where) => writeFilters({ where }, tree)} />
      <label class="field check">
        <input
          type="checkbox"
          checked={filters.only}
          disabled={selection.heads.length === 0 && !filters.only}
          onChange={(event) => writeFilters({ only: event.currentTarget.checked }, tree)}
        />
        <span>Selected only</span>
      </label>
      <span class="filtered" aria-live="polite">
        {filtered ? `${shown.size} of ${tree.heads.length} heads` : `${tree.heads.length} heads`}
        {filtered && (
          <button type="button" class="button" onClick={clearFilters}>
            Show all
          </button>
        )}
      </span>
    </fieldset>
  );
}

/** One measure above or below a number. */
function ConditionFields({
  where,
  onChange,
}: {
  where: Condition | null;
  onChange: (where: Condition | null) => void;
}) {
  const first = useTree().measures[0]?.name ?? "";
  const [draft, setDraft] = useState({ measure: where?.measure ?? "", above: where?.above ?? true });
  const shown = where ?? draft;
  const change = (changes: Partial<Condition>) => {
    const next = { ...shown, ...changes };
    setDraft(next);
    if (where) onChange(next.measure === "" ? null : { ...where, ...next });
  };
  return (
    <span class="condition">
      <MeasureMenu label="Where" value={shown.measure} onPick={(measure) => change({ measure })}>
        <option value="">any measure</option>
      </MeasureMenu>
      <select
        aria-label="Above or below"
        value={shown.above ? ">" : "<"}
        onChange={(event) => change({ above: event.currentTarget.value === ">" })}
      >
        <option>&gt;</option>
        <option>&lt;</option>
      </select>
      <TypedField
        label="Number"
        hidden
        type="number"
        value={where ? String(where.than) : ""}
        placeholder="0"
        onType={(text) => {
          const measure = shown.measure || first;
          setDraft({ ...shown, measure });
          onChange(text === "" ? null : { measure, above: shown.above, than: Number(text) });
        }}
      />
    </span>
  );
}
