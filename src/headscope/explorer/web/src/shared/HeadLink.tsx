import type { HeadName } from "../data/types";
import { address } from "../router";

export const headAddress = (name: HeadName): string => address(["head", name]);

export function HeadLink({ name }: { name: HeadName }) {
  return (
    <a class="head-link number" href={headAddress(name)}>
      {name}
    </a>
  );
}
