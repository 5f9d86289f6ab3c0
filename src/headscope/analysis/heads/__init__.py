"""Scores and kinds of heads, with the evidence for each."""
