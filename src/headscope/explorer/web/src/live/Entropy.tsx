/** How sure the model is along its layers: the entropy of the logit lens at each state of the stream. */
import { number } from "../format";
import { useWidth } from "../shared/useWidth";
import type { Run } from "./answers";

const SIZE = { height: 190, left: 34, right: 8, top: 8, bottom: 26 };
const LABEL = 44; // pixels for a label across

export function Entropy({ before, after }: { before: Run; after: Run | null }) {
  const [box, measured] = useWidth<HTMLElement>();
  const width = measured || 560;
  const { labels, values } = before.entropy;
  const changed = after?.entropy.values ?? null;
  const highest = Math.max(...values, ...(changed ?? []), 1e-9);
  const step = tick(highest);
  const top = Math.ceil(highest / step) * step;
  const x = (at: number) => SIZE.left + ((width - SIZE.left - SIZE.right) * at) / Math.max(1, values.length - 1);
  const y = (value: number) => SIZE.top + (SIZE.height - SIZE.top - SIZE.bottom) * (1 - value / top);
  const path = (line: readonly number[]) =>
    line.map((value, at) => `${at ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const every = Math.ceil((labels.length * LABEL) / (width - SIZE.left));
  const said = `Entropy in nats, from ${number(values[0])} to ${number(values.at(-1))} at the end${changed ? `; with the changes to ${number(changed.at(-1))}` : ""}`;
  return (
    <figure ref={box} class="entropy">
      <svg viewBox={`0 0 ${width} ${SIZE.height}`} height={SIZE.height} role="img" aria-label={said}>
        {Array.from({ length: Math.round(top / step) + 1 }, (_, at) => at * step).map((value) => (
          <g key={value}>
            <path class="grid" d={`M${SIZE.left} ${y(value)}H${width - SIZE.right}`} />
            <text x={SIZE.left - 6} y={y(value) + 4} text-anchor="end">
              {Number(value.toPrecision(3))}
            </text>
          </g>
        ))}
        {labels.map(
          (label, at) =>
            at % every === 0 && (
              <text key={label} x={x(at)} y={SIZE.height - 8} text-anchor={at === labels.length - 1 ? "end" : "middle"}>
                {label}
              </text>
            ),
        )}
        <path class={changed ? "line before" : "line"} d={path(values)} />
        {changed && <path class="line" d={path(changed)} />}
        {values.map((value, at) => (
          <circle key={labels[at]} class="hit" cx={x(at)} cy={y(changed?.[at] ?? value)} r="6">
            <title>{`${labels[at]}: ${number(value)}${changed ? ` → ${number(changed[at])}` : ""} nats`}</title>
          </circle>
        ))}
      </svg>
      <figcaption>
        Entropy of the logit lens after each state of the stream, in nats
        {changed ? "; dashed: as it is" : ""}. At the end <b data-value="entropy">{number(values.at(-1))}</b>
        {changed && (
          <>
            {" → "}
            <b data-value="entropy-after">{number(changed.at(-1))}</b>
          </>
        )}
        .
      </figcaption>
    </figure>
  );
}

/** A round step that gives three to six lines. */
function tick(top: number): number {
  const rough = top / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  return (rough / power > 5 ? 10 : rough / power > 2 ? 5 : rough / power > 1 ? 2 : 1) * power;
}
