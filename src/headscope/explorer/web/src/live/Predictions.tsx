/** The next tokens, as the model is and with the changes, side by side. */
import { percent } from "../format";
import { Quote } from "../tokens/text";
import type { Answer, Run } from "./answers";

type Props = { answer: Answer; chosen: number | null; onPick: (target: number | null) => void };

export function Predictions({ answer, chosen, onPick }: Props) {
  const { before, after, target } = answer;
  return (
    <>
      <div class={after ? "two" : "one-table"}>
        <Table title={after ? "As it is" : "Next token"} run={before} target={target.id} onPick={onPick} />
        {after && <Table title="With the changes" run={after} against={before} target={target.id} onPick={onPick} />}
      </div>
      <p class="target">
        Looked at: <Quote text={target.token} />
        {chosen === null && <span class="soft"> (the most probable)</span>}, probability{" "}
        <b data-value="target-probability">{percent(before.target_probability)}</b>
        {after && (
          <>
            {" → "}
            <b data-value="target-probability-after">{percent(after.target_probability)}</b>
          </>
        )}
        , rank {(before.target_rank + 1).toLocaleString("en")}
        {after && ` → ${(after.target_rank + 1).toLocaleString("en")}`}.{" "}
        {chosen !== null && (
          <button type="button" class="quiet" onClick={() => onPick(null)}>
            the most probable again
          </button>
        )}
      </p>
    </>
  );
}

type TableProps = { title: string; run: Run; against?: Run; target: number; onPick: (target: number) => void };

function Table({ title, run, against, target, onPick }: TableProps) {
  const earlier = new Map(against?.predictions.map(({ id, probability }) => [id, probability]));
  const rest = 1 - run.predictions.reduce((sum, { probability }) => sum + probability, 0);
  return (
    <table class="predictions">
      <caption>{title}</caption>
      <tbody>
        {run.predictions.map(({ id, token, probability }, at) => {
          const former = earlier.get(id);
          return (
            <tr key={id} class={id === target ? "chosen" : ""}>
              <td class="place-column">{at + 1}</td>
              <th scope="row">
                <button
                  type="button"
                  title={`look at this token (id ${id})`}
                  aria-pressed={id === target}
                  onClick={() => onPick(id)}
                >
                  <Quote text={token} />
                </button>
                <i style={{ width: `${100 * probability}%` }} />
              </th>
              <td class="value">{percent(probability)}</td>
              {against && <td class="value soft">{former === undefined ? "new" : points(probability - former)}</td>}
            </tr>
          );
        })}
        <tr class="rest">
          <td />
          <th scope="row">all others</th>
          <td class="value">{percent(Math.max(0, rest))}</td>
          {against && <td />}
        </tr>
      </tbody>
    </table>
  );
}

/** A difference of two probabilities in percentage points. */
function points(difference: number): string {
  const text = (100 * difference).toFixed(1);
  if (Number(text) === 0) return "=";
  return (difference > 0 ? "+" : "") + text.replace("-", "−");
}
