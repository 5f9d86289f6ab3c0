/** What pages of heads share: parts with titles, a menu of heads, and what is said where something is not there. */
import type { ComponentChildren } from "preact";
import { useTree } from "../data/tree";
import { parseHead } from "../format";
import { address } from "../router";
import { Notice } from "../shared/Notice";

/** A menu of all heads, by layer. */
export function HeadMenu(props: { value: string; label: string; onPick: (name: string) => void }) {
  const tree = useTree();
  const layers = [...new Set(tree.heads.map((head) => head.layer))];
  return (
    <select aria-label={props.label} value={props.value} onChange={(event) => props.onPick(event.currentTarget.value)}>
      {layers.map((layer) => (
        <optgroup key={layer} label={`layer ${layer}`}>
          {tree.heads
            .filter((head) => head.layer === layer)
            .map((head) => (
              <option key={head.name} value={head.name}>
                {head.name}
                {head.kinds.length > 0 && ` ${head.kinds.map((kind) => tree.kindLabel(kind)).join(", ")}`}
              </option>
            ))}
        </optgroup>
      ))}
    </select>
  );
}

export function UnknownHead({ name }: { name: string }) {
  const tree = useTree();
  return (
    <Notice title={parseHead(name) ? `Head ${name} is not in this tree.` : `“${name}” is no head.`}>
      <p>
        Heads are named by layer and head, from {tree.heads[0]?.name} to {tree.heads.at(-1)?.name}:{" "}
        <a href={address(["heads"])}>all heads</a>.
      </p>
    </Notice>
  );
}

export function Part(props: { title: string; id: string; missing?: boolean; children: ComponentChildren }) {
  return (
    <section class="part" aria-labelledby={`part-${props.id}`} data-part={props.id}>
      <h2 id={`part-${props.id}`}>{props.title}</h2>
      {props.missing ? <Missing /> : props.children}
    </section>
  );
}

export function Missing() {
  return <p class="missing">Not in this tree.</p>;
}
