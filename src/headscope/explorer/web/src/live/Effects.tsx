/** What each head and each MLP adds directly to the chosen token's logit, layer by layer. */
import { useRef } from "preact/hooks";
import { MISSING, number } from "../format";
import { shade } from "../tokens/shades";
import { walk } from "../tokens/walk";
import type { Answer, Change, Run } from "./answers";
import { changeTitle, componentTitle } from "./state";

export type View = "before" | "after" | "difference";

type Props = {
  answer: Answer;
  view: View;
  chosen: string | null;
  changes: readonly Change[];
  onPick: (component: string) => void;
};

/** A component, and its effect; null where a layer has no such component. */
type Effect = { component: string; effect: number | null };

/** The components of each layer: its heads, then its MLP. */
function rowsOf(run: Run): Effect[][] {
  return run.head_effects.map((heads, layer) => {
    const row = heads.map((effect, head) => ({ component: `${layer}.${head}`, effect }));
    const mlp = run.mlp_effects?.[layer];
    return mlp === undefined ? row : [...row, { component: `mlp${layer}`, effect: mlp }];
  });
}

/** The effects that a view shows. */
export function effectsOf({ before, after }: Answer, view: View): Effect[][] {
  const rows = rowsOf(before);
  if (!after || view === "before") return rows;
  const changed = rowsOf(after);
  if (view === "after") return changed;
  return changed.map((row, layer) =>
    row.map(({ component, effect }, at) => {
      const former = rows[layer]?.[at]?.effect ?? null;
      return { component, effect: effect === null || former === null ? null : effect - former };
    }),
  );
}

export function Effects({ answer, view, chosen, changes, onPick }: Props) {
  const table = useRef<HTMLTableElement>(null);
  const rows = effectsOf(answer, view);
  // One scale for before and after, so that colors compare.
  const sizes = (
    view === "difference" ? rows : [...rowsOf(answer.before), ...(answer.after ? rowsOf(answer.after) : [])]
  )
    .flat()
    .map(({ effect }) => Math.abs(effect ?? 0));
  const limit = Math.max(...sizes, 1e-9);
  const width = rows[0]?.length ?? 0;
  const cells = rows.flat();
  const at = cells.findIndex(({ component }) => component === chosen);
  const altered = new Map(changes.map((change) => [change.component, change]));
  const heads = answer.before.head_effects[0]?.length ?? 0;
  const pick = (to: number) => {
    const cell = cells[to];
    if (cell) onPick(cell.component);
  };
  return (
    <div class="scroll">
      <table
        ref={table}
        class="effects"
        onKeyDown={(event) =>
          walk(event, {
            count: cells.length,
            stride: width,
            at: at < 0 ? null : at,
            move: (to) => {
              table.current?.querySelectorAll<HTMLElement>("td button")[to]?.focus();
              pick(to);
            },
            pick,
            clear: () => {},
          })
        }
      >
        <caption class="hidden-text">Direct effects, layer by layer</caption>
        <thead>
          <tr>
            <th scope="col">layer</th>
            {Array.from({ length: width }, (_, column) => (
              <th key={column} scope="col">
                {column < heads ? column : "MLP"}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, layer) => (
            <tr key={layer}>
              <th scope="row">{layer}</th>
              {row.map(({ component, effect }, column) => {
                const look = shade((effect ?? 0) / limit);
                const change = altered.get(component);
                const about = `${componentTitle(component)}: ${number(effect, { signed: true })}${change ? `; changed: ${changeTitle(change)}` : ""}`;
                const first = at < 0 && layer === 0 && column === 0;
                return (
                  <td key={component}>
                    <button
                      type="button"
                      class={`${look.class}${change ? " altered" : ""}`}
                      style={look.style}
                      data-component={component}
                      aria-pressed={component === chosen}
                      aria-label={about}
                      title={about}
                      tabIndex={component === chosen || first ? 0 : -1}
                      onClick={() => onPick(component)}
                    >
                      {width <= 13 ? short(effect) : ""}
                    </button>
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const short = (effect: number | null): string =>
  effect === null ? MISSING : Math.abs(effect) < 0.005 ? "0" : effect.toFixed(2).replace("-", "−");
