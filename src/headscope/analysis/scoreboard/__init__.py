"""Scores of every method on models whose answers are known."""
