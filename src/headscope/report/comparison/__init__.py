"""The comparison of two models."""
