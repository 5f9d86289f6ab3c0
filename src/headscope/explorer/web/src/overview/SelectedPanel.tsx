import { Fragment } from "preact";
import { useTree } from "../data/tree";
import { withError } from "../format";
import { address } from "../router";
import { HeadLink } from "../shared/HeadLink";
import { useSelection } from "../shared/selection";
import type { Quantity } from "./quantities";

const MOST = 60;

/** The selected heads with the numbers the plot shows them by. */
export function SelectedPanel({ quantities }: { quantities: Quantity[] }) {
  const tree = useTree();
  const { heads, set, toggle } = useSelection();
  const [one, other] = heads;
  if (!one) {
    return (
      <aside class="panel hint" aria-label="Selected heads">
        <h2>No heads selected</h2>
        <p>Drag over the plot to select heads, with Shift to add more. Ctrl-click takes a single one in or out.</p>
        <p>
          A click opens a head. Selected heads have bars of one standard error, and stay selected in table and grid.
        </p>
      </aside>
    );
  }
  return (
    <aside class="panel" aria-label="Selected heads">
      <div class="panel-title">
        <h2>{heads.length === 1 ? "1 head selected" : `${heads.length} heads selected`}</h2>
        {heads.length === 2 && other && (
          <a class="button" href={address(["compare", one.name, other.name])}>
            Compare
          </a>
        )}
        <button type="button" class="button" onClick={() => set([])}>
          Clear
        </button>
      </div>
      <div class="panel-scroll">
        <table>
          <thead>
            <tr>
              <th scope="col">Head</th>
              {quantities.map(({ name, label }) => (
                <th key={name} scope="col">
                  {label}
                </th>
              ))}
              <th aria-label="Remove" />
            </tr>
          </thead>
          <tbody>
            {heads.slice(0, MOST).map((head) => (
              <Fragment key={head.name}>
                <tr class="values">
                  <th scope="row">
                    <HeadLink name={head.name} />
                  </th>
                  {quantities.map(({ name, value, error }) => (
                    <td key={name} class="number">
                      {withError(value(head), error(head))}
                    </td>
                  ))}
                  <td>
                    <button
                      type="button"
                      class="let-go"
                      aria-label={`Remove ${head.name}`}
                      onClick={() => toggle(head)}
                    >
                      ×
                    </button>
                  </td>
                </tr>
                <tr class="what">
                  <td colSpan={quantities.length + 2}>{tree.labelOf(head)}</td>
                </tr>
              </Fragment>
            ))}
          </tbody>
        </table>
        {heads.length > MOST && <p class="soft">And {heads.length - MOST} more, which the table shows.</p>}
      </div>
    </aside>
  );
}
