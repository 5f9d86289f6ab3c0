/** Requests to the server that this page came from. */
import { useEffect, useRef, useState } from "preact/hooks";

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

export type Asked<T> = {
  /** The last answer there was. */
  answer: T | null;
  /** Whether it is not, or not yet, that to what is asked now. */
  stale: boolean;
  error: Refused | null;
  busy: boolean;
  cancelled: boolean;
  cancel: () => void;
  again: () => void;
};

/**
 * Ask for the answer to a body, again whenever it changes; undefined is a question without a body, and null asks
 * nothing. What is out of date is aborted.
 */
export function useAnswer<T>(path: string, body: unknown): Asked<T> {
  const text = body === null ? null : (JSON.stringify(body) ?? "");
  const [kept, setKept] = useState<{ answer: T; of: string } | null>(null);
  const [state, setState] = useState<{ error: Refused | null; busy: boolean; cancelled: boolean }>({
    error: null,
    busy: text !== null,
    cancelled: false,
  });
  const [turn, setTurn] = useState(0);
  const abort = useRef<AbortController | null>(null);
  useEffect(() => {
    if (text === null) {
      setState({ error: null, busy: false, cancelled: false });
      return;
    }
    const controller = new AbortController();
    abort.current = controller;
    setState({ error: null, busy: true, cancelled: false });
    ask<T>(path, text === "" ? undefined : JSON.parse(text), controller.signal).then(
      (answer) => {
        if (controller.signal.aborted) return;
        setKept({ answer, of: text });
        setState({ error: null, busy: false, cancelled: false });
      },
      (error: unknown) => {
        if (controller.signal.aborted) return;
        const refused = error instanceof Refused ? error : new Refused("unexpected", String(error));
        // An older request that arrived after this one took its place.
        if (refused.code === CROSSED) return setTurn((last) => last + 1);
        setState({ error: refused, busy: false, cancelled: false });
      },
    );
    return () => controller.abort();
  }, [path, text, turn]);
  return {
    answer: kept?.answer ?? null,
    stale: text !== null && kept?.of !== text,
    ...state,
    cancel: () => {
      abort.current?.abort();
      setState({ error: null, busy: false, cancelled: true });
    },
    again: () => setTurn(turn + 1),
  };
}
