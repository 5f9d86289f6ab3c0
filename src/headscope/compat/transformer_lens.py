"""Importing this module makes headscope stand in for TransformerLens and CircuitsVis; see `headscope.compat.alias`."""

from headscope.compat.alias import install

__all__ = ["install"]

install()
