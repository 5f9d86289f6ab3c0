/** A message in place of what cannot be shown. */
import type { ComponentChildren } from "preact";

export function Notice({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="notice" role="status">
      <p>
        <b>{title}</b>
      </p>
      {children}
    </div>
  );
}
