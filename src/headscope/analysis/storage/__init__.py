"""Accumulators, run folders and passes over the data: what lets a run stop and resume."""
