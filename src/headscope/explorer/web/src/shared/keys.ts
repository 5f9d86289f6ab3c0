/** Keys of the page: components say which they answer while they are shown, and the help lists those. */
import { useLayoutEffect, useRef } from "preact/hooks";

/** Without `run`, a key that the focused part of the page answers itself. */
export type Shortcut = { key: string; label: string; run?: () => void };
export type Shortcuts = { title: string; shortcuts: Shortcut[] };

const active = new Set<{ current: Shortcuts }>();

/** Answer these keys while the component is shown. `title` is the heading they stand under in the help. */
export function useKeys(title: string, shortcuts: Shortcut[]): void {
  const entry = useRef<Shortcuts>({ title, shortcuts });
  entry.current = { title, shortcuts };
  // As soon as it is shown: of keys pressed in quick succession none is lost.
  useLayoutEffect(() => {
    active.add(entry);
    return () => {
      active.delete(entry);
    };
  }, []);
}

export function activeShortcuts(): Shortcuts[] {
  return [...active].map((entry) => entry.current).filter(({ shortcuts }) => shortcuts.length > 0);
}

// Where letters are typed, they are text.
const TYPED_INTO = "input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable]";

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof Element && event.target.closest(TYPED_INTO)) return;
  if (document.querySelector("dialog[open]")) return;
  for (const { current } of [...active].reverse()) {
    const shortcut = current.shortcuts.find(({ key, run }) => run && key === event.key);
    if (shortcut?.run) {
      event.preventDefault();
      shortcut.run();
      return;
    }
  }
});
