/**
 * Where the page is, kept in the address after `#`, so that links survive a reload, from a file too:
 * `#/head/3.1?seq=2` has the parts `["head", "3.1"]` and the options `seq=2`.
 */
import { useLayoutEffect, useState } from "preact/hooks";

export type Route = { parts: string[]; options: URLSearchParams };

export function parse(hash: string): Route {
  const [path = "", query = ""] = split(hash.replace(/^#\/?/, ""));
  return { parts: path.split("/").filter(Boolean).map(decode), options: new URLSearchParams(query) };
}

function split(text: string): [string, string] {
  const at = text.indexOf("?");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray "%"
  }
}

/** The address of a place: `address(["head", "3.1"], { seq: "2" })`. Options that are null or empty are left out. */
export function address(parts: string[], options: Record<string, string | null> | URLSearchParams = {}): string {
  const pairs = options instanceof URLSearchParams ? [...options] : Object.entries(options);
  const kept = pairs.filter((pair): pair is [string, string] => pair[1] !== null && pair[1] !== "");
  const query = kept.map(([name, value]) => `${encode(name)}=${encode(value)}`).join("&");
  return `#/${parts.map(encode).join("/")}${query && `?${query}`}`;
}

// A comma means nothing in a fragment, and reads better as it is. Half of a surrogate pair would throw.
function encode(text: string): string {
  return encodeURIComponent(text.toWellFormed()).replaceAll("%2C", ",");
}

export function currentRoute(): Route {
  return parse(location.hash);
}

/** Go to another place, as a link does. */
export function go(to: string): void {
  location.hash = to;
}

/** Change options of this place; the history keeps one entry for it unless `remember`. */
export function setOptions(changes: Record<string, string | null>, remember = false): void {
  const { parts, options } = currentRoute();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") options.delete(name);
    else options.set(name, value);
  }
  const to = address(parts, options);
  if (to === location.hash) return;
  if (remember) history.pushState(null, "", to);
  else history.replaceState(null, "", to);
  for (const listener of listeners) listener();
}

const listeners = new Set<() => void>();

/** The place the page is at; the component is drawn again when it changes. */
export function useRoute(): Route {
  const [hash, setHash] = useState(location.hash);
  // From the first frame on: what is chosen before the next one counts too.
  useLayoutEffect(() => {
    const listener = () => setHash(location.hash);
    listeners.add(listener);
    addEventListener("hashchange", listener);
    addEventListener("popstate", listener);
    listener();
    return () => {
      listeners.delete(listener);
      removeEventListener("hashchange", listener);
      removeEventListener("popstate", listener);
    };
  }, []);
  return parse(hash);
}
