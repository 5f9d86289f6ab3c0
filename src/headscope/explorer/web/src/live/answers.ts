/** What the server answers, by the names of its schemas. */
import type { components } from "./api";

type Schemas = components["schemas"];

export type Change = Schemas["Change"];
export type Action = Change["action"];
export type State = Schemas["State"];
export type ModelInfo = Schemas["ModelInfo"];
export type Answer = Schemas["Answer"];
export type Run = Schemas["Run"];
export type Prediction = Schemas["Prediction"];
export type PatternsAnswer = Schemas["PatternsAnswer"];
export type OnePatternAnswer = Schemas["OnePatternAnswer"];
export type WhyAnswer = Schemas["WhyAnswer"];
export type Part = Schemas["Part"];
