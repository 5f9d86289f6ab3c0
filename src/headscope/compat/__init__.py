"""Names that notebooks written for TransformerLens import, and nothing else here uses."""

from headscope.compat.alias import install

__all__ = ["install"]
