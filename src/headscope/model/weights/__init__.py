"""Weights: initialization, processing, stacks over layers, placement on devices."""
