/** What the server answers, by the names of its schemas. */
import type { components } from "./api";

type Schemas = components["schemas"];

// What may be left out of a request, the page always says.
export type Change = Required<Schemas["Change"]>;
export type Action = Change["action"];
export type State = Required<Omit<Schemas["State"], "changes">> & { changes: Change[] };
export type ModelInfo = Schemas["ModelInfo"];
export type Answer = Schemas["Answer"];
export type Run = Schemas["Run"];
export type Prediction = Schemas["Prediction"];
export type PatternsAnswer = Schemas["PatternsAnswer"];
export type OnePatternAnswer = Schemas["OnePatternAnswer"];
export type WhyAnswer = Schemas["WhyAnswer"];
export type Part = Schemas["Part"];
export type Rest = Schemas["Rest"];
