/** Requests to the server that this page came from. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";

/** What the server said instead of an answer. */
export class Refused extends Error {
  readonly code: string;
  readonly retryAfter: number | null;

  constructor(code: string, message: string, retryAfter: number | null = null) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The server's code for a request whose place another of the same page took. */
const CROSSED = "cancelled";

/** Names this page: its newer requests take the place of those of its own that still wait. */
const PAGE = crypto.getRandomValues(new Uint32Array(2)).join("-");

export async function ask<T>(path: string, body: unknown, signal: AbortSignal): Promise<T> {
  const options: RequestInit =
    body === undefined
      ? { signal }
      : {
          signal,
          method: "POST",
          headers: { "Content-Type": "application/json", "X-Headscope-Page": PAGE },
          body: JSON.stringify(body),
        };
  let response: Response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refused("unreachable", "The server does not answer. Is it still running?");
  }
  if (response.ok) return (await response.json()) as T;
  const wait = Number(response.headers.get("Retry-After"));
  throw await refusal(response, wait > 0 ? wait : null);
}

async function refusal(response: Response, retryAfter: number | null): Promise<Refused> {
  const plain = `The server answered ${response.status} ${response.statusText}.`;
  try {
    const { error } = (await response.json()) as { error?: { code: string; message: string } };
    return new Refused(error?.code ?? String(response.status), error?.message ?? plain, retryAfter);
  } catch {
    return new Refused(String(response.status), plain, retryAfter); // it answered with something else than JSON
  }
}

export type Asked<T, B = unknown> = {
  /** The last answer there was, and to what. */
  answer: T | null;
  of: B | null;
  /** Whether it is not, or not yet, that to what is asked now. */
  stale: boolean;
  /** Whether that is on its way: it neither failed nor was cancelled. */
  busy: boolean;
  error: Refused | null;
  cancelled: boolean;
  cancel: () => void;
  again: () => void;
};

/**
 * Ask for the answer to a body, again whenever it changes; undefined is a question without a body, and null asks
 * nothing. What is out of date is aborted.
 */
export function useAnswer<T, B = unknown>(path: string, body: B | null): Asked<T, B> {
  const text = body === null ? null : (JSON.stringify(body) ?? "");
  const [turn, setTurn] = useState(0);
  const [kept, setKept] = useState<{ answer: T; of: string } | null>(null);
  // How the question ended without an answer; without an error, it was cancelled.
  const [end, setEnd] = useState<{ error: Refused | null } | null>(null);
  const abort = useRef<AbortController | null>(null);
  const stale = text !== null && kept?.of !== text;
  const ended = stale ? end : null;
  // Before the next frame: what came of the last question is not shown as what came of this one.
  useLayoutEffect(() => {
    setEnd(null);
    if (!stale || text === null) return;
    const controller = new AbortController();
    abort.current = controller;
    ask<T>(path, text === "" ? undefined : JSON.parse(text), controller.signal).then(
      (answer) => {
        if (!controller.signal.aborted) setKept({ answer, of: text });
      },
      (error: unknown) => {
        if (controller.signal.aborted) return;
        const refused = error instanceof Refused ? error : new Refused("unexpected", String(error));
        // An older request that arrived after this one took its place.
        if (refused.code === CROSSED) return setTurn((last) => last + 1);
        setEnd({ error: refused });
      },
    );
    return () => controller.abort();
  }, [path, text, turn]);
  return {
    answer: kept?.answer ?? null,
    of: kept?.of ? JSON.parse(kept.of) : null,
    stale,
    busy: stale && !ended,
    error: ended?.error ?? null,
    cancelled: ended !== null && ended.error === null,
    cancel: () => {
      abort.current?.abort();
      setEnd({ error: null });
    },
    again: () => setTurn(turn + 1),
  };
}
