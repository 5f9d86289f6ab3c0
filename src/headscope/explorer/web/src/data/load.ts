/**
 * Data come as scripts: a page opened from a file may not fetch, but may add `<script src="heads/L0H0.js">`, whose text
 * is `headscope.receive("heads/L0H0", {...});`. From a server, a tree without such scripts is read as JSON.
 */
import { useEffect, useState } from "preact/hooks";

declare global {
  interface Window {
    headscope: { receive: (name: string, data: unknown) => void };
  }
}

/** A file of the tree: its path without ending, and how it is read; an error of that says what is wrong with it. */
export type DataFile<T> = { name: string; read: (found: unknown) => T };

const received = new Map<string, unknown>();
const ready = new Map<string, unknown>();
const asked = new Map<string, Promise<unknown>>();

window.headscope = { receive: (name, data) => received.set(name, data) };

export function load<T>({ name, read }: DataFile<T>): Promise<T> {
  let answer = asked.get(name);
  if (!answer) {
    answer = byScript(name)
      .catch((error: Error) => {
        if (location.protocol === "file:") throw error;
        return byFetch(name);
      })
      .then((found) => {
        ready.set(name, read(found));
        received.delete(name);
        return ready.get(name);
      });
    answer.catch(() => asked.delete(name)); // so that a later try asks again
    asked.set(name, answer);
  }
  return answer as Promise<T>;
}

function byScript(name: string): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${name}.js`;
    script.onload = () => {
      script.remove();
      if (received.has(name)) resolve(received.get(name));
      else reject(new Error(`${name}.js holds no data of this page.`));
    };
    script.onerror = () => {
      script.remove();
      reject(new Error(`${name}.js could not be read.`));
    };
    document.head.append(script);
  });
}

async function byFetch(name: string): Promise<unknown> {
  const answer = await fetch(`${name}.json`);
  if (!answer.ok) throw new Error(`Neither ${name}.js nor ${name}.json could be read.`);
  return answer.json();
}

export type Loaded<T> = { state: "loading" } | { state: "failed"; message: string } | { state: "ready"; data: T };

/** Load a file of the tree for a component. */
export function useData<T>({ name, read }: DataFile<T>): Loaded<T> {
  const [loaded, setLoaded] = useState<{ name: string; result: Loaded<T> } | null>(null);
  useEffect(() => {
    let current = true;
    const set = (result: Loaded<T>) => current && setLoaded({ name, result });
    load<T>({ name, read }).then(
      (data) => set({ state: "ready", data }),
      (error: Error) => set({ state: "failed", message: error.message }),
    );
    return () => {
      current = false;
    };
  }, [name, read]);
  if (loaded?.name === name) return loaded.result;
  // Data that are here already are shown in the first frame.
  if (ready.has(name)) return { state: "ready", data: ready.get(name) as T };
  return { state: "loading" };
}
