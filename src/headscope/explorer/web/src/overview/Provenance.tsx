import { useTree } from "../data/tree";
import { count } from "../format";

/** What was measured, and on what. */
export function Provenance() {
  const { config, heads } = useTree();
  const facts = Object.entries(config.pipeline_config).filter(([, value]) => value !== null);
  const { n_tokens, dataset_name } = config.pipeline_config;
  return (
    <details class="provenance">
      <summary>
        {count(heads.length)} heads in {count(config.n_layers)} layers
        {typeof n_tokens === "number" && `, measured on ${count(n_tokens)} tokens`}
        {typeof dataset_name === "string" && ` of ${dataset_name}`}
      </summary>
      <dl>
        {config.generator && <Fact name="written by" value={config.generator} />}
        {facts.map(([name, value]) => (
          <Fact key={name} name={name.replaceAll("_", " ")} value={value} />
        ))}
      </dl>
    </details>
  );
}

function Fact({ name, value }: { name: string; value: unknown }) {
  const shown =
    typeof value === "number" && Number.isInteger(value)
      ? count(value)
      : typeof value === "object"
        ? JSON.stringify(value)
        : String(value);
  return (
    <div>
      <dt>{name}</dt>
      <dd>{shown}</dd>
    </div>
  );
}
