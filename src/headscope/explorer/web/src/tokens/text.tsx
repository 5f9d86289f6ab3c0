// Tokens as text: spaces stay spaces; what cannot be seen, or would disturb the line, is spelled out. Text only ever
// enters a page as a text node.

import type { ComponentChildren, JSX } from "preact";

const INVISIBLE =
  /[\p{C}\p{Zl}\p{Zp}\u00a0\u115f\u1160\u1680\u180e\u2000-\u200a\u202f\u205f\u2800\u3164\uffa0]|\u034f|\u17b4|\u17b5|[\u180b-\u180f]/u;
const LONGEST = 120;

function spelled(char: string): string {
  const code = char.codePointAt(0) ?? 0;
  const hex = (width: number) => code.toString(16).padStart(width, "0");
  if (char === "\n") return "↵";
  if (char === "\t") return "⇥";
  if (code < 0x100) return `\\x${hex(2)}`;
  return code < 0x10000 ? `\\u${hex(4)}` : `\\u{${hex(1)}}`;
}

/** The token in one line of plain text, for names and titles. */
export function plain(text: string): string {
  if (text === "") return "∅";
  const shown = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
  return Array.from(shown, (char) => (INVISIBLE.test(char) ? spelled(char) : char)).join("");
}

/** A token's text with its invisible characters marked; `breaks` keeps the line breaks of a running text. */
export function TokenText({ text, breaks = false }: { text: string; breaks?: boolean }): JSX.Element {
  if (text === "") return <span class="escape">∅</span>;
  const pieces: ComponentChildren[] = [];
  let run = "";
  const flush = () => {
    if (run) pieces.push(run);
    run = "";
  };
  for (const char of text) {
    if (!INVISIBLE.test(char)) {
      run += char;
      continue;
    }
    flush();
    pieces.push(<span class="escape">{spelled(char)}</span>);
    if (breaks && char === "\n") pieces.push("\n");
  }
  flush();
  return <>{pieces}</>;
}

/** A token quoted within a sentence or a table; one of spaces alone has them marked. */
export function Quote({ text }: { text: string }): JSX.Element {
  if (/^ +$/.test(text) && text.length <= LONGEST)
    return (
      <q class="token">
        <span class="escape">{"␣".repeat(text.length)}</span>
      </q>
    );
  if (text.length <= LONGEST)
    return (
      <q class="token">
        <TokenText text={text} />
      </q>
    );
  return (
    <q class="token" title={`${text.length.toLocaleString("en")} characters`}>
      {plain(text)}
    </q>
  );
}
