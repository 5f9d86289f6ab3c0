"""Measurements of the explorer: one pass over the text, the sequences it shows, what heads write, and their effects."""
