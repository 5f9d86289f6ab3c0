"""What notebooks written for TransformerLens import and nothing else here uses."""
