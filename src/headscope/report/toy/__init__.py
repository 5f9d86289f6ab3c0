"""The report on a toy training run."""
