"""Circuits of heads, found by path patching."""
