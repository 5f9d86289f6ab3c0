"""Names that notebooks written for TransformerLens import, and nothing else here uses."""
