/** What a request is doing, or what kept it from an answer. */
import { useEffect, useState } from "preact/hooks";
import type { Asked } from "./client";

// Work that is done sooner is not worth a word.
const PATIENCE_MS = 200;

export function Trouble({ asked }: { asked: Asked<unknown> }) {
  const { busy, error, cancelled, cancel, again } = asked;
  const [slow, setSlow] = useState(false);
  useEffect(() => {
    setSlow(false);
    if (!busy) return;
    const timer = setTimeout(() => setSlow(true), PATIENCE_MS);
    return () => clearTimeout(timer);
  }, [busy]);
  if (error) {
    return (
      <div class="notice" role="alert">
        <p>{error.message}</p>
        {error.retryAfter !== null && <p class="soft">Try again in {error.retryAfter} s.</p>}
        <button type="button" class="button" onClick={again}>
          Try again
        </button>
      </div>
    );
  }
  if (cancelled) {
    return (
      <p class="working" role="status">
        Cancelled.{" "}
        <button type="button" class="button" onClick={again}>
          Run
        </button>
      </p>
    );
  }
  if (!busy || !slow) return null;
  return (
    <p class="working" role="status">
      <span class="spinner" aria-hidden="true" /> Working…{" "}
      <button type="button" class="button" onClick={cancel}>
        Cancel
      </button>
    </p>
  );
}
