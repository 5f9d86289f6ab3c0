/** The prompt's tokens with their ids and losses; the one chosen is where the next token is read. */
import { useRef } from "preact/hooks";
import { number } from "../format";
import { plain, TokenText } from "../tokens/text";
import { walk } from "../tokens/walk";
import type { Answer } from "./answers";

type Props = { answer: Answer; position: number; onPick: (position: number) => void };

/** The mean of the losses that there are. */
export function meanLoss(losses: readonly (number | null)[]): number | null {
  const known = losses.filter((loss) => loss !== null);
  return known.length ? known.reduce((sum, loss) => sum + loss, 0) / known.length : null;
}

export function Tokens({ answer, position, onPick }: Props) {
  const { tokens, ids, other_tokens: others, before, after } = answer;
  const list = useRef<HTMLDivElement>(null);
  const largest = Math.max(...[...before.losses, ...(after?.losses ?? [])].map((loss) => loss ?? 0), 1e-9);
  const move = (to: number) => {
    list.current?.querySelectorAll<HTMLElement>("[role=option]")[to]?.focus();
    onPick(to);
  };
  const [mean, meanAfter] = [meanLoss(before.losses), after && meanLoss(after.losses)];
  return (
    <>
      <div
        ref={list}
        class="chips"
        role="listbox"
        aria-label="Tokens; the next token is read after the chosen one"
        aria-orientation="horizontal"
        tabIndex={-1}
        onClick={(event) => {
          const chip = event.target instanceof Element ? event.target.closest<HTMLElement>(".chip") : null;
          if (chip) onPick(Number(chip.dataset.at));
        }}
        onKeyDown={(event) =>
          walk(event, { count: tokens.length, stride: 1, at: position, move, pick: onPick, clear: () => {} })
        }
      >
        {tokens.map((token, at) => {
          const [loss, lossAfter] = [before.losses[at] ?? null, after?.losses[at] ?? null];
          const other = others?.[at];
          return (
            <div
              key={at}
              data-at={at}
              class="chip"
              role="option"
              aria-selected={at === position}
              aria-label={`${plain(token)}, position ${at}, id ${ids[at]}, ${spokenLoss(loss, lossAfter, after !== null)}`}
              title={`position ${at}, id ${ids[at]}`}
              tabIndex={at === position ? 0 : -1}
            >
              <span class="chip-token">
                <TokenText text={token} />
              </span>
              {other !== undefined && other !== token && (
                <span class="chip-other" title="the second prompt's token">
                  <TokenText text={other} />
                </span>
              )}
              <small class="chip-id">{ids[at]}</small>
              <span class="chip-loss">{loss === null ? "" : number(loss)}</span>
              <i class="loss-bar" style={{ width: `${(100 * (loss ?? 0)) / largest}%` }} />
              {after && (
                <>
                  <span class="chip-loss after">{lossAfter === null ? "" : number(lossAfter)}</span>
                  <i class="loss-bar after" style={{ width: `${(100 * (lossAfter ?? 0)) / largest}%` }} />
                </>
              )}
            </div>
          );
        })}
      </div>
      <p class="soft note">
        Under each token its id, and its loss in nats given those before it
        {after ? ": as the model is, and with the changes" : ""}. Mean loss{" "}
        <b class="number" data-value="mean-loss">
          {number(mean)}
        </b>
        {after && (
          <>
            {" → "}
            <b class="number" data-value="mean-loss-after">
              {number(meanAfter)}
            </b>
          </>
        )}
        . Choose a token to read what comes after it.
      </p>
    </>
  );
}

function spokenLoss(loss: number | null, after: number | null, changed: boolean): string {
  if (loss === null) return "no loss";
  return `loss ${number(loss)} nats${changed ? `, with the changes ${number(after)}` : ""}`;
}
