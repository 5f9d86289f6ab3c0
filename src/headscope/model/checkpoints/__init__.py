"""Checkpoints in and out: files, hub, conversion, the catalog of model families."""
